"""How many bytes a restore on another layout takes from the store, against those that are needed. Pure.

A CRC covers a chunk, so a chunk is read whole however little of it is needed. Two ways to count: each chunk once for
the whole fleet, whose ranks pass it on to each other, and each rank for itself, as `reader` does. Neighbours:
`reshard`, which says what one rank reads, and `loads`, which counts writes in the same columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.boxes import Box, piece_bounds
from behemoth.checkpoint.conversion import Cast, ScaledDown, ScaledUp, ScalesOf, value_names
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import Cell, cells, num_flat
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.sharing import Kind, bytes_of_pieces, kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class OverRead:
    """Bytes of the arrays that are restored, CRCs counted as read.

    `needed_bytes` counts each logical byte once, and `once_bytes` what the fleet reads when each chunk is read once.
    `held_bytes` and `alone_bytes` are sums over the ranks that were asked about: what they hold, and what they read
    when each reads for itself. Where arrays are converted, bytes are those of the saved arrays, and of each wanted one
    by itself: a chunk of which a rank makes two arrays counts twice in these sums.
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
        """Over-read of a rank that reads for itself, the mean of all bytes."""
        return _ratio(self.alone_bytes, self.held_bytes)


def require_countable(found: Sequence[Origin]) -> None:
    """Raises Invalid for parts of arrays and for scales, whose blocks are not counted here."""
    for origin in found:
        if isinstance(origin, ScaledDown | ScaledUp | ScalesOf) or (isinstance(origin, Cast) and origin.begin):
            raise Invalid(
                "over-read: expected whole arrays without scales, got "
                f"{type(origin).__name__} of {value_names(origin)[0]!r}",
                hint="ask for a restore without float8 weights",
                code="over-read-scales",
            )


def over_read(
    saved: Layout, layout: Layout, found: Sequence[Origin], *, ranks: Sequence[int] | None = None
) -> OverRead:
    """Of a restore on `layout` from a checkpoint on `saved`; `found` as `matching.origins` tells. Raises Invalid
    for what cannot be counted.

    `ranks` are those to count for the ranks' own figures, by default all. O(chunks that pieces meet), in columns: a
    second for 32,000 ranks of the reference Behemoth.
    """
    require_countable(found)
    of_saved = grids(saved)
    chosen = np.arange(layout.mesh.num_ranks) if ranks is None else np.array(ranks, dtype=np.int64)
    held, alone = np.zeros((2, len(chosen)), dtype=np.int64)
    sources = [_positions(saved, origin) for origin in found]
    wanted = [of_saved[position] for position in sorted({position for some in sources for position in some})]
    for kind in kinds(layout):
        pieces = kind.sharing.piece_of_rank[chosen]
        holds = pieces >= 0
        elements = bytes_of_pieces(kind) // kind.grid.spec.itemsize
        for grid, num_arrays in _saved_grids(kind, of_saved, sources):
            held[holds] += num_arrays * grid.spec.itemsize * elements[pieces[holds]]
            alone[holds] += num_arrays * _chunk_bytes(grid) * _num_met(kind, grid)[pieces[holds]]
    return OverRead(
        needed_bytes=sum(grid.spec.num_bytes for grid in wanted),
        once_bytes=sum(grid.num_chunks * _chunk_bytes(grid) for grid in wanted),
        held_bytes=int(held.sum()),
        alone_bytes=int(alone.sum()),
        worst_alone=_worst(held, alone),
    )


def _positions(saved: Layout, origin: Origin) -> tuple[int, ...]:
    """The saved arrays that a wanted one is made of, element by element."""
    match origin:
        case None:
            return ()
        case int():
            return (origin,)
        case _:
            return tuple(saved.positions[name] for name in value_names(origin))


def _saved_grids(kind: Kind, of_saved: Sequence[Grid], sources: Sequence[Sequence[int]]) -> list[tuple[Grid, int]]:
    """The grids that a kind's arrays have in the checkpoint, but for their names, and how many arrays have each."""
    found: dict[object, list[Grid]] = {}
    for array in kind.positions:
        for position in sources[array]:
            grid = of_saved[position]
            found.setdefault((grid.chunk_shape, grid.chunks_per_dim, grid.spec.itemsize), []).append(grid)
    return [(alike[0], len(alike)) for alike in found.values()]


def _num_met(kind: Kind, grid: Grid) -> Ints:
    """How many chunks each piece meets."""
    return np.concatenate([_num_met_of_cell(kind, grid, cell) for cell in cells(kind)])


def _num_met_of_cell(kind: Kind, grid: Grid, cell: Cell) -> Ints:
    num = num_flat(kind)
    bounds = [piece_bounds(kind.grid.spec, part, cell.shape, num) for part in cell.parts]
    if not cell.parts:
        return np.zeros(num, dtype=np.int64)
    if len(cell.parts) == 1:
        return _num_met_alike(_shifted(cell.parts[0].box, grid.chunk_shape), grid.chunk_shape, bounds[0])
    met = [
        _met(part.box, grid.chunk_shape, grid.chunks_per_dim, of_part)
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
    """[num]: chunks that a piece meets with any of its parts count once."""
    return np.bincount(np.unique(met, axis=0)[:, 0], minlength=num).astype(np.int64)


def _met(box: Box, chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...], bounds: tuple[int, ...]) -> Ints:
    """[pairs, 2]: a piece and a chunk that have an element of the box in common; `bounds` cut the box into pieces."""
    starts, chunks = _segments(box, chunk_shape, chunks_per_dim)
    edges = np.array(bounds, dtype=np.int64)
    cuts = np.unique(np.concatenate([starts, edges[:-1]]))
    cuts = cuts[cuts < edges[-1]]
    piece = np.searchsorted(edges, cuts, side="right") - 1
    return np.stack([piece, chunks[np.searchsorted(starts, cuts, side="right") - 1]], axis=1)


def _segments(box: Box, chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Where, in C order of the box, another chunk begins, and the number of that chunk."""
    spans = [(low // size, -(-high // size)) for (low, high), size in zip(box, chunk_shape, strict=True)]
    cut = max((dim for dim, (first, last) in enumerate(spans) if last - first > 1), default=0)
    starts, chunks = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for dim, ((low, high), size) in enumerate(zip(box, chunk_shape, strict=True)):
        row = math.prod(stop - start for start, stop in box[dim + 1 :])
        if dim < cut:
            at = np.arange(low, high, dtype=np.int64)
        elif dim == cut:
            at = np.maximum(np.arange(*spans[dim], dtype=np.int64) * size, low)
        else:
            at = np.array([low], dtype=np.int64)  # the box lies within one chunk from here on
        starts = (starts[:, None] + (at - low) * row).reshape(-1)
        chunks = (chunks[:, None] * chunks_per_dim[dim] + at // size).reshape(-1)
    return starts, chunks


def _chunk_bytes(grid: Grid) -> int:
    return grid.payload_bytes + TRAILER_BYTES


def _ratio(read_bytes: int, needed_bytes: int) -> float:
    return read_bytes / needed_bytes if needed_bytes else 1.0


def _worst(held: Ints, alone: Ints) -> float:
    some = held > 0
    ratios: npt.NDArray[np.float64] = alone[some] / held[some]
    return float(ratios.max(initial=1.0))
