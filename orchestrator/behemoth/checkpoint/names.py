"""How an array's name becomes its folder: reversible, safe on any file system, and never two arrays on one path.

Zarr and directories both forbid names that models use freely (`.`, empty segments, `layer` beside `layer/weight`).
The name itself is kept in the array's attributes, so nobody has to undo this. Neighbour: `layout`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from behemoth.base.errors import Invalid

MAX_NAME_BYTES = 1024
MAX_SEGMENT_BYTES = 240  # file systems take 255
MAX_PATH_BYTES = 900
"""Most bytes of an escaped name: what S3's limit of 1,024 bytes for a key leaves beside step, write id and chunk."""

_ODD = re.compile("[^A-Za-z0-9_.-]")
_RESERVED_SEGMENTS = frozenset({".", "..", "c", "zarr.json"})  # `c` holds the chunks of a zarr array
_RESERVED_BEGINNINGS = ("__", ".behemoth-tmp-")  # zarr v3's own names; unfinished files of a store
_RESERVED_AT_TOP = frozenset({"index"})  # our own metadata
_EMPTY_SEGMENT = "%-"
_IS_PREFIX = "%."  # no escaped character gives these two: `%` itself becomes %25


def checked_name(name: str) -> str:
    """Raises Invalid for a name that no escape can carry."""
    num_bytes = len(name.encode("utf-8", errors="replace")) if isinstance(name, str) else 0
    if not 1 <= num_bytes <= MAX_NAME_BYTES or not name.isprintable():
        got = f"{num_bytes} bytes: " if num_bytes > MAX_NAME_BYTES else ""
        raise _unusable("array name", f"1 .. {MAX_NAME_BYTES} bytes of printable text", f"{got}{name!r:.80}")
    longest = max(len(_escaped(segment)) for segment in name.split("/"))
    if longest > MAX_SEGMENT_BYTES:
        expected = f"at most {MAX_SEGMENT_BYTES} bytes between two slashes, escaped"
        raise _unusable(f"array name {name!r:.80}", expected, f"{longest} bytes")
    path_bytes = len(_path(name))
    if path_bytes > MAX_PATH_BYTES:
        raise _unusable(f"array name {name!r:.80}", f"at most {MAX_PATH_BYTES} bytes, escaped", f"{path_bytes} bytes")
    return name


def _unusable(what: str, expected: str, got: str) -> Invalid:
    return Invalid(f"{what}: expected {expected}, got {got}", hint="give it a shorter, plain name", code="array-name")


def escaped_paths(names: Sequence[str]) -> tuple[str, ...]:
    """The folder of each name, in the same order; different names give different folders, none inside another.

    Plain segments stay as they are. Other characters become %XX of their UTF-8 bytes; a reserved segment has its first
    character escaped; a name that is a path prefix of another ends in `%.`.
    """
    parents = {parent for name in names for parent in _parents(name)}
    return tuple(_path(name) + (_IS_PREFIX if name in parents else "") for name in names)


def groups_of(paths: Sequence[str]) -> tuple[str, ...]:
    """Every folder above `paths` that holds arrays or groups, without the top, in order."""
    return tuple(sorted({parent for path in paths for parent in _parents(path)}))


def _parents(name: str) -> list[str]:
    segments = name.split("/")
    return ["/".join(segments[:length]) for length in range(1, len(segments))]


def _path(name: str) -> str:
    first, *rest = name.split("/")
    top = _percent(first[0]) + _escaped(first[1:]) if first in _RESERVED_AT_TOP else _escaped(first)
    return "/".join([top, *(_escaped(segment) for segment in rest)])


def _escaped(segment: str) -> str:
    if not segment:
        return _EMPTY_SEGMENT
    if segment in _RESERVED_SEGMENTS or segment.startswith(_RESERVED_BEGINNINGS):
        return _percent(segment[0]) + _plain(segment[1:])
    return _plain(segment)


def _plain(text: str) -> str:
    return _ODD.sub(lambda odd: _percent(odd[0]), text)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
