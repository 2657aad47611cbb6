"""How many bytes a restore on another layout reads from the store, compared with those that it needs. Pure.

A CRC covers a chunk, so a chunk is read whole however little of it is needed. Two ways to count: each chunk once for
the whole fleet, whose ranks pass it on to each other, and each rank for itself, as `reader` does. Neighbours:
`reshard`, which says what one rank reads, and `loads`, which counts writes in the same columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.box import Box, moved, num_elements
from behemoth.checkpoint.conversion import Cast, ScaledDown, ScaledUp, ScalesOf, value_names
from behemoth.checkpoint.grid import Grid, Ints, cuts_of, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import Cell, cells, num_flat
from behemoth.checkpoint.local_boxes import piece_bounds
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.reshard import chunks_met
from behemoth.checkpoint.scale_reads import again_bytes, looked_through, scale_bytes
from behemoth.checkpoint.scale_waves import RANK_KEPT_BYTES
from behemoth.checkpoint.sharing import Kind, bytes_of_pieces, kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class OverRead:
    """Bytes of the arrays that are restored, CRCs counted as read.

    `needed_bytes` counts each logical byte once, and `once_bytes` what the fleet reads when each chunk is read once:
    again where a rank cannot keep values until their scales are computed (`scale_waves`).
    `held_bytes` and `alone_bytes` are sums over the ranks that were asked about: what they hold, and what they read
    when each reads for itself, for scales too. Where arrays are converted, bytes are those of the saved arrays, and of
    each wanted one by itself: a chunk of which a rank makes two arrays, or that it takes and finds scales in, counts
    twice in these sums.
    """

    needed_bytes: int
    once_bytes: int
    held_bytes: int
    alone_bytes: int
    worst_alone: float
    """The most that one of these ranks reads for each byte that it holds."""

    @property
    def once(self) -> float:
        """Over-read of the fleet (checkpoint.md's goal: at most 1.1)."""
        return _ratio(self.once_bytes, self.needed_bytes)

    @property
    def alone(self) -> float:
        """Over-read of ranks that read for themselves: bytes read / bytes held, over all of them together."""
        return _ratio(self.alone_bytes, self.held_bytes)

    @property
    def fleet_alone(self) -> float:
        """Over-read of a fleet whose ranks read for themselves, each replica too; of all ranks only."""
        return _ratio(self.alone_bytes, self.needed_bytes)


def over_read(
    saved: Layout,
    layout: Layout,
    found: Sequence[Origin],
    *,
    ranks: Sequence[int] | None = None,
    kept_bytes: int = RANK_KEPT_BYTES,
) -> OverRead:
    """The over-read of a restore on `layout` from a checkpoint of layout `saved`; `found`: from `matching.origins`.

    `ranks` are those to count for the ranks' own figures, by default all; `kept_bytes` is what a rank may keep of
    values that wait for scales (`scale_waves.kept_share`). O(chunks that pieces meet), in columns: a second for 32,000
    ranks of the reference Behemoth.
    """
    of_saved = grids(saved)
    chosen = np.arange(layout.mesh.num_ranks) if ranks is None else np.array(ranks, dtype=np.int64)
    held, alone = np.zeros((2, len(chosen)), dtype=np.int64)
    of_arrays = [sources(saved, origin) for origin in found]
    for kind in kinds(layout):
        pieces = kind.sharing.piece_of_rank[chosen]
        holds = pieces >= 0
        elements = bytes_of_pieces(kind) // kind.grid.spec.itemsize
        for grid, source, num_arrays in _saved_grids(kind, of_saved, of_arrays):
            held[holds] += num_arrays * grid.spec.itemsize * elements[pieces[holds]]
            if not source.is_looked_through:  # `scale_bytes` counts the others
                alone[holds] += num_arrays * grid.stored_bytes * _num_met(kind, grid, source.begin)[pieces[holds]]
    alone += scale_bytes(saved, layout, found, chosen, kept_bytes=kept_bytes)
    needed_bytes, once_bytes = _of_fleet(saved, layout, found, of_arrays)
    once_bytes += again_bytes(saved, layout, found, kept_bytes=kept_bytes)
    return OverRead(
        needed_bytes=needed_bytes,
        once_bytes=once_bytes,
        held_bytes=int(held.sum()),
        alone_bytes=int(alone.sum()),
        worst_alone=_worst(held, alone),
    )


class ArraySource(NamedTuple):
    """A saved array whose elements a wanted one takes, where in it the wanted one begins (no index: it is whole), and
    whether it converts them as it looks through them for scales."""

    position: int
    begin: tuple[int, ...] = ()
    is_looked_through: bool = False


def sources(saved: Layout, origin: Origin) -> tuple[ArraySource, ...]:
    """The saved arrays whose elements an array takes; scales come on top."""
    match origin:
        case None | ScalesOf():
            return ()
        case int():
            return (ArraySource(origin),)
        case ScaledDown(array=array, scales=None):
            return (ArraySource(saved.positions[array], is_looked_through=True),)
        case Cast(array=array, begin=begin):
            return (ArraySource(saved.positions[array], begin),)
        case _:
            return tuple(ArraySource(saved.positions[name]) for name in value_names(origin))


def _of_fleet(
    saved: Layout, layout: Layout, found: Sequence[Origin], of_arrays: Sequence[Sequence[ArraySource]]
) -> tuple[int, int]:
    """Bytes that are needed, and that the fleet reads when those who read a chunk at a time share it, but for what is
    read again."""
    whole = {one.position for some in of_arrays for one in some if not one.begin}
    whole |= looked_through(saved, layout, found)
    whole |= {position for origin in found for position in _saved_scales(saved, origin)}
    of_saved = grids(saved)
    needed_bytes = sum(of_saved[position].spec.num_bytes for position in whole)
    once_bytes = sum(of_saved[position].num_chunks * of_saved[position].stored_bytes for position in whole)
    boxes: dict[int, list[Box]] = {}
    for array, some in zip(layout.arrays, of_arrays, strict=True):
        for one in some:
            if one.begin and one.position not in whole:
                box = tuple((low, low + size) for low, size in zip(one.begin, array.shape, strict=True))
                boxes.setdefault(one.position, []).append(box)
    for position, of_array in boxes.items():
        grid = of_saved[position]
        needed_bytes += sum(num_elements(box) for box in of_array) * grid.spec.itemsize
        once_bytes += len(chunks_met(grid.chunk_shape, grid.chunks_per_dim, of_array)) * grid.stored_bytes
    return needed_bytes, once_bytes


def _saved_scales(saved: Layout, origin: Origin) -> tuple[int, ...]:
    match origin:
        case ScaledDown(scales=str(scales)) | ScaledUp(scales=scales):
            return (saved.positions[scales],)
        case _:
            return ()


def _saved_grids(
    kind: Kind, of_saved: Sequence[Grid], of_arrays: Sequence[Sequence[ArraySource]]
) -> list[tuple[Grid, ArraySource, int]]:
    """The grids that a kind's arrays have in the checkpoint, but for their names, with one of them and the number of
    arrays that have it."""
    found: dict[object, list[tuple[Grid, ArraySource]]] = {}
    for array in kind.positions:
        for one in of_arrays[array]:
            grid = of_saved[one.position]
            alike = (grid.chunk_shape, grid.chunks_per_dim, grid.spec.itemsize, one.begin, one.is_looked_through)
            found.setdefault(alike, []).append((grid, one))
    return [(*same[0], len(same)) for same in found.values()]


def _num_met(kind: Kind, grid: Grid, begin: tuple[int, ...]) -> Ints:
    """How many chunks each piece meets."""
    return np.concatenate([_num_met_of_cell(kind, grid, cell, begin) for cell in cells(kind)])


def _num_met_of_cell(kind: Kind, grid: Grid, cell: Cell, begin: tuple[int, ...]) -> Ints:
    num = num_flat(kind)
    bounds = [piece_bounds(kind.grid.spec, part, cell.shape, num) for part in cell.parts]
    if not cell.parts:
        return np.zeros(num, dtype=np.int64)
    if len(cell.parts) == 1:
        box = moved(cell.parts[0].box, begin)
        return _num_met_alike(_shifted(box, grid.chunk_shape), grid.chunk_shape, bounds[0])
    met = [
        _met(moved(part.box, begin), grid.chunk_shape, grid.chunks_per_dim, of_part)
        for part, of_part in zip(cell.parts, bounds, strict=True)
    ]
    return _per_piece(np.concatenate(met), num)


def _shifted(box: Box, chunk_shape: tuple[int, ...]) -> Box:
    """Towards the origin by whole chunks: boxes that lie alike towards the chunks meet equally many."""
    bases = (low - low % size for (low, _), size in zip(box, chunk_shape, strict=True))
    return tuple((low - base, high - base) for (low, high), base in zip(box, bases, strict=True))


@lru_cache(maxsize=4096)
def _num_met_alike(box: Box, chunk_shape: tuple[int, ...], bounds: tuple[int, ...]) -> Ints:
    chunks_per_dim = tuple(-(-high // size) for (_, high), size in zip(box, chunk_shape, strict=True))
    return _per_piece(_met(box, chunk_shape, chunks_per_dim, bounds), len(bounds) - 1)


def _per_piece(met: Ints, num: int) -> Ints:
    """[num]: distinct chunks that each piece meets with any of its parts."""
    return np.bincount(np.unique(met, axis=0)[:, 0], minlength=num).astype(np.int64)


def _met(box: Box, chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...], bounds: tuple[int, ...]) -> Ints:
    """[pairs, 2]: a piece and a chunk that have an element of the box in common; `bounds` cut the box into pieces."""
    starts, chunks = _segments(box, chunk_shape, chunks_per_dim)
    edges = np.array(bounds, dtype=np.int64)
    cuts = cuts_of(starts, edges)
    piece = np.searchsorted(edges, cuts, side="right") - 1
    return np.stack([piece, chunks[np.searchsorted(starts, cuts, side="right") - 1]], axis=1)


def _segments(box: Box, chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Where, in C order of the box, another chunk begins, and the number of that chunk."""
    spans = [(low // size, -(-high // size)) for (low, high), size in zip(box, chunk_shape, strict=True)]
    cut = max((dim for dim, (first, last) in enumerate(spans) if last - first > 1), default=0)
    starts, chunks = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for dim, ((low, high), size) in enumerate(zip(box, chunk_shape, strict=True)):
        row = num_elements(box[dim + 1 :])
        if dim < cut:
            at = np.arange(low, high, dtype=np.int64)
        elif dim == cut:
            at = np.maximum(np.arange(*spans[dim], dtype=np.int64) * size, low)
        else:
            at = np.array([low], dtype=np.int64)  # the box lies within one chunk from here on
        starts = (starts[:, None] + (at - low) * row).reshape(-1)
        chunks = (chunks[:, None] * chunks_per_dim[dim] + at // size).reshape(-1)
    return starts, chunks


def _ratio(read_bytes: int, needed_bytes: int) -> float:
    return read_bytes / needed_bytes if needed_bytes else 1.0


def _worst(held: Ints, alone: Ints) -> float:
    some = held > 0
    ratios: npt.NDArray[np.float64] = alone[some] / held[some]
    return float(ratios.max(initial=1.0))
