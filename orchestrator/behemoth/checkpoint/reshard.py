"""Which boxes of which saved chunks land where in a rank's arena, when the checkpoint lies on another layout.

Both sides are boxes of the same logical array: a chunk is one, and what a rank holds is some, each in its own C order.
So whatever mesh, cuts, packed dims or flat ranges either side has, they meet in boxes. Pure, for one rank, and in time
that follows the chunks which that rank meets, not those of the checkpoint; nothing is asked of other ranks.
Neighbours: `boxes` and `grid` (the geometry), `matching` (which array is which), `reshard_reader` (does it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from behemoth.checkpoint.boxes import Box, Interval, flat_boxes
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import Piece, RankPlan

Part = tuple[slice, ...]
"""A box within another one, per dim."""


class Slab(NamedTuple):
    """A box of the logical array that lies whole in the arena, in its own C order."""

    shape: tuple[int, ...]
    itemsize: int
    arena_offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


class Copy(NamedTuple):
    """A box that a chunk and a slab have in common, as either sees it. `slab` counts in the plan."""

    slab: int
    source: Part
    target: Part


class ChunkRead(NamedTuple):
    """A chunk of a saved array, counted in the saved layout's order, and all that is taken of it."""

    array: int
    chunk: int
    copies: list[Copy]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resharding:
    """One rank's reads, each chunk once, in the order of arrays and chunks; together they fill every slab."""

    slabs: tuple[Slab, ...]
    reads: tuple[ChunkRead, ...]
    blanks: tuple[Interval, ...]
    """Bytes of the arena that the checkpoint has nothing for."""


def plan_resharding(saved: Layout, plan: RankPlan, positions: Sequence[int | None]) -> Resharding:
    """`positions`: of each array of the plan's layout in `saved`, as `matching` tells them. O(chunks that are met)."""
    of_saved = grids(saved)
    known: dict[object, tuple[_Meeting, ...]] = {}
    slabs: list[Slab] = []
    blanks: list[Interval] = []
    taken: dict[tuple[int, int], list[Copy]] = {}
    for piece in plan.pieces:
        position = positions[piece.array]
        if position is None:
            blanks.append((piece.arena_offset, piece.arena_offset + piece.nbytes))
            continue
        grid = of_saved[position]
        arena_offset = piece.arena_offset
        for meeting in _meetings(grid, piece, known):
            slab = Slab(meeting.shape, grid.spec.itemsize, arena_offset)
            for chunk, source, target in meeting.commons:
                taken.setdefault((position, chunk), []).append(Copy(len(slabs), source, target))
            slabs.append(slab)
            arena_offset += slab.nbytes
    reads = [ChunkRead(array, chunk, copies) for (array, chunk), copies in sorted(taken.items())]
    return Resharding(slabs=tuple(slabs), reads=tuple(reads), blanks=tuple(blanks))


def plan_box(grid: Grid, array: int, box: Box) -> Resharding:
    """Of one box of a saved array, counted in the saved layout's order, that begins with the area's first byte."""
    meeting = _meeting(grid, box)
    reads = [ChunkRead(array, chunk, [Copy(0, source, target)]) for chunk, source, target in meeting.commons]
    return Resharding(slabs=(Slab(meeting.shape, grid.spec.itemsize, 0),), reads=tuple(reads), blanks=())


class _Meeting(NamedTuple):
    """A slab of a piece, and what it has in common with each chunk that it meets."""

    shape: tuple[int, ...]
    commons: list[tuple[int, Part, Part]]


def _meetings(grid: Grid, piece: Piece, known: dict[object, tuple[_Meeting, ...]]) -> tuple[_Meeting, ...]:
    """Computed once for all arrays that are cut alike: a model has thousands, of some dozens of kinds."""
    key = (grid.chunk_shape, grid.chunks_per_dim, piece.box, piece.flat)
    if key not in known:
        known[key] = tuple(_meeting(grid, box) for box in flat_boxes(piece.box, piece.flat))
    return known[key]


def _meeting(grid: Grid, box: Box) -> _Meeting:
    sources, targets = [], []
    for (low, high), size in zip(box, grid.chunk_shape, strict=True):
        begins = [(begin, max(begin, low), min(begin + size, high)) for begin in _begins(low, high, size)]
        sources.append([slice(start - begin, stop - begin) for begin, start, stop in begins])
        targets.append([slice(start - low, stop - low) for _, start, stop in begins])
    commons = list(zip(_chunks(grid, box), product(*sources), product(*targets), strict=True))
    return _Meeting(tuple(high - low for low, high in box), commons)


def _chunks(grid: Grid, box: Box) -> list[int]:
    """The numbers of the chunks that a box meets, in C order of their grid."""
    weights = [math.prod(grid.chunks_per_dim[dim + 1 :]) for dim in range(len(box))]
    numbers = [
        [begin // size * weight for begin in _begins(low, high, size)]
        for (low, high), size, weight in zip(box, grid.chunk_shape, weights, strict=True)
    ]
    return [sum(one) for one in product(*numbers)]


def _begins(low: int, high: int, size: int) -> range:
    """Where the chunks of `size` begin that meet [low, high)."""
    return range(low - low % size, high, size)
