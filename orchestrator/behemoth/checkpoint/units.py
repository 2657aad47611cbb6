"""The units in which a checkpoint's objects are read: a chunk with its CRC. Pure.

Ranks ask for parts of a unit (the payload, the CRC, both together). Whoever reads for several ranks has to see that
these are parts of one unit, or the unit would be read several times. Neighbours: `chunk_reader`, which asks,
`common_chunks` and `agent.peers.read_once`, which serve several ranks.
"""

from __future__ import annotations

from typing import NamedTuple

from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.opened import Commit


class ReadUnit(NamedTuple):
    """Bytes [offset_bytes, offset_bytes + length_bytes) of the object `key`, which are read together."""

    key: str
    offset_bytes: int
    length_bytes: int


class ChunkUnits:
    """The units of one commit. O(objects) to make."""

    def __init__(self, commit: Commit) -> None:
        layout = commit.layout
        self._grids: dict[str, Grid] = {
            key: grid for array, grid in enumerate(grids(layout)) for key in commit.shard_keys(array)
        }

    def unit_of(self, key: str, offset_bytes: int, length_bytes: int) -> ReadUnit:
        """The chunk, CRC included, in which this range of the object `key` lies; the range itself when it is no part
        of a chunk (the commit, the index, a shard's index)."""
        grid = self._grids.get(key)
        if grid is not None and offset_bytes < grid.index_offset_bytes:
            start = offset_bytes - offset_bytes % grid.stride_bytes
            if offset_bytes + length_bytes <= start + grid.stored_bytes:
                return ReadUnit(key, start, grid.stored_bytes)
        return ReadUnit(key, offset_bytes, length_bytes)
