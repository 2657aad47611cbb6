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
from typing import NamedTuple

import numpy as np

from behemoth.base.ids import Rank
from behemoth.checkpoint.box import Interval
from behemoth.checkpoint.grid import Grid, Ints, Meeting, grids
from behemoth.checkpoint.layout import Layout, SplitAxes, axis_size
from behemoth.checkpoint.local_boxes import LocalBox, flat_range, local_boxes, local_shape, shares_of, within
from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES, Axes, Axis, Mesh, each_axis

_NOTHING = np.zeros(0, dtype=np.int64)
SPAN_COST_BYTES = 4096
"""What each span adds to its bytes when owners are chosen: a system call costs about as much as writing a page."""


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


class SharePart(NamedTuple):
    """The elements `flat` of a box, in the box's own C order, with the chunks that they meet."""

    held: LocalBox
    flat: Interval
    meeting: Meeting


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A piece of any array of one kind: what a rank holds of it."""

    local_shape: tuple[int, ...]
    """Shape of the whole local array, of which the rank holds elements `flat`."""
    flat: Interval
    parts: tuple[SharePart, ...]
    """In the order of the boxes; what is empty is left out."""

    @property
    def num_elements(self) -> int:
        return self.flat[1] - self.flat[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Kind:
    """Arrays of a layout that differ by name only: a model has thousands of arrays and some dozens of kinds, and what
    follows from shape and sharing is computed once for each. Not slotted: derived values are cached."""

    layout: Layout
    grid: Grid
    """The grid of the first of them; the others differ in the name only."""
    positions: tuple[int, ...]
    """The arrays, counted in the layout's order."""

    @cached_property
    def sharing(self) -> Sharing:
        return _sharing(self.layout.mesh, self.grid.spec.axes, self.grid.spec.stage)

    def share(self, piece: int) -> Share:
        """Computed anew each time; O(chunks that the piece meets)."""
        spec, sizes, coordinates = self.grid.spec, self.sharing.sizes, self.sharing.coordinates(piece)
        shape = local_shape(spec, sizes, coordinates)
        flat = (0, math.prod(shape))
        if spec.flat_over is not None:
            flat = flat_range(spec, shape, sizes[-1], coordinates[-1])
        parts = []
        for held in local_boxes(spec, sizes, coordinates):
            common = within(held, shape, flat)
            if common[0] < common[1]:
                parts.append(SharePart(held, common, self.grid.meeting(held.box, common)))
        return Share(local_shape=shape, flat=flat, parts=tuple(parts))

    @cached_property
    def unit_bytes(self) -> Ints:
        """[pieces, units]: bytes of each unit; 0 where a piece has fewer units."""
        shares = [self.share(piece) for piece in range(len(self.sharing.holders))]
        elements = [np.concatenate([part.meeting.elements for part in share.parts] or [_NOTHING]) for share in shares]
        table = np.zeros((len(elements), max(map(len, elements))), dtype=np.int64)
        for row, counts in zip(table, elements, strict=True):
            row[: len(counts)] = counts * self.grid.spec.itemsize
        return table

    @property
    def has_choice(self) -> bool:
        """Whether a piece has several holders."""
        return bool(self.sharing.holders.shape[1] > 1)


