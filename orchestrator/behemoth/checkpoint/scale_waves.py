"""The order in which the chunks of an array are read when it is converted by scales computed from it. Pure.

A value can be converted once its whole block has been searched, and a block may lie in several chunks. Values that were
read before that are kept, so that chunks are read once; those for which there is no memory are read again. Chunks that
share blocks are read one after another, so that little has to wait. Neighbours: `scaled_reader` (does it),
`scale_reads` (counts it), `reshard` (says what is wanted).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from behemoth.checkpoint.box import Box, enclosing, num_elements
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.reshard import Slices

RANK_KEPT_BYTES = 2 << 30
"""Most bytes of saved values that a rank keeps while they wait for their scales; allocated only as needed. Blocks of
128 x 128 need some chunks; one scale for a matrix needs what the rank holds of it, 1.6 GiB for a whole expert matrix of
the reference Behemoth in bfloat16. Of what is larger it keeps as much as fits."""
NODE_KEPT_BYTES = 16 << 30
"""The same for all ranks of a node together, which restore at once."""

_Place = tuple[int, ...]
"""A chunk's position in the order in which chunks are read; compares as a tuple."""


class Waiting(NamedTuple):
    """A part of a chunk that is converted by scales that are computed."""

    scales: Scales
    part: Slices


class WaveRead(NamedTuple):
    """A chunk that is read and looked through. Then what waits in it is converted, since its blocks lie in no other
    chunk, or it is kept, or dropped, to be read again."""

    chunk: int
    then: Literal["convert", "keep", "drop"]


class Wave(NamedTuple):
    """Chunks that are read in any order, and behind that those, of this wave and former ones, whose blocks have then
    been looked through: `ready` of what is kept, and `again` of what was dropped."""

    reads: list[WaveRead]
    ready: list[int]
    again: list[int]


def kept_share(ranks_per_node: int) -> int:
    """The bytes that one rank of such a node may keep. An equal share, not what others leave: so it follows from the
    layout alone which chunks are read again."""
    return min(RANK_KEPT_BYTES, NODE_KEPT_BYTES // ranks_per_node)


def plan_waves(
    grid: Grid, chunks: Iterable[int], waiting: Mapping[int, Sequence[Waiting]], *, kept_bytes: int
) -> list[Wave]:
    """The waves in which a rank reads `chunks` of one array. `waiting`: by chunk, the parts that it converts by scales
    computed from the same array; `chunks` must contain every chunk of their blocks. At most `kept_bytes` are kept at a
    time."""
    straddled = straddled_dims(grid, {one.scales for some in waiting.values() for one in some})
    if not straddled:
        return [Wave([WaveRead(chunk, "convert") for chunk in sorted(chunks)], [], [])]
    ordered = sorted((_place(_indexes(grid, chunk), straddled), chunk) for chunk in chunks)
    draft = _Draft(kept_bytes)
    for place, chunk in ordered:
        parts = waiting.get(chunk, ())
        last = max((_place(_last_met(grid, chunk, one), straddled) for one in parts), default=place)
        is_alone = last == place and all(_first_met(grid, chunk, one) == _indexes(grid, chunk) for one in parts)
        num_bytes = 0 if is_alone else sum(_num_bytes(grid, one.part) for one in parts)
        draft.read(chunk, place, last, num_bytes)
    return draft.done()


def waiting_bytes(grid: Grid, values: Sequence[tuple[Scales, Box]]) -> int:
    """How many bytes at most wait for their scales when a rank converts these boxes by computed ones: a short answer,
    without waves. Who may keep as much reads nothing again."""
    if not straddled_dims(grid, {scales for scales, _ in values}):
        return 0
    return sum(grid.spec.itemsize * num_elements(box) for _, box in values)


def outermost(boxes: Iterable[Box]) -> list[Box]:
    """Those that lie in no other one."""
    alone = list(dict.fromkeys(boxes))
    return [box for box in alone if not any(other != box and enclosing([box, other]) == other for other in alone)]


class _Draft:
    """Waves while they are made, chunk by chunk."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waves: list[Wave] = []
        self._wave = Wave([], [], [])
        self._waits: list[tuple[_Place, int, int]] = []
        """A heap: the place behind which a chunk is ready, the chunk, and what is kept of it."""
        self._kept_bytes = 0
        self._ready_bytes = 0

    def read(self, chunk: int, place: _Place, last: _Place, num_bytes: int) -> None:
        """The next chunk; `num_bytes` of it wait until that at `last` has been read."""
        if not num_bytes:
            self._wave.reads.append(WaveRead(chunk, "convert"))
        else:
            if self._kept_bytes + num_bytes > self._limit_bytes >= self._kept_bytes + num_bytes - self._ready_bytes:
                self._close()
            is_kept = self._kept_bytes + num_bytes <= self._limit_bytes
            self._wave.reads.append(WaveRead(chunk, "keep" if is_kept else "drop"))
            self._kept_bytes += num_bytes * is_kept
            heapq.heappush(self._waits, (last, chunk, num_bytes * is_kept))
        while self._waits and self._waits[0][0] <= place:
            _, ready, ready_bytes = heapq.heappop(self._waits)
            (self._wave.ready if ready_bytes else self._wave.again).append(ready)
            self._ready_bytes += ready_bytes

    def done(self) -> list[Wave]:
        assert not self._waits, "a block lies in a chunk that is not read"
        self._close()
        return self._waves

    def _close(self) -> None:
        if self._wave.reads:
            self._waves.append(self._wave)
        self._wave = Wave([], [], [])
        self._kept_bytes -= self._ready_bytes
        self._ready_bytes = 0


def straddled_dims(grid: Grid, scales: Iterable[Scales]) -> tuple[int, ...]:
    """The dims in which a block may lie in several chunks; without any, each chunk is converted as it is read."""
    blocks = {one.block for one in scales}
    return tuple(
        dim
        for dim, (size, num) in enumerate(zip(grid.chunk_shape, grid.chunks_per_dim, strict=True))
        if num > 1 and any(size % block[dim] for block in blocks)
    )


def _place(indexes: _Place, straddled: tuple[int, ...]) -> _Place:
    """Dims in which blocks straddle chunks count last: what shares blocks is read one behind the other."""
    before = [index for dim, index in enumerate(indexes) if dim not in straddled]
    return (*before, *(indexes[dim] for dim in straddled))


def _indexes(grid: Grid, chunk: int) -> _Place:
    """The indexes of a chunk in the grid of chunks."""
    return tuple(part.start // size for part, size in zip(grid.chunk_box(chunk), grid.chunk_shape, strict=True))


def _first_met(grid: Grid, chunk: int, one: Waiting) -> _Place:
    """The first chunk, per dim, that the blocks of a part of a chunk meet."""
    return tuple(
        (within.start + part.start) // per_scale * per_scale // size
        for within, part, per_scale, size in zip(
            grid.chunk_box(chunk), one.part, one.scales.block, grid.chunk_shape, strict=True
        )
    )


def _last_met(grid: Grid, chunk: int, one: Waiting) -> _Place:
    """The last one."""
    return tuple(
        (min(-(-(within.start + part.stop) // per_scale) * per_scale, full) - 1) // size
        for within, part, per_scale, size, full in zip(
            grid.chunk_box(chunk), one.part, one.scales.block, grid.chunk_shape, grid.spec.shape, strict=True
        )
    )


def _num_bytes(grid: Grid, part: Slices) -> int:
    count: int = math.prod(one.stop - one.start for one in part)
    return grid.spec.itemsize * count
