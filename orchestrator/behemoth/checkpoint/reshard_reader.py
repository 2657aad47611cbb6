"""Fills a rank's arena from a checkpoint of another layout, by a plan of `reshard`.

Each chunk is read whole and checked, then what this rank holds of it is copied, or computed: no byte is believed before
its CRC. Up to one chunk per thread is in memory beside the arena; a chunk that the rank holds as it is goes straight
into place. Scales that are to be computed take a pass of their own over the blocks of an array that this rank meets.
Every rank reads for itself. Neighbours: `reader`, which decides that this is needed, `changes`, and `chunk_reader`.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import EllipsisType

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.boxes import Box, enclosing
from behemoth.checkpoint.changes import Elements, Scales, ScaleTable, largest_of_blocks
from behemoth.checkpoint.chunk_reader import DIRECT_BYTES, ChunkReader, ChunkReaders
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.precision import Floats, as_float32, scales_for
from behemoth.checkpoint.reshard import ChunkRead, Part, Resharding, ScaleFill, Slab, plan_box, plan_boxes
from behemoth.checkpoint.threads import batched, run_all
from behemoth.ports import ObjectStore

Bytes = npt.NDArray[np.uint8]


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
    """Fill the slabs of `area`, and its blanks with zeros. Raises Corrupt naming array, chunk and file, Invalid naming
    an array whose values cannot be converted."""
    for start, stop in work.blanks:
        area[start:stop] = 0
    of_array: defaultdict[int, list[Scales]] = defaultdict(list)
    for scales in work.scales:
        of_array[scales.values].append(scales)
    plain: list[ChunkRead] = []
    scaled: dict[int, list[ChunkRead]] = {array: [] for array in of_array}
    for read in work.reads:
        scaled.get(read.array, plain).append(read)
    fills: defaultdict[Scales, list[ScaleFill]] = defaultdict(list)
    for fill in work.fills:
        fills[fill.scales].append(fill)

    reading = _Reading(store, commit, work.slabs, area)
    run_all(reading.run, batched(plain, threads=threads), threads=threads, name="ckpt-reshard")
    # Array by array, so that what was read for an array's scales may be in a cache when its values are read.
    for array, reads in scaled.items():
        reading.tables = {one: _table(store, commit, one, work.scales[one], threads) for one in of_array[array]}
        for scales, table in reading.tables.items():
            for fill in fills[scales]:
                _fill(work.slabs[fill.slab], fill.box, table, area)
        run_all(reading.run, batched(reads, threads=threads), threads=threads, name="ckpt-reshard")


def _fill(slab: Slab, box: Box, table: ScaleTable, area: Bytes) -> None:
    """Put the scales of a box of blocks into the slab that holds them."""
    inside = tuple(slice(low - begin, high - begin) for (low, high), (begin, _) in zip(box, table.box, strict=True))
    into = as_elements(area[slab.arena_offset :], slab.shape, slab.itemsize).view(np.float32)
    into[...] = table.values[inside].reshape(slab.shape)


def _table(store: ObjectStore, commit: Commit, scales: Scales, boxes: Sequence[Box], threads: int) -> ScaleTable:
    """The scales of boxes of blocks: those that were saved, or what the values of these blocks give; what lies between
    the boxes says nothing."""
    box = enclosing(boxes)
    if scales.saved is None:
        largest = _Largest(store, commit, scales, boxes).found(threads)
        what = f"array {commit.layout.arrays[scales.values].name!r}"
        return ScaleTable(scales=scales, box=box, values=scales_for(largest, scales.dtype, what=what))
    grid = grids(commit.layout)[scales.saved]
    has_dims = len(grid.spec.shape) == len(box)  # else it is one scale for all, in a shape of its own
    work = plan_box(grid, scales.saved, box if has_dims else tuple((0, 1) for _ in grid.spec.shape))
    area = np.empty(work.slabs[0].nbytes, dtype=np.uint8)
    read_slabs(store, commit, work, area, threads=threads)
    values = as_float32(area.view(DTYPES[grid.spec.dtype])).reshape([high - low for low, high in box])
    return ScaleTable(scales=scales, box=box, values=values)


class _Largest:
    """Finds the largest magnitude in each block of some boxes of blocks, on several threads."""

    def __init__(self, store: ObjectStore, commit: Commit, scales: Scales, boxes: Sequence[Box]) -> None:
        self._readers = ChunkReaders(store, commit)
        self._grid = grids(commit.layout)[scales.values]
        self._scales = scales
        self._boxes = boxes
        self._box = enclosing(boxes)
        self._largest: Floats = np.zeros([high - low for low, high in self._box], dtype=np.float32)
        self._lock = threading.Lock()

    def found(self, threads: int) -> Floats:
        """In the shape of the box that encloses them, 0 where none of them is."""
        elements = [self._scales.elements(box, self._grid.spec.shape) for box in self._boxes]
        reads = plan_boxes(self._grid, self._scales.values, elements)
        run_all(self._run, batched(reads, threads=threads), threads=threads, name="ckpt-scales")
        return self._largest

    def _run(self, reads: Sequence[ChunkRead]) -> None:
        chunks, spec = self._readers.mine(), self._grid.spec
        for read in reads:
            payload, _ = chunks.payload(read.array, read.chunk)
            chunk = as_elements(np.frombuffer(payload, dtype=np.uint8), self._grid.chunk_shape, spec.itemsize)
            begins = [part.start for part in self._grid.chunk_box(read.chunk)]
            for copy in read.copies:
                begin = tuple(start + part.start for start, part in zip(begins, copy.source, strict=True))
                values = _part(chunk, copy.source).view(DTYPES[spec.dtype])
                for box, largest in largest_of_blocks(values, begin, self._scales):
                    self._merge(box, largest)

    def _merge(self, box: Box, largest: Floats) -> None:
        place = tuple(slice(low - begin, high - begin) for (low, high), (begin, _) in zip(box, self._box, strict=True))
        with self._lock:
            self._largest[place] = np.maximum(self._largest[place], largest)


class _Reading:
    """Reads chunks on several threads; no two of them write to the same bytes. `tables`: what these chunks need."""

    def __init__(self, store: ObjectStore, commit: Commit, slabs: Sequence[Slab], area: Bytes) -> None:
        self._readers = ChunkReaders(store, commit)
        self._grids = grids(commit.layout)
        self._slabs = [as_elements(area[one.arena_offset :], one.shape, one.itemsize) for one in slabs]
        self.tables: Mapping[Scales, ScaleTable] = {}

    def run(self, reads: Sequence[ChunkRead]) -> None:
        chunks = self._readers.mine()
        for read in reads:
            self._read(chunks, read)

    def _read(self, chunks: ChunkReader, read: ChunkRead) -> None:
        read_chunk(chunks, self._grids[read.array], read, self._slabs, self.tables)


def read_chunk(
    chunks: ChunkReader,
    grid: Grid,
    read: ChunkRead,
    slabs: Sequence[Elements],
    tables: Mapping[Scales, ScaleTable],
) -> None:
    """Read a chunk, check it, and put into the slabs what they take of it; `tables` has the scales of those that change
    it. Raises Corrupt naming array, chunk and file."""
    targets = [_part(slabs[copy.slab], copy.target) for copy in read.copies]
    first = targets[0]
    is_moved = len(targets) == 1 and read.copies[0].change is None
    is_whole = is_moved and first.nbytes == grid.payload_bytes and first.flags.c_contiguous
    if is_whole and first.nbytes >= DIRECT_BYTES:
        chunks.payload_into(read.array, read.chunk, first.reshape(-1).view(np.uint8).data)
        return
    payload, _ = chunks.payload(read.array, read.chunk)
    chunk = as_elements(np.frombuffer(payload, dtype=np.uint8), grid.chunk_shape, grid.spec.itemsize)
    for copy, target in zip(read.copies, targets, strict=True):
        if copy.change is None:
            np.copyto(target, _part(chunk, copy.source))
        else:
            copy.change.apply(_part(chunk, copy.source), target, copy.target, tables)


def as_elements(area: Bytes, shape: tuple[int, ...], itemsize: int) -> Elements:
    """The front of `area` as an array of this shape."""
    return area[: math.prod(shape) * itemsize].view(f"V{itemsize}").reshape(shape)


def _part(whole: Elements, part: Part) -> Elements:
    index: tuple[slice | EllipsisType, ...] = (*part, ...)  # never a scalar, also of an array without dims
    return whole[index]