@lru_cache(maxsize=16)
def kinds(layout: Layout) -> tuple[Kind, ...]:
    """All kinds, in the order of their first array."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for position, spec in enumerate(layout.arrays):
        flat = (spec.flat_over, spec.flat_rows, spec.flat_bucket)
        key = (spec.shape, spec.itemsize, spec.dims, spec.packed, spec.padded, flat, spec.stage)
        alike.setdefault(key, []).append(position)
    of = grids(layout)
    return tuple(Kind(layout=layout, grid=of[same[0]], positions=tuple(same)) for same in alike.values())


@lru_cache(maxsize=16)
def owners(layout: Layout) -> tuple[Ints | None, ...]:
    """For each kind, [its arrays, pieces, units]: the rank that writes the unit; None where pieces have one holder. The
    units of a piece are the chunks that its parts meet, in their order.

    O(chunks + arrays x world), once per layout.
    """
    loads = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    tables: list[Ints | None] = []
    places: dict[int, tuple[Kind, Ints, Ints]] = {}
    for kind in kinds(layout):
        if not kind.has_choice:  # it weighs before anything is chosen
            loads[kind.sharing.holders[:, 0]] += bytes_of_pieces(kind) * len(kind.positions)
            tables.append(None)
            continue
        weights = _weights(kind)
        table = np.empty((len(kind.positions), *weights.shape), dtype=np.int64)
        tables.append(table)
        places.update((position, (kind, weights, row)) for position, row in zip(kind.positions, table, strict=True))
    for _, (kind, weights, row) in sorted(places.items(), key=itemgetter(0)):
        _choose_least_loaded(loads, kind.sharing.holders, weights, row)
    return tuple(tables)


def bytes_of_pieces(kind: Kind) -> Ints:
    """Bytes of each piece, for all at once: there may be as many as ranks."""
    spec, sizes = kind.grid.spec, kind.sharing.sizes
    shape: list[Ints] = [np.full((1,) * len(spec.dims), size, dtype=np.int64) for size in spec.shape]
    for at, ((dim, _), num) in enumerate(zip(spec.dims, sizes, strict=False)):
        shares = np.array([shares_of(spec, dim, num, index) for index in range(num)], dtype=np.int64)
        lengths = (shares[..., 1] - shares[..., 0]).sum(axis=1)
        shape[dim] = lengths.reshape([num if axis == at else 1 for axis in range(len(spec.dims))])
    elements: Ints = np.ones((1,) * len(spec.dims), dtype=np.int64)
    for lengths in shape:
        elements = elements * lengths
    if spec.flat_over is not None:
        unit = elements // np.maximum(shape[0], 1) if spec.flat_rows else np.ones_like(elements)
        count = (shape[0] if spec.flat_rows else elements)[..., None]
        begin, total = (0, count) if spec.flat_bucket is None else spec.flat_bucket
        share = -(-total // sizes[-1])
        start = np.arange(sizes[-1]) * share - begin
        elements = (np.clip(start + share, 0, count) - np.clip(start, 0, count)) * unit[..., None]
    return np.broadcast_to(elements, sizes).reshape(-1) * spec.itemsize


def _weights(kind: Kind) -> Ints:
    """[pieces, units]: what each unit weighs when owners are chosen."""
    return np.where(kind.unit_bytes > 0, kind.unit_bytes + SPAN_COST_BYTES, 0)


def _choose_least_loaded(loads: Ints, holders: Ints, weights: Ints, chosen: Ints) -> None:
    """Fill `chosen` and add to `loads`, unit after unit, for all pieces at once: those of one array share no holder."""
    pieces = np.arange(len(holders))
    for unit in range(weights.shape[1]):
        chosen[:, unit] = holders[pieces, np.argmin(loads[holders], axis=1)]
        loads[chosen[:, unit]] += weights[:, unit]


@lru_cache(maxsize=256)
def _sharing(mesh: Mesh, axes: tuple[SplitAxes, ...], stage: int | None) -> Sharing:
    ranks = np.arange(mesh.num_ranks, dtype=np.int64)
    sizes = tuple(axis_size(mesh, axis) for axis in axes)
    piece = np.zeros_like(ranks)
    for axis, size in zip(axes, sizes, strict=True):
        piece = piece * size + (ranks if axis == "rank" else _places(mesh, axis))
    if stage is not None:
        piece = np.where(_coordinates(mesh, "pp") == stage, piece, -1)
    held = ranks[piece >= 0]
    by_piece = held[np.argsort(piece[held], kind="stable")]
    return Sharing(sizes=sizes, piece_of_rank=piece, holders=by_piece.reshape(math.prod(sizes), -1))


def _places(mesh: Mesh, axes: Axes) -> Ints:
    """`mesh.coordinate` of every rank."""
    place = np.zeros(mesh.num_ranks, dtype=np.int64)
    for axis in reversed(each_axis(axes)):
        place = place * mesh.size(axis) + _coordinates(mesh, axis)
    return place


def _coordinates(mesh: Mesh, axis: Axis) -> Ints:
    """The same on one axis: neighbours on an axis lie as far apart as the axes inside it are large."""
    order = DENSE_AXES if axis in DENSE_AXES else EXPERT_AXES
    stride = math.prod(mesh.size(inner) for inner in order[: order.index(axis)])
    assert mesh.coordinate(Rank(mesh.num_ranks - 1), axis) == mesh.size(axis) - 1
    return np.arange(mesh.num_ranks, dtype=np.int64) // stride % mesh.size(axis)
