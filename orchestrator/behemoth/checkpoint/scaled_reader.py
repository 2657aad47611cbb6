"""Reads an array, computes scales from it, and converts it by them: each chunk is read once as far as memory allows.

The order and what is kept are those of `scale_waves`; here it is done, on several threads. A scale counts when all
chunks of its block have been looked through, so results are those of the whole logical array, whatever part of it this
rank holds. Neighbours: `reshard_reader`, which has the rest of a restore, `chunk_parts` and `changes`.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from behemoth.checkpoint.box import Box, enclosing, shape_of, slices_within
from behemoth.checkpoint.changes import Elements, Scales, ScaleTable, largest_of_blocks
from behemoth.checkpoint.chunk_parts import chunk_elements, part_of, put
from behemoth.checkpoint.chunk_reader import ChunkReaders
from behemoth.checkpoint.computed_scales import ComputedScales
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.precision import Floats, scales_for
from behemoth.checkpoint.reshard import ChunkRead, Copy, Slices, plan_boxes
from behemoth.checkpoint.scale_waves import Waiting, WaveRead, outermost, plan_waves
from behemoth.checkpoint.stopping import Cancelled, require_wanted
from behemoth.checkpoint.threads import batched, run_all


class ScaledArray:
    """One array of a checkpoint, counted in its order. `computed` are the scales that are computed of it, and of which
    boxes of blocks they are wanted; `saved` those that were saved for it, known already; `reads` what the slabs take of
    its chunks. `kept_bytes` of values may wait for their scales. Blocks that are remembered are not looked through."""

    def __init__(
        self,
        readers: ChunkReaders,
        grid: Grid,
        array: int,
        *,
        computed: Mapping[Scales, Sequence[Box]],
        saved: Mapping[Scales, ScaleTable],
        reads: Iterable[ChunkRead],
        slabs: Sequence[Elements],
        kept_bytes: int,
        remembered: ComputedScales | None,
        cancelled: Cancelled,
    ) -> None:
        self._readers = readers
        self._grid = grid
        self._array = array
        self._saved = saved
        self._slabs = slabs
        self._kept_bytes = kept_bytes
        self._remembered = remembered
        self._cancelled = cancelled
        self._copies = {read.chunk: read.copies for read in reads}
        self._looked: defaultdict[int, list[tuple[Scales, Slices]]] = defaultdict(list)
        self._largest: dict[Scales, _Largest] = {}
        self._unknown: dict[Scales, list[Box]] = {}
        for scales, boxes in computed.items():
            self._largest[scales] = _Largest(scales, boxes, what=f"array {grid.spec.name!r}")
            unknown = [box for box in outermost(boxes) if not self._is_remembered(scales, box)]
            self._unknown[scales] = unknown
            for read in plan_boxes(grid, array, [scales.elements(box, grid.spec.shape) for box in unknown]):
                self._looked[read.chunk] += [(scales, copy.source) for copy in read.copies]
        self._kept: dict[int, list[Elements]] = {}

    def read(self, threads: int) -> None:
        """Fill the slabs, and look through all blocks. Raises Corrupt naming array, chunk and file, Invalid naming the
        array where values cannot be converted or have no scale."""
        waiting = {chunk: [_waiting(copy) for copy in self._waits(chunk)] for chunk in self._copies}
        chunks = self._copies.keys() | self._looked.keys()
        for wave in plan_waves(self._grid, chunks, waiting, kept_bytes=self._kept_bytes):
            run_all(self._read, batched(wave.reads, threads=threads), threads=threads, name="ckpt-scales")
            run_all(self._ready, batched(wave.ready, threads=threads), threads=threads, name="ckpt-ready")
            run_all(self._again, batched(wave.again, threads=threads), threads=threads, name="ckpt-again")
        if self._remembered is not None:
            for scales, boxes in self._unknown.items():
                for box in boxes:
                    self._remembered.learn(scales, self._grid.spec.shape, box, self._largest[scales].of(box))

    def scales(self, scales: Scales, box: Box) -> Floats:
        """Computed scales of a box of blocks, once all is read. Raises Invalid for blocks of NaN or infinity."""
        return self._largest[scales].table(box).values

    def _is_remembered(self, scales: Scales, box: Box) -> bool:
        known = None if self._remembered is None else self._remembered.find(scales, box)
        if known is not None:
            self._largest[scales].know(box, known)
        return known is not None

    def _waits(self, chunk: int) -> list[Copy]:
        """The copies that are made by scales which are not known before their blocks have been looked through."""
        return [copy for copy in self._copies.get(chunk, ()) if self._is_waiting(copy)]

    def _is_waiting(self, copy: Copy) -> bool:
        if copy.change is None or copy.change.scales not in self._largest:
            return False
        return not self._largest[copy.change.scales].is_known(_blocks(copy))

    def _read(self, reads: Sequence[WaveRead]) -> None:
        chunks = self._readers.mine()
        for chunk, then in reads:
            self._require_wanted()
            with chunk_elements(chunks, self._grid, self._array, chunk) as elements:
                self._look(chunk, elements)
                for copy in self._copies.get(chunk, ()):
                    if then == "convert" or not self._is_waiting(copy):
                        self._put(copy, part_of(elements, copy.source))
                if then == "keep":
                    self._kept[chunk] = [part_of(elements, copy.source).copy() for copy in self._waits(chunk)]

    def _look(self, chunk: int, elements: Elements) -> None:
        begins = [part.start for part in self._grid.chunk_box(chunk)]
        for scales, part in self._looked.get(chunk, ()):
            begin = tuple(start + inside.start for start, inside in zip(begins, part, strict=True))
            values = part_of(elements, part).view(DTYPES[self._grid.spec.dtype])
            for box, largest in largest_of_blocks(values, begin, scales):
                self._largest[scales].merge(box, largest)

    def _ready(self, kept: Sequence[int]) -> None:
        for chunk in kept:
            self._require_wanted()
            for copy, elements in zip(self._waits(chunk), self._kept.pop(chunk), strict=True):
                self._put(copy, elements)

    def _again(self, dropped: Sequence[int]) -> None:
        chunks = self._readers.mine()
        for chunk in dropped:
            self._require_wanted()
            with chunk_elements(chunks, self._grid, self._array, chunk) as elements:
                for copy in self._waits(chunk):
                    self._put(copy, part_of(elements, copy.source))

    def _require_wanted(self) -> None:
        require_wanted(self._cancelled, what=f"array {self._grid.spec.name!r}")

    def _put(self, copy: Copy, elements: Elements) -> None:
        scales = copy.change and copy.change.scales
        if copy.change is None or scales not in self._largest:
            put(copy, elements, self._slabs, self._saved)
            return
        put(copy, elements, self._slabs, {scales: self._largest[scales].table(_blocks(copy))})


def _blocks(copy: Copy) -> Box:
    """The blocks of which a copy needs the scales."""
    assert copy.change is not None
    assert copy.change.scales is not None
    box = tuple((at + part.start, at + part.stop) for at, part in zip(copy.change.low, copy.target, strict=True))
    return copy.change.scales.box(box)


def _waiting(copy: Copy) -> Waiting:
    assert copy.change is not None
    assert copy.change.scales is not None
    return Waiting(copy.change.scales, copy.source)


class _Largest:
    """The largest magnitude of each block that has been looked through so far, 0 before; thread-safe."""

    def __init__(self, scales: Scales, boxes: Sequence[Box], *, what: str) -> None:
        self._scales = scales
        self._what = what
        self._box = enclosing(boxes)
        self._values: Floats = np.zeros(shape_of(self._box), dtype=np.float32)
        self._is_known = np.zeros(self._values.shape, dtype=np.bool_)
        self._lock = threading.Lock()

    def know(self, box: Box, largest: Floats) -> None:
        """A box of blocks that need not be looked through."""
        self._values[self._place(box)] = largest
        self._is_known[self._place(box)] = True

    def is_known(self, box: Box) -> bool:
        return bool(self._is_known[self._place(box)].all())

    def of(self, box: Box) -> Floats:
        return self._values[self._place(box)]

    def merge(self, box: Box, largest: Floats) -> None:
        """What a part has of a box of blocks."""
        place = self._place(box)
        with self._lock:
            self._values[place] = np.maximum(self._values[place], largest)

    def table(self, box: Box) -> ScaleTable:
        """The scales of a box of blocks, which have been looked through."""
        values = scales_for(self._values[self._place(box)], self._scales.dtype, what=self._what)
        return ScaleTable(scales=self._scales, box=box, values=values)

    def _place(self, box: Box) -> tuple[slice, ...]:
        return slices_within(box, self._box)
