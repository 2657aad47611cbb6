"""Which boxes of which saved chunks land where in a rank's arena, when the checkpoint lies on another layout.

Both sides are boxes of the same logical array: a chunk is one, and what a rank holds is some, each in its own C order.
So whatever mesh, cuts, packed dims or flat ranges either side has, they meet in boxes. Pure, for one rank, and in time
that follows the chunks which that rank meets, not those of the checkpoint; nothing is asked of other ranks.
Neighbours: `local_boxes` and `grid` (the geometry), `matching` (which array is which), `changes` (what is computed on
the way), `reshard_reader` (does it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple, Protocol

from behemoth.checkpoint.box import Box, Interval, flat_boxes, moved, shape_of
from behemoth.checkpoint.changes import Change, Scales
from behemoth.checkpoint.conversion import Cast, Conversion, ScaledDown, ScaledUp, ScalesOf, value_names
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.plan import RankPlan

Slices = tuple[slice, ...]
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
    """A box that a chunk and a slab have in common, as either sees it. `slab` counts in the plan. Without a change the
    elements are moved as they are."""

    slab: int
    source: Slices
    target: Slices
    change: Change | None = None


class ChunkRead(NamedTuple):
    """A chunk of a saved array, counted in the saved layout's order, and all that is taken of it."""

    array: int
    chunk: int
    copies: list[Copy]


class ScaleFill(NamedTuple):
    """A slab, counted in the plan, that holds the scales of a box of blocks."""

    slab: int
    scales: Scales
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Resharding:
    """One rank's reads, each chunk once, in the order of arrays and chunks; together with `fills` they fill every
    slab."""

    slabs: tuple[Slab, ...]
    reads: tuple[ChunkRead, ...]
    blanks: tuple[Interval, ...] = ()
    """Byte ranges of the arena for which the checkpoint has no data."""
    scales: Mapping[Scales, tuple[Box, ...]] = field(default_factory=dict)
    """The scales that must be known before the conversion, and for which boxes of blocks. Several boxes, because of a
    packed dim a rank holds several parts."""
    fills: tuple[ScaleFill, ...] = ()


class Wanted(Protocol):
    """Elements `flat` of a box of an array, and their offset in the arena. `plan.Piece` implements it."""

    @property
    def array(self) -> int: ...

    @property
    def box(self) -> Box: ...

    @property
    def flat(self) -> Interval: ...

    @property
    def arena_offset(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


def plan_resharding(saved: Layout, layout: Layout, plan: RankPlan, found: Sequence[Origin]) -> Resharding:
    """`found`: where each array of `layout`, the plan's own, comes from, as `matching.origins` tells. O(chunks that are
    met)."""
    return plan_pieces(saved, layout, plan.pieces, found)


def plan_pieces(saved: Layout, layout: Layout, pieces: Iterable[Wanted], found: Sequence[Origin]) -> Resharding:
    """As `plan_resharding`, for any pieces, such as those of a batch of `ckpt reshard`."""
    draft = _Draft(saved)
    for piece in pieces:
        origin = found[piece.array]
        if origin is None:
            draft.blanks.append((piece.arena_offset, piece.arena_offset + piece.nbytes))
        elif isinstance(origin, int):
            draft.copy(piece, origin)
        else:
            draft.convert(piece, layout.arrays[piece.array], origin)
    return draft.done()


def plan_box(grid: Grid, array: int, box: Box) -> Resharding:
    """The plan for one box of the saved array at position `array`, as the only slab, from byte 0 of the area on."""
    slab = Slab(shape_of(box), grid.spec.itemsize, 0)
    return Resharding(slabs=(slab,), reads=tuple(plan_boxes(grid, array, [box])))


def plan_boxes(grid: Grid, array: int, boxes: Sequence[Box]) -> list[ChunkRead]:
    """The chunks of a saved array that boxes meet, each once, with what they have in common; `slab` is the box's
    number."""
    taken: dict[int, list[Copy]] = {}
    for number, box in enumerate(boxes):
        for chunk, source, target in _meeting(grid, box).commons:
            taken.setdefault(chunk, []).append(Copy(number, source, target))
    return [ChunkRead(array, chunk, copies) for chunk, copies in sorted(taken.items())]


def scales_of(saved: Layout, wanted: ArraySpec, origin: Origin) -> Scales | None:
    """Which scales must be known to make `wanted` of what it comes from."""
    match origin:
        case ScalesOf(array=array, block=block, dtype=dtype):
            return Scales(saved.positions[array], block, dtype)
        case ScaledDown(array=array, block=block, scales=None):
            return Scales(saved.positions[array], block, wanted.dtype)
        case (
            ScaledDown(array=array, block=block, scales=str(scales)) | ScaledUp(array=array, block=block, scales=scales)
        ):
            return Scales(saved.positions[array], block, "", saved.positions[scales])
        case _:
            return None


def blocks_needed(scales: Scales, box: Box, *, holds_them: bool) -> Box:
    """The blocks of which a rank must know the scales, for a box of the scales that it holds, or of the values."""
    if not holds_them:
        return scales.box(box)
    has_dims = len(box) == len(scales.block)  # else it is one scale for all, in a shape of its own
    return box if has_dims else ((0, 1),) * len(scales.block)


def chunks_met(chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...], boxes: Iterable[Box]) -> set[int]:
    """The numbers of the chunks that boxes meet."""
    return {chunk for box in boxes for chunk in _chunks(chunk_shape, chunks_per_dim, box)}


