"""Fills a rank's arena from a checkpoint of another layout, by a plan of `reshard`.

Each chunk is read whole and checked, then what this rank holds of it is copied: no byte is believed before its CRC. Up
to one chunk per thread is in memory beside the arena; a chunk that the rank holds as it is goes straight into place.
Every rank reads for itself. Neighbours: `reader`, which decides that this is needed, and `chunk_reader`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.chunk_reader import DIRECT_BYTES, ChunkReader, ChunkReaders
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.reshard import ChunkRead, Part, Resharding, Slab
from behemoth.checkpoint.threads import batched, run_all
from behemoth.ports import ObjectStore

Bytes = npt.NDArray[np.uint8]
Elements = npt.NDArray[np.void]
"""Whatever they mean: bytes of one size that are moved together."""


def read_resharded(
    store: ObjectStore, commit: Commit, plan: RankPlan, work: Resharding, data: memoryview, *, threads: int
) -> list[int]:
    """Put all bytes of the plan in `data`, the data area of a generation; the CRC of each of its spans.

    What the checkpoint has nothing for is set to zeros. Raises Corrupt naming array, chunk and file.
    """
    read_slabs(store, commit, work, np.frombuffer(data, dtype=np.uint8), threads=threads)

    def crcs(spans: Sequence[Span]) -> list[int]:
        return [crc32c(data[span.arena_offset : span.arena_offset + span.length]) for span in spans]

    parts = run_all(crcs, batched(plan.spans, threads=threads), threads=threads, name="ckpt-crc")
    return [crc for part in parts for crc in part]


def read_slabs(store: ObjectStore, commit: Commit, work: Resharding, area: Bytes, *, threads: int) -> None:
    """Fill the slabs of `area`, and its blanks with zeros. Raises Corrupt naming array, chunk and file."""
    for start, stop in work.blanks:
        area[start:stop] = 0
    reading = _Reading(store, commit, work.slabs, area)
    run_all(reading.run, batched(work.reads, threads=threads), threads=threads, name="ckpt-reshard")


class _Reading:
    """Reads chunks on several threads; no two of them write to the same bytes."""

    def __init__(self, store: ObjectStore, commit: Commit, slabs: Sequence[Slab], area: Bytes) -> None:
        self._readers = ChunkReaders(store, commit)
        self._grids = grids(commit.layout)
        self._slabs = [_elements(area[one.arena_offset :], one.shape, one.itemsize) for one in slabs]

    def run(self, reads: Sequence[ChunkRead]) -> None:
        chunks = self._readers.mine()
        for read in reads:
            self._read(chunks, read)

    def _read(self, chunks: ChunkReader, read: ChunkRead) -> None:
        grid = self._grids[read.array]
        targets = [_part(self._slabs[copy.slab], copy.target) for copy in read.copies]
        first = targets[0]
        is_whole = len(targets) == 1 and first.nbytes == grid.payload_bytes and first.flags.c_contiguous
        if is_whole and first.nbytes >= DIRECT_BYTES:
            chunks.payload_into(read.array, read.chunk, first.reshape(-1).view(np.uint8).data)
            return
        payload, _ = chunks.payload(read.array, read.chunk)
        chunk = _elements(np.frombuffer(payload, dtype=np.uint8), grid.chunk_shape, grid.spec.itemsize)
        for copy, target in zip(read.copies, targets, strict=True):
            np.copyto(target, _part(chunk, copy.source))


def _elements(area: Bytes, shape: tuple[int, ...], itemsize: int) -> Elements:
    """The front of `area` as an array of this shape."""
    return area[: math.prod(shape) * itemsize].view(f"V{itemsize}").reshape(shape)


def _part(whole: Elements, part: Part) -> Elements:
    index: tuple[slice | EllipsisType, ...] = (*part, ...)  # never a scalar, also of an array without dims
    return whole[index]
