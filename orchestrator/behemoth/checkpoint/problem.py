"""One damaged place of a store, as checks tell it. A value; neighbours: `verify`, `chunk_check`, `verify_store`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from behemoth.checkpoint.grid import Grid

Kind = Literal[
    "owner",
    "marker",
    "commit-record",
    "index",
    "metadata",
    "missing",
    "extra",
    "size",
    "unreadable",
    "shard-index",
    "chunk",
    "gap",
    "content",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One damaged place: bytes [offset, offset + length) of an object, whose key is below the run's root.

    `array` and `chunk` (C order of the chunk grid) are None where it is not in an array, or not in one chunk."""

    kind: Kind
    object_key: str
    offset_bytes: int
    length_bytes: int
    message: str
    array: str | None = None
    chunk: int | None = None


def problem_at(
    kind: Kind, key: str, offset: int, length: int, message: str, grid: Grid | None = None, chunk: int | None = None
) -> Problem:
    """A problem of an array, if `grid` is given."""
    return Problem(
        kind=kind,
        object_key=key,
        offset_bytes=offset,
        length_bytes=length,
        message=message,
        array=None if grid is None else grid.spec.name,
        chunk=chunk,
    )