class _Draft:
    """A plan while it is made."""

    def __init__(self, saved: Layout) -> None:
        self._saved = saved
        self._grids = grids(saved)
        self._known: dict[object, tuple[_Meeting, ...]] = {}
        self._slabs: list[Slab] = []
        self._taken: dict[tuple[int, int], list[Copy]] = {}
        self._scales: dict[Scales, dict[Box, None]] = {}
        self._fills: list[ScaleFill] = []
        self.blanks: list[Interval] = []

    def done(self) -> Resharding:
        reads = [ChunkRead(array, chunk, copies) for (array, chunk), copies in sorted(self._taken.items())]
        return Resharding(
            slabs=tuple(self._slabs),
            reads=tuple(reads),
            blanks=tuple(self.blanks),
            scales={scales: tuple(boxes) for scales, boxes in self._scales.items()},
            fills=tuple(self._fills),
        )

    def copy(self, piece: Wanted, position: int) -> None:
        """The array at this position of the checkpoint, as it is."""
        grid = self._grids[position]
        arena_offset = piece.arena_offset
        for meeting in _meetings(grid, piece, self._known):
            slab = self._new_slab(meeting.shape, grid.spec.itemsize, arena_offset)
            self._take(position, slab, meeting, None)
            arena_offset += self._slabs[slab].nbytes

    def convert(self, piece: Wanted, wanted: ArraySpec, conversion: Conversion) -> None:
        arena_offset = piece.arena_offset
        for box in flat_boxes(piece.box, piece.flat):
            slab = self._new_slab(shape_of(box), wanted.itemsize, arena_offset)
            arena_offset += self._slabs[slab].nbytes
            scales = scales_of(self._saved, wanted, conversion)
            if scales is not None:
                blocks = blocks_needed(scales, box, holds_them=isinstance(conversion, ScalesOf))
                self._scales.setdefault(scales, {})[blocks] = None
                if isinstance(conversion, ScalesOf):
                    self._fills.append(ScaleFill(slab, scales, blocks))
                    continue
            for position in (self._saved.positions[name] for name in value_names(conversion)):
                change = _change(conversion, self._saved.arrays[position], wanted, box, scales)
                self._take(position, slab, _meeting(self._grids[position], _saved_box(box, conversion)), change)

    def _new_slab(self, shape: tuple[int, ...], itemsize: int, arena_offset: int) -> int:
        self._slabs.append(Slab(shape, itemsize, arena_offset))
        return len(self._slabs) - 1

    def _take(self, position: int, slab: int, meeting: _Meeting, change: Change | None) -> None:
        for chunk, source, target in meeting.commons:
            self._taken.setdefault((position, chunk), []).append(Copy(slab, source, target, change))


def _change(
    conversion: Conversion, saved: ArraySpec, wanted: ArraySpec, box: Box, scales: Scales | None
) -> Change | None:
    """None where elements stay as they are."""
    if isinstance(conversion, Cast) and saved.dtype == wanted.dtype:
        return None
    return Change(
        conversion=conversion,
        part=saved.name,
        source=saved.dtype,
        target=wanted.dtype,
        low=tuple(low for low, _ in box),
        scales=scales,
    )


def _saved_box(box: Box, conversion: Conversion) -> Box:
    """Where a box of the wanted array lies in the saved one."""
    return moved(box, conversion.begin) if isinstance(conversion, Cast) else box


class _Meeting(NamedTuple):
    """A slab of a piece, and what it has in common with each chunk that it meets."""

    shape: tuple[int, ...]
    commons: list[tuple[int, Slices, Slices]]


def _meetings(grid: Grid, piece: Wanted, known: dict[object, tuple[_Meeting, ...]]) -> tuple[_Meeting, ...]:
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
    commons = list(
        zip(_chunks(grid.chunk_shape, grid.chunks_per_dim, box), product(*sources), product(*targets), strict=True)
    )
    return _Meeting(shape_of(box), commons)


def _chunks(chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...], box: Box) -> list[int]:
    """The numbers of the chunks that a box meets, in C order of their grid."""
    weights = [math.prod(chunks_per_dim[dim + 1 :]) for dim in range(len(box))]
    numbers = [
        [begin // size * weight for begin in _begins(low, high, size)]
        for (low, high), size, weight in zip(box, chunk_shape, weights, strict=True)
    ]
    return [sum(one) for one in product(*numbers)]


def _begins(low: int, high: int, size: int) -> range:
    """Where the chunks of `size` begin that meet [low, high)."""
    return range(low - low % size, high, size)
