"""Patterns of tensor names: `model.layers.{layer}.mlp.weight` matches names and makes them.

`{layer}` matches characters other than `.` and `/`, `{rest*}` any characters; the rest of a pattern is literal.
Neighbour: `rules`, which pairs patterns of two sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from behemoth.base.errors import Invalid

_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)(\*?)\}")


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Not slotted: what the text compiles to is cached."""

    text: str

    def __post_init__(self) -> None:
        names = [match[1] for match in _FIELD.finditer(self.text)]
        literal = _FIELD.sub("", self.text)
        if not self.text or len(set(names)) != len(names) or "{" in literal or "}" in literal:
            raise Invalid(
                f"pattern {self.text!r}: expected a name in which {{word}} stands for a part and {{word*}} for any "
                "text, each word once",
                code="map-pattern",
            )

    @cached_property
    def fields(self) -> frozenset[str]:
        """The words in braces."""
        return frozenset(match[1] for match in _FIELD.finditer(self.text))

    def match(self, name: str) -> dict[str, str] | None:
        """The value of each word, or None when the name does not match."""
        found = self._compiled.fullmatch(name)
        return None if found is None else found.groupdict()

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with these values in place of the words."""
        return _FIELD.sub(lambda match: values[match[1]], self.text)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        parts, end = [], 0
        for match in _FIELD.finditer(self.text):
            parts.append(re.escape(self.text[end : match.start()]))
            parts.append(f"(?P<{match[1]}>{'.+' if match[2] else '[^./]+'})")
            end = match.end()
        return re.compile("".join(parts) + re.escape(self.text[end:]))
