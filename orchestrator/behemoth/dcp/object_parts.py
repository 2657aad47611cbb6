"""How the objects of an array are sent to a bucket: in parts of whole chunks, each by whoever holds all of them.

The ranks of a DCP program cannot ask each other for bytes, so a part has one sender. A rank knows by itself which
chunks it holds whole, and so which parts and objects are its own; what is left over at the borders of boxes is put
together by the coordinator. Pure. Neighbours: `box_shards` (so that borders are rare), `bucket_writer` (a rank's
share), `bucket_borders` (the rest).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from typing_extensions import Buffer

from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc import combine
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.part_bytes import Summed
from behemoth.dcp.boxes import ChunkRun
from behemoth.ports import MAX_PARTS

PART_BYTES = 8 << 20
"""Least size of a part, except for the last; what fits into one part is sent as one object."""


class ObjectPart(NamedTuple):
    """Consecutive chunks of a shard with their CRCs; the last part ends with the index. Numbered from 1, as in S3."""

    shard: int
    number: int
    num_parts: int
    chunks: tuple[int, ...]

    @property
    def is_last(self) -> bool:
        """It ends with the shard's index."""
        return self.number == self.num_parts


def parts_of(grid: Grid, shard: int) -> list[ObjectPart]:
    """The parts of a shard; one where it is sent whole."""
    chunks: list[int] = grid.chunks_of(shard).tolist()
    least_bytes = max(PART_BYTES, -(-grid.file_bytes // MAX_PARTS))
    width = -(-least_bytes // grid.stride_bytes)
    groups = [tuple(chunks[at : at + width]) for at in range(0, len(chunks), width)]
    return [ObjectPart(shard, number, len(groups), group) for number, group in enumerate(groups, 1)]


def whole_chunks(grid: Grid, runs: Iterable[ChunkRun]) -> frozenset[int]:
    """The chunks all of whose data are in these runs."""
    held_bytes: Counter[int] = Counter()
    for run in runs:
        held_bytes[run.chunk] += run.length
    return frozenset(chunk for chunk, num_bytes in held_bytes.items() if num_bytes == grid.data_bytes(chunk))


def own_parts(grid: Grid, shard: int, whole: frozenset[int]) -> list[ObjectPart]:
    """The parts of a shard whose chunks are all in `whole`: their holder sends them."""
    return [part for part in parts_of(grid, shard) if whole.issuperset(part.chunks)]


def part_bytes(
    grid: Grid, part: ObjectPart, data_of: Callable[[int], Iterable[tuple[memoryview, int]]]
) -> tuple[list[Buffer], int]:
    """Buffers that make up a part, and the CRC-32C of them all. `data_of` gives a chunk's data in order, in pieces,
    each with its CRC."""
    summed = Summed()
    for chunk in part.chunks:
        chunk_crc = 0
        for data, crc in data_of(chunk):
            chunk_crc = combine(chunk_crc, crc, data.nbytes)
            summed.add([data], crc, data.nbytes)
        summed.append(chunk_tail(grid, chunk_crc, grid.data_bytes(chunk)))
    if part.is_last:
        summed.append(grid.index())
    return summed.buffers, summed.crc
