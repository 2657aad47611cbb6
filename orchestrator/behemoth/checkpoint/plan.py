"""What one rank holds, where in its arena, and which bytes of which file it writes. Pure, the same on every rank.

A span is the part of a held piece that lies in one chunk: contiguous in the arena and in the file. Spans are the unit
of CRCs, receipts and ownership. The module does no I/O. Neighbours: `sharing` (owners), `grid` (offsets), `arena`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from behemoth.base.errors import Internal, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.sharing import flat_range, owners, sharing, units

ALIGNMENT_BYTES = 64  # a cache line, and more than any element
PAGED_BYTES = 1 << 20
"""Pieces from this size on begin at a page, so that a disk can reach them without a copy in between."""
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a rank holds of one array: elements `flat` (start, stop; C order) of the block `box` (per dim)."""

    array: int
    name: str
    box: tuple[tuple[int, int], ...]
    flat: tuple[int, int]
    arena_offset: int
    nbytes: int


class Span(NamedTuple):
    """The part of a piece within one chunk. Offsets and lengths in bytes; `offset` counts from the chunk's start.

    A named tuple, because a plan has as many of them as chunks.
    """

    array: int
    chunk: int
    offset: int
    length: int
    arena_offset: int
    shard_offset: int
    is_owned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's part of a layout: pieces and spans in the layout's order."""

    rank: Rank
    layout_digest: str
    pieces: tuple[Piece, ...]
    spans: tuple[Span, ...]
    data_bytes: int
    """Size of the arena's data area."""

    @property
    def writes(self) -> tuple[Span, ...]:
        """The spans that this rank writes."""
        return tuple(span for span in self.spans if span.is_owned)

    @property
    def written_bytes(self) -> int:
        return sum(span.length for span in self.spans if span.is_owned)


@lru_cache(maxsize=64)
def plan_rank(layout: Layout, rank: Rank) -> RankPlan:
    """Raises Invalid for a rank outside the mesh."""
    if not 0 <= rank < layout.mesh.num_ranks:
        raise Invalid(f"plan: expected a rank below {layout.mesh.num_ranks}, got {rank}", code="plan-rank")
    pieces: list[Piece] = []
    spans: list[Span] = []
    arena_offset = 0
    for position, grid in enumerate(grids(layout)):
        index = int(sharing(layout, grid.spec).piece_of_rank[rank])
        if index < 0:
            continue
        piece = _piece(layout, position, grid, index, arena_offset)
        pieces.append(piece)
        spans += _spans(layout, grid, piece, index, rank)
        arena_offset = piece.arena_offset + piece.nbytes
    data_bytes = _aligned(arena_offset, ALIGNMENT_BYTES)
    return RankPlan(
        rank=rank, layout_digest=layout.digest, pieces=tuple(pieces), spans=tuple(spans), data_bytes=data_bytes
    )


def prove_coverage(layout: Layout) -> None:
    """Every byte of every chunk has exactly one writer among all ranks. O(world x spans of a rank).

    Raises Internal, naming array and chunk: the plan itself would be wrong.
    """
    rows = [span[:4] for rank in range(layout.mesh.num_ranks) for span in plan_rank(layout, Rank(rank)).writes]
    fault = check_coverage(layout, Extents.of(rows))
    if fault is not None:
        raise Internal(f"plan of {layout.mesh}: {fault.message}", code=fault.code)


def _piece(layout: Layout, position: int, grid: Grid, index: int, arena_offset: int) -> Piece:
    """`arena_offset`: the end of the piece before."""
    coordinates = sharing(layout, grid.spec).coordinates(index)
    start, stop = flat_range(layout, grid, coordinates)
    block = _block(grid, coordinates)
    nbytes = (stop - start) * grid.spec.itemsize
    return Piece(
        array=position,
        name=grid.spec.name,
        box=tuple((at * size, (at + 1) * size) for at, size in zip(block, grid.block_shape, strict=True)),
        flat=(start, stop),
        arena_offset=_aligned(arena_offset, PAGE_BYTES if nbytes >= PAGED_BYTES else ALIGNMENT_BYTES),
        nbytes=nbytes,
    )


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _block(grid: Grid, coordinates: tuple[int, ...]) -> list[int]:
    """The block's place along each dim of the array."""
    block = [0] * len(grid.block_shape)
    for (dim, _), coordinate in zip(grid.spec.dims, coordinates, strict=False):  # a flat coordinate may follow
        block[dim] = coordinate
    return block


def _spans(layout: Layout, grid: Grid, piece: Piece, index: int, rank: Rank) -> list[Span]:
    of = units(layout, grid)
    elements = of.elements[index]
    used = np.flatnonzero(elements)
    local = of.first_chunk[index] + used
    chunks = grid.chunks_of_block(_block(grid, sharing(layout, grid.spec).coordinates(index)), local)
    begin = np.maximum(grid.block_chunk_starts()[local], piece.flat[0])
    itemsize = grid.spec.itemsize
    offsets = (begin - grid.block_chunk_starts()[local]) * itemsize
    columns = zip(
        chunks.tolist(),
        offsets.tolist(),
        (elements[used] * itemsize).tolist(),
        (piece.arena_offset + (begin - piece.flat[0]) * itemsize).tolist(),
        (chunks * grid.stride_bytes + offsets).tolist(),
        (owners(layout)[piece.array][index][used] == rank).tolist(),
        strict=True,
    )
    return [Span(piece.array, *row) for row in columns]
