"""What a checkpoint id means: a store, and perhaps the step of one checkpoint in it.

torch names one folder per checkpoint (`out/step-100`); a store of ours holds many. So an id that ends in a step names
the checkpoint of that step in the folder above, and any other id names a store. Opens nothing. Neighbours: `writer`
and `reader`, which take ids from their caller and from `dcp.save(checkpoint_id=...)`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.paths import MAX_STEP
from behemoth.storage.open import is_s3, path_of
from behemoth.storage.s3_place import parse_s3

_NAMED_STEP = re.compile(r"(?:(?:(?:global_)?step|iter|checkpoint|ckpt|epoch)[-_=]?)?(\d+)")
"""Last segments that name a step: torchtitan's step-100, Megatron's iter_0000100, DeepSpeed's global_step100, 100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`url` is a path or URL of a store; `step` and `folder`, the name by which the program knows its checkpoint, are
    None where the id names none."""

    url: str
    step: Step | None
    folder: str | None = None

    def at(self, step: int | None) -> Address:
        """The address with a step that was given as an argument. Raises Invalid when the id names another step."""
        if step is None or step == self.step:
            return self
        if self.step is not None or not 0 <= step <= MAX_STEP:
            expected = f"0 .. {MAX_STEP}" if self.step is None else f"{self.step}, which the id names"
            raise Invalid(f"checkpoint in {self.url}: expected step {expected}, got {step}", code="dcp-step")
        return Address(url=self.url, step=Step(step))


def parse_address(checkpoint_id: str | os.PathLike[str], *, store: str | None = None) -> Address:
    """The address that a checkpoint id means. An id without a slash that names a step is one of `store`, if that is
    given.

    Raises Invalid for an id that no store can have, and for a step of more than nine digits.
    """
    text = os.fspath(checkpoint_id)
    place, mark, options = text.partition("?") if is_s3(text) else (text, "", "")
    if not is_s3(text):
        path_of(text)
    elif not parse_s3(text).prefix:
        return Address(url=text, step=None)  # a bucket may be called step-100
    folder, slash, last = place.rstrip("/").rpartition("/")
    match = _NAMED_STEP.fullmatch(last)
    if match is None:
        return Address(url=text, step=None)
    if len(match.group(1).lstrip("0")) > len(str(MAX_STEP)):
        raise Invalid(f"checkpoint id {place!r}: expected a step of 0 .. {MAX_STEP}, got {last}", code="dcp-step")
    if not slash:
        folder = store or "."
    elif folder.endswith("/"):
        folder += "/"  # file:///step-1, whose store is the root
    return Address(url=f"{folder or '/'}{mark}{options}", step=Step(int(match.group(1))), folder=last)
