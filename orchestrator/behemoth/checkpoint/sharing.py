"""Which ranks hold which piece of an array, and which one of them writes each chunk of it.

Every rank computes the same answer from the layout alone. The owner rule (checkpoint.md): each holder writes its own
pieces; bytes that several ranks hold go to the least loaded of them, array after array in name order, chunk after
chunk, ties to the lowest rank. Nothing restarts per array. Neighbours: `grid` (chunks), `plan` (one rank's view).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from behemoth.base.ids import Rank
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import ArraySpec, Layout, SplitAxis
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


def sharing(layout: Layout, array: ArraySpec) -> Sharing:
    return _sharing(layout.mesh, array.axes, array.stage)


def flat_range(layout: Layout, grid: Grid, coordinates: tuple[int, ...]) -> tuple[int, int]:
    """First and last + 1 element, within its block, of the piece at `coordinates`; may be empty."""
    num_elements = math.prod(grid.block_shape)
    if grid.spec.flat_over is None:
        return 0, num_elements
    share = -(-num_elements // layout.axis_size(grid.spec.flat_over))
    start = min(coordinates[-1] * share, num_elements)
    return start, min(start + share, num_elements)


@lru_cache(maxsize=16)
def owners(layout: Layout) -> tuple[Ints, ...]:
    """For each array, [pieces, units]: the rank that writes the unit. O(chunks + arrays x world), once per layout."""
    loads = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    shared: list[int] = []
    table: dict[int, Ints] = {}
    # What has one holder has no choice; it weighs before anything is chosen.
    for position, grid in enumerate(grids(layout)):
        holders = sharing(layout, grid.spec).holders
        if holders.shape[1] > 1:
            shared.append(position)
            continue
        weights = _weights(grid, units(layout, grid))
        loads[holders[:, 0]] += weights.sum(axis=1)
        table[position] = np.broadcast_to(holders, weights.shape)
    for position in shared:
        grid = grids(layout)[position]
        table[position] = _least_loaded(loads, sharing(layout, grid.spec).holders, _weights(grid, units(layout, grid)))
    return tuple(table[position] for position in range(len(layout.arrays)))


def units(layout: Layout, grid: Grid) -> Units:
    """The units of every piece; pieces of one array differ only by their flat range."""
    starts = grid.block_chunk_starts()
    if grid.spec.flat_over is None:
        num_pieces = math.prod(sharing(layout, grid.spec).sizes)
        elements = np.broadcast_to(np.diff(starts), (num_pieces, len(starts) - 1))
        return Units(first_chunk=np.zeros(num_pieces, dtype=np.int64), elements=elements)
    sizes = sharing(layout, grid.spec).sizes
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


def _least_loaded(loads: Ints, holders: Ints, weights: Ints) -> Ints:
    """Chooses unit after unit, for all pieces at once: pieces of one array have no holder in common."""
    chosen = np.empty(weights.shape, dtype=np.int64)
    pieces = np.arange(len(holders))
    for unit in range(weights.shape[1]):
        chosen[:, unit] = holders[pieces, np.argmin(loads[holders], axis=1)]
        loads[chosen[:, unit]] += weights[:, unit]
    return chosen


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
