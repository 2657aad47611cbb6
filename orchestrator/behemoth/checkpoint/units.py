"""What of a checkpoint's objects is read as one: a chunk with its CRC. Pure.

Ranks ask for parts of it (a payload, a CRC, both together); who reads for others must see that these are parts of one.
Neighbours: `chunk_reader`, which asks, and whoever reads for several.
"""

from __future__ import annotations

from typing import NamedTuple

from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.opened import Commit


class Unit(NamedTuple):
    """Bytes of the object `key` that are read at once."""

    key: str
    offset_bytes: int
    length_bytes: int


def chunk_unit(commit: Commit, array: int, chunk: int) -> Unit:
    """Of a chunk of an array, counted in the layout's order."""
    grid = grids(commit.layout)[array]
    return Unit(commit.shard_of(array, chunk), grid.chunk_offset_bytes(chunk), grid.payload_bytes + TRAILER_BYTES)


class ChunkUnits:
    """Of one commit. O(objects) to make."""

    def __init__(self, commit: Commit) -> None:
        layout = commit.layout
        self._grids: dict[str, Grid] = {
            key: grid for array, grid in enumerate(grids(layout)) for key in commit.shard_keys(array)
        }

    def unit_of(self, key: str, offset_bytes: int, length_bytes: int) -> Unit:
        """The chunk in which the range lies, CRC included; the range itself when it is no part of one."""
        grid = self._grids.get(key)
        if grid is not None and offset_bytes < grid.index_offset_bytes:
            start = offset_bytes - offset_bytes % grid.stride_bytes
            size = grid.payload_bytes + TRAILER_BYTES
            if offset_bytes + length_bytes <= start + size:
                return Unit(key, start, size)
        return Unit(key, offset_bytes, length_bytes)
