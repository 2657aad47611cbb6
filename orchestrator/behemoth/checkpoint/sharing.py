"""Which ranks hold which piece of an array, and which one of them writes each chunk of it.

Every rank computes the same answer from the layout alone. The owner rule (checkpoint.md): each holder writes its own
pieces; bytes that several ranks hold go to the least loaded of them, array after array in name order, chunk after
chunk, ties to the lowest rank. Nothing restarts per array. Neighbours: `grid` (chunks), `plan` (one rank's view).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter

import numpy as np

from behemoth.base.ids import Rank
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import Layout, SplitAxis
from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES, Axis, Mesh

SPAN_COST_BYTES = 4096
"""What a span weighs beyond its bytes when owners are chosen: a system call costs about as much as a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How one array is shared: `holders[p]` are the ranks that hold piece p, ascending; pieces count in C order of the
    coordinates on the spec's axes."""

    sizes: tuple[int, ...]
    piece_of_rank: Ints
    """The piece that each rank holds; -1 for none."""
    holders: Ints

    def coordinates(self, piece: int) -> tuple[int, ...]:
        """Coordinates of a piece on the spec's axes."""
        return tuple(int(index) for index in np.unravel_index(piece, self.sizes)) if self.sizes else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of ownership of an array: for each piece, the block's chunks that it meets."""

    first_chunk: Ints
    """First chunk of the block that piece p meets; units follow one another."""
    elements: Ints
    """[pieces, units]: elements of each unit, 0 where a piece has fewer units."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Kind:
    """Arrays of a layout that differ by name only: a model has thousands of arrays and some dozens of kinds, and what
    follows from shape and sharing is computed once for each. Not slotted: derived values are cached."""

    layout: Layout
    grid: Grid
    """Of the first of them; but for the name it is that of all."""
    positions: tuple[int, ...]
    """The arrays, counted in the layout's order."""

    @cached_property
    def sharing(self) -> Sharing:
        return _sharing(self.layout.mesh, self.grid.spec.axes, self.grid.spec.stage)

    @cached_property
    def units(self) -> Units:
        return _units(self.layout, self.grid, self.sharing.sizes)

    @cached_property
    def chunk_starts(self) -> Ints:
        """See `Grid.block_chunk_starts`."""
        return self.grid.block_chunk_starts()

    @property
    def has_choice(self) -> bool:
        """Whether a piece has several holders."""
        return bool(self.sharing.holders.shape[1] > 1)


