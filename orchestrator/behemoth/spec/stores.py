"""Where checkpoints lie, as a run file says it: the spelling of a store, what is kept there, and the second store.

The neighbour is `run`, which holds these sections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated
from urllib.parse import unquote, urlsplit

from behemoth.base.errors import Invalid
from behemoth.spec.field import About, Integer, Notation, duration, rate_limit, require_ranges, section, size


def _read_store(text: str, *, name: str) -> str:
    """A path, a file:// or an s3:// URL; other URLs are told apart so that nobody gets a folder called `gs:`. Of one
    that is refused the scheme alone is repeated: a presigned one is a credential."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", text)
    if scheme and scheme[1].lower() == "s3":
        return _read_bucket(text, name=name)
    if scheme and scheme[1].lower() != "file":
        hint = "give a path on a local or shared file system, or s3://BUCKET/PREFIX"
        reason = f"expected a path, a file:// or an s3:// URL, got {scheme[1]}:..., which is not supported yet"
        raise Invalid(f"{name}: {reason}", hint=hint, code="not-supported-yet")
    url = urlsplit(text) if scheme else None
    well_formed = url is None or (url.netloc in ("", "localhost") and url.path.startswith("/") and not url.query)
    if not text or "\0" in text or len(text) > 4096 or text.startswith("~") or not well_formed:
        raise Invalid(
            f"{name}: expected a path or a file:///absolute/path URL, got {_told(text)}",
            hint="~ is not expanded: write the whole path" if text.startswith("~") else "",
            code="store-url",
        )
    return unquote(url.path) if url else text


def _read_bucket(text: str, *, name: str) -> str:
    """As far as can be told without the adapter. Credentials are not repeated."""
    bucket = text.partition("?")[0].partition("://")[2].partition("/")[0]
    if "@" in bucket or ":" in bucket:
        hint = "give credentials by the environment, a profile, or the role of the machine"
        raise Invalid(f"{name}: expected no credentials in a URL, got some", hint=hint, code="store-credentials")
    if not bucket or len(text) > 4096 or not text.isprintable():
        raise Invalid(f"{name}: expected s3://BUCKET/PREFIX, got {_told(text)}", code="store-url")
    return text


def _told(text: str) -> str:
    """The beginning of a path, or only the scheme of a URL, for a message."""
    scheme, mark, _ = text.partition("://")
    return f"{scheme[:20]}://... otherwise" if mark else repr(text[:80])


def _read_disk(text: str, *, name: str) -> str:
    """An absolute path: nodes have no folder in common that a relative one could begin from."""
    path = _read_store(text, name=name)
    if not path.startswith("/"):
        raise Invalid(
            f"{name}: expected an absolute path on every node, got {_told(text)}",
            hint="name a folder of each node's own disk, such as /nvme/behemoth",
            code="disk-path",
        )
    return path


STORE = Notation(what="a path, a file:// or an s3:// URL", pattern=r"[^\0]+", unit="path", read=_read_store, write=str)
DISK = Notation(what="an absolute path", pattern=r"/[^\0]*", unit="path", read=_read_disk, write=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which committed checkpoints are kept: those that any of these names, and those that somebody has pinned."""

    keep_last: Annotated[
        int,
        About(
            doc="The newest checkpoints that are kept; at least two, because the newest may turn out to be damaged.",
            kind=Integer(minimum=2),
        ),
    ] = 2
    every_steps: Annotated[
        int | None, About(doc="Checkpoints at multiples of this many steps are kept for ever.", kind=Integer(minimum=1))
    ] = None
    hourly: Annotated[
        int,
        About(
            doc="The newest checkpoint of each of this many hours is kept: the latest hours, in UTC, that have one.",
            kind=Integer(minimum=0, maximum=100_000),
        ),
    ] = 0
    daily: Annotated[
        int,
        About(
            doc="The newest checkpoint of each of this many days is kept: the latest days, in UTC, that have one.",
            kind=Integer(minimum=0, maximum=100_000),
        ),
    ] = 0

    def __post_init__(self) -> None:
        require_ranges(self, name="retention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The slower, safer store that committed checkpoints are copied to in the background."""

    to: Annotated[
        str,
        About(doc="Where they are copied to; as `store`, and below it too in a folder of the run's name.", kind=STORE),
    ]
    every: Annotated[
        int,
        About(
            doc="Of so many commits one is copied, the newest. A later one takes the place of one that still waits. "
            "The last one of a run is always copied.",
            kind=Integer(minimum=1),
        ),
    ] = 1
    rate: Annotated[
        int | None,
        About(
            doc="Most bytes of checkpoints a second that are read for it; no limit when left out.",
            kind=rate_limit(),
        ),
    ] = None
    limit: Annotated[
        timedelta,
        About(
            doc="How long the end of a run waits for its last checkpoint to be copied.",
            kind=duration(minimum=timedelta(seconds=1)),
        ),
    ] = timedelta(hours=1)
    retention: Annotated[
        Retention,
        About(
            doc="Which checkpoints are kept there, besides those that are pinned in either store.",
            kind=section(Retention),
        ),
    ] = Retention()

    def __post_init__(self) -> None:
        require_ranges(self, name="drain")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDisk:
    """Each node's own disk, to which its store process copies what the node's ranks have committed."""

    path: Annotated[
        str,
        About(
            doc="A folder on a disk of each node; made if it is not there. Below it each node of each run has a folder "
            "of its own. No place within a store, nor around one.",
            kind=DISK,
        ),
    ]
    rate: Annotated[
        int | None,
        About(
            doc="Most bytes a second that a node writes there; no limit when left out. What has not been written when "
            "the next checkpoint is committed is given up. A restore is not limited by it.",
            kind=rate_limit(),
        ),
    ] = None
    budget: Annotated[
        int | None,
        About(
            doc="Most bytes of one node there: two files for each of its ranks, each as large as what the rank saves. "
            "A program that declares more is refused, with numbers.",
            kind=size(),
        ),
    ] = None
