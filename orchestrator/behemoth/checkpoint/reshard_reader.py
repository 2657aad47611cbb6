"""Fills a rank's arena from a checkpoint of another layout, by a plan of `reshard`.

Each chunk is read whole and checked, then what this rank holds of it is copied, or computed: no byte is believed before
its CRC. Up to one chunk per thread is in memory beside the arena, and values that wait for computed scales; a chunk
that the rank holds as it is goes straight into place. Every rank reads for itself. Neighbours: `reader`, which decides
that this is needed, `scaled_reader` (arrays of which scales are computed), `chunk_parts`, and `chunk_reader`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from behemoth.checkpoint.address import address_of
from behemoth.checkpoint.box import Box, enclosing, shape_of
from behemoth.checkpoint.changes import Elements, Scales, ScaleTable
from behemoth.checkpoint.chunk_parts import Bytes, PlacedChunk, as_elements, read_chunk
from behemoth.checkpoint.chunk_reader import ChunkReaders
from behemoth.checkpoint.computed_scales import ComputedScales
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.precision import as_float32
from behemoth.checkpoint.reshard import ChunkRead, Copy, Resharding, ScaleFill, Slab, plan_boxes
from behemoth.checkpoint.scale_waves import RANK_KEPT_BYTES
from behemoth.checkpoint.scaled_reader import ScaledArray
from behemoth.checkpoint.seen_chunks import SeenChunks
from behemoth.checkpoint.stopping import Cancelled, never, require_wanted
from behemoth.checkpoint.threads import batched, run_all
from behemoth.ports import ObjectStore


def read_resharded(
    store: ObjectStore,
    commit: Commit,
    plan: RankPlan,
    work: Resharding,
    data: memoryview,
    *,
    threads: int,
    kept_bytes: int,
    seen: SeenChunks | None = None,
) -> list[int]:
    """Fill `data`, the data area of a generation, by the plan. Blocks. Returns the CRC-32C of each span of the plan.

    What the checkpoint has nothing for is set to zeros. `kept_bytes` as for `read_slabs`. Raises Corrupt naming
    array, chunk and file.
    """
    area = np.frombuffer(data, dtype=np.uint8)
    placed = read_slabs(store, commit, work, area, threads=threads, kept_bytes=kept_bytes, seen=seen)
    known = {(one.address, one.num_bytes): one.crc for one in placed}

    def crcs(spans: Sequence[Span]) -> list[int]:
        return [_crc(data[span.arena_offset : span.arena_offset + span.length], known) for span in spans]

    parts = run_all(crcs, batched(plan.spans, threads=threads), threads=threads, name="ckpt-crc")
    return [crc for part in parts for crc in part]


def _crc(data: memoryview, known: Mapping[tuple[int, int], int]) -> int:
    """CRC-32C of a span; known already where the span is a whole chunk that was read straight into place."""
    crc = known.get((address_of(data), data.nbytes)) if data.nbytes else None
    return crc32c(data) if crc is None else crc


def read_slabs(
    store: ObjectStore,
    commit: Commit,
    work: Resharding,
    area: Bytes,
    *,
    threads: int,
    scales_store: ObjectStore | None = None,
    kept_bytes: int = RANK_KEPT_BYTES,
    remembered: ComputedScales | None = None,
    seen: SeenChunks | None = None,
    cancelled: Cancelled = never,
) -> list[PlacedChunk]:
    """Fill the slabs of `area`, and its blanks with zeros. Returns the chunks that were read straight into place.

    `scales_store`: where saved scales are read from, by default `store`. `kept_bytes`: most bytes of values held while
    they wait for computed scales. `remembered`: a cache of computed scales, which is read and filled. `seen`: the
    chunks that other ranks have read. Blocks. Raises Corrupt naming array, chunk and file, Invalid naming an array
    whose values cannot be converted, Conflict at the next chunk once `cancelled()` is true.
    """
    for start, stop in work.blanks:
        area[start:stop] = 0
    of_array: defaultdict[int, list[Scales]] = defaultdict(list)
    for scales in work.scales:
        of_array[scales.values].append(scales)
    plain: list[ChunkRead] = []
    scaled: dict[int, list[ChunkRead]] = {array: [] for array in of_array}
    # What slabs take of saved scales as such is read with the scales: they are read once.
    of_scales: dict[int, list[ChunkRead]] = {one.saved: [] for one in work.scales if one.saved is not None}
    for read in work.reads:
        scaled.get(read.array, of_scales.get(read.array, plain)).append(read)
    fills: defaultdict[Scales, list[ScaleFill]] = defaultdict(list)
    for fill in work.fills:
        fills[fill.scales].append(fill)

    seen = SeenChunks(commit) if seen is None else seen
    readers = ChunkReaders(store, commit, seen=seen)
    readers_of_scales = readers if scales_store is None else ChunkReaders(scales_store, commit, seen=seen)
    reading = _Reading(
        readers, commit, work.slabs, area, kept_bytes=kept_bytes, remembered=remembered, cancelled=cancelled
    )
    found = run_all(reading.run, batched(plain, threads=threads), threads=threads, name="ckpt-reshard")
    for array, reads in scaled.items():
        computed = {one: work.scales[one] for one in of_array[array] if one.saved is None}
        reading.tables = {
            one: reading.table(readers_of_scales, one, work.scales[one], of_scales.pop(one.saved, []), threads)
            for one in of_array[array]
            if one.saved is not None
        }
        if not computed:
            run_all(reading.run, batched(reads, threads=threads), threads=threads, name="ckpt-reshard")
            continue
        converted = reading.scaled(array, reads, computed)
        converted.read(threads)
        for fill in (fill for one in computed for fill in fills[one]):
            slab = work.slabs[fill.slab]
            into = as_elements(area[slab.arena_offset :], slab.shape, slab.itemsize).view(np.float32)
            into[...] = converted.scales(fill.scales, fill.box).reshape(slab.shape)
    readers.require_committed()
    return [one for part in found for one in part]


class _Reading:
    """Reads chunks on several threads; no two of them write to the same bytes. `tables`: the saved scales that these
    chunks need."""

    def __init__(
        self,
        readers: ChunkReaders,
        commit: Commit,
        slabs: Sequence[Slab],
        area: Bytes,
        *,
        kept_bytes: int,
        remembered: ComputedScales | None,
        cancelled: Cancelled,
    ) -> None:
        self._readers = readers
        self._grids = grids(commit.layout)
        self._slabs = [as_elements(area[one.arena_offset :], one.shape, one.itemsize) for one in slabs]
        self._kept_bytes = kept_bytes
        self._remembered = remembered
        self._cancelled = cancelled
        self.tables: Mapping[Scales, ScaleTable] = {}

    def run(self, reads: Sequence[ChunkRead]) -> list[PlacedChunk]:
        return self._run(self._readers, self._slabs, reads)

    def table(
        self, readers: ChunkReaders, scales: Scales, boxes: Sequence[Box], reads: Sequence[ChunkRead], threads: int
    ) -> ScaleTable:
        """The saved scales of the box that encloses some boxes of blocks; `reads` are what slabs take of them."""
        assert scales.saved is not None
        box, grid = enclosing(boxes), self._grids[scales.saved]
        stored = scales.stored(box, len(grid.spec.shape))
        values = np.empty(shape_of(stored), dtype=f"V{grid.spec.itemsize}")
        slabs = [*self._slabs, values]
        copies: defaultdict[int, list[Copy]] = defaultdict(list)
        for read in reads:
            copies[read.chunk] += read.copies
        for read in plan_boxes(grid, scales.saved, [stored]):
            copies[read.chunk] += [copy._replace(slab=len(self._slabs)) for copy in read.copies]
        merged = [ChunkRead(scales.saved, chunk, some) for chunk, some in sorted(copies.items())]
        run_all(
            partial(self._run, readers, slabs), batched(merged, threads=threads), threads=threads, name="ckpt-scales"
        )
        known = as_float32(values.view(DTYPES[grid.spec.dtype])).reshape(shape_of(box))
        return ScaleTable(scales=scales, box=box, values=known)

    def _run(self, readers: ChunkReaders, slabs: Sequence[Elements], reads: Sequence[ChunkRead]) -> list[PlacedChunk]:
        chunks, found = readers.mine(), list[PlacedChunk]()
        for read in reads:
            require_wanted(self._cancelled, what="reshard")
            placed = read_chunk(chunks, self._grids[read.array], read, slabs, self.tables)
            if placed is not None:
                found.append(placed)
        return found

    def scaled(self, array: int, reads: Sequence[ChunkRead], computed: Mapping[Scales, Sequence[Box]]) -> ScaledArray:
        """An array with scales that are computed."""
        return ScaledArray(
            self._readers,
            self._grids[array],
            array,
            computed=computed,
            saved=self.tables,
            reads=reads,
            slabs=self._slabs,
            kept_bytes=self._kept_bytes,
            remembered=self._remembered,
            cancelled=self._cancelled,
        )
