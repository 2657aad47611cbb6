"""One damaged place of a store, as checks tell it. A value; neighbours: `verify`, `chunk_check`, `verify_store`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from behemoth.base.errors import BehemothError, Corrupt, NotFound
from behemoth.checkpoint.commit_record import FORMAT_UNKNOWN
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.opened import METADATA_MISSING

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


def kind_of(error: BehemothError, damaged: Kind) -> Kind:
    """What an error of reading an object says of it: `damaged` where it is not what was written, or is of a newer
    release. What the store refuses, or the disk does not give, may be whole."""
    if isinstance(error, NotFound) or error.code == METADATA_MISSING:
        return "missing"
    return damaged if isinstance(error, Corrupt) or error.code == FORMAT_UNKNOWN else "unreadable"