@lru_cache(maxsize=16)
def kinds(layout: Layout) -> tuple[Kind, ...]:
    """All kinds, in the order of their first array."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for position, spec in enumerate(layout.arrays):
        key = (spec.shape, spec.itemsize, spec.dims, spec.flat_over, spec.stage)
        alike.setdefault(key, []).append(position)
    of = grids(layout)
    return tuple(Kind(layout=layout, grid=of[same[0]], positions=tuple(same)) for same in alike.values())


def flat_range(layout: Layout, grid: Grid, coordinates: tuple[int, ...]) -> tuple[int, int]:
    """First and last + 1 element, within its block, of the piece at `coordinates`; may be empty."""
    num_elements = math.prod(grid.block_shape)
    if grid.spec.flat_over is None:
        return 0, num_elements
    share = -(-num_elements // layout.axis_size(grid.spec.flat_over))
    start = min(coordinates[-1] * share, num_elements)
    return start, min(start + share, num_elements)


@lru_cache(maxsize=16)
def owners(layout: Layout) -> tuple[Ints | None, ...]:
    """For each kind, [its arrays, pieces, units]: the rank that writes the unit; None where pieces have one holder.

    O(chunks + arrays x world), once per layout.
    """
    loads = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    tables: list[Ints | None] = []
    places: dict[int, tuple[Kind, Ints, Ints]] = {}
    for kind in kinds(layout):
        weights = _weights(kind.grid, kind.units)
        if not kind.has_choice:  # it weighs before anything is chosen
            loads[kind.sharing.holders[:, 0]] += weights.sum(axis=1) * len(kind.positions)
            tables.append(None)
            continue
        table = np.empty((len(kind.positions), *weights.shape), dtype=np.int64)
        tables.append(table)
        places.update((position, (kind, weights, row)) for position, row in zip(kind.positions, table, strict=True))
    for _, (kind, weights, row) in sorted(places.items(), key=itemgetter(0)):
        _choose_least_loaded(loads, kind.sharing.holders, weights, row)
    return tuple(tables)


def _units(layout: Layout, grid: Grid, sizes: tuple[int, ...]) -> Units:
    """The units of every piece; pieces of one array differ only by their flat range. `sizes`: those of the axes."""
    starts = grid.block_chunk_starts()
    if grid.spec.flat_over is None:
        num_pieces = math.prod(sizes)
        elements = np.broadcast_to(np.diff(starts), (num_pieces, len(starts) - 1))
        return Units(first_chunk=np.zeros(num_pieces, dtype=np.int64), elements=elements)
    ranges = np.array([flat_range(layout, grid, (index,)) for index in range(sizes[-1])], dtype=np.int64)
    begin, end = ranges[:, :1], ranges[:, 1:]
    first = np.minimum(np.searchsorted(starts, begin[:, 0], side="right") - 1, len(starts) - 2)
    last = np.searchsorted(starts, end[:, 0], side="left")
    chunks = first[:, None] + np.arange(max(1, int((last - first).max())))
    upper, lower = np.minimum(chunks + 1, len(starts) - 1), np.minimum(chunks, len(starts) - 1)
    elements = np.maximum(np.minimum(end, starts[upper]) - np.maximum(begin, starts[lower]), 0)
    repeats = math.prod(sizes[:-1])
    return Units(first_chunk=np.tile(first, repeats), elements=np.tile(elements, (repeats, 1)))


def _weights(grid: Grid, of: Units) -> Ints:
    weights: Ints = of.elements * grid.spec.itemsize + np.where(of.elements > 0, SPAN_COST_BYTES, 0)
    return weights


def _choose_least_loaded(loads: Ints, holders: Ints, weights: Ints, chosen: Ints) -> None:
    """Fill `chosen` and add to `loads`, unit after unit, for all pieces at once: those of one array share no holder."""
    pieces = np.arange(len(holders))
    for unit in range(weights.shape[1]):
        chosen[:, unit] = holders[pieces, np.argmin(loads[holders], axis=1)]
        loads[chosen[:, unit]] += weights[:, unit]


@lru_cache(maxsize=256)
def _sharing(mesh: Mesh, axes: tuple[SplitAxis, ...], stage: int | None) -> Sharing:
    ranks = np.arange(mesh.num_ranks, dtype=np.int64)
    sizes = tuple(mesh.num_ranks if axis == "rank" else mesh.size(axis) for axis in axes)
    piece = np.zeros_like(ranks)
    for axis, size in zip(axes, sizes, strict=True):
        piece = piece * size + (ranks if axis == "rank" else _coordinates(mesh, axis))
    if stage is not None:
        piece = np.where(_coordinates(mesh, "pp") == stage, piece, -1)
    held = ranks[piece >= 0]
    by_piece = held[np.argsort(piece[held], kind="stable")]
    return Sharing(sizes=sizes, piece_of_rank=piece, holders=by_piece.reshape(math.prod(sizes), -1))


def _coordinates(mesh: Mesh, axis: Axis) -> Ints:
    """`mesh.coordinate` of every rank: neighbours on an axis lie as far apart as the axes inside it are large."""
    order = DENSE_AXES if axis in DENSE_AXES else EXPERT_AXES
    stride = math.prod(mesh.size(inner) for inner in order[: order.index(axis)])
    assert mesh.coordinate(Rank(mesh.num_ranks - 1), axis) == mesh.size(axis) - 1
    return np.arange(mesh.num_ranks, dtype=np.int64) // stride % mesh.size(axis)
