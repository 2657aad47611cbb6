"""What one rank holds, where in its arena, and which bytes of which file it writes. Pure, the same on every rank.

A span is the part of a held piece that lies in one chunk: contiguous in the arena and in the file. Spans are the unit
of CRCs, receipts and ownership. The module does no I/O. Neighbours: `sharing` (owners), `grid` (offsets), `arena`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

import numpy as np

from behemoth.base.errors import Internal, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.grid import Grid, Ints
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.sharing import Kind, flat_range, kinds, owners

ALIGNMENT_BYTES = 64  # a cache line, and more than any element
PAGED_BYTES = 1 << 20
"""Pieces from this size on begin at a page, so that a disk can reach them without a copy in between."""
PAGE_BYTES = 4096


class Piece(NamedTuple):
    """What a rank holds of one array: elements `flat` (start, stop; C order) of the block `box` (per dim)."""

    array: int
    name: str
    box: tuple[tuple[int, int], ...]
    flat: tuple[int, int]
    arena_offset: int
    nbytes: int


class Span(NamedTuple):
    """The part of a piece within one chunk. Offsets and lengths in bytes; `offset` counts from the chunk's start.

    Named tuples, because a plan has as many of them as chunks.
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
    held: dict[int, tuple[_Share, Iterable[bool]]] = {}
    for kind, owner in zip(kinds(layout), owners(layout), strict=True):
        index = int(kind.sharing.piece_of_rank[rank])
        if index < 0:
            continue
        share = _share(kind, index)
        owned = repeat(repeat(True)) if owner is None else (owner[:, index, share.units] == rank).tolist()
        held.update(zip(kind.positions, zip(repeat(share), owned), strict=False))
    pieces: list[Piece] = []
    spans: list[Span] = []
    arena_offset = 0
    for position in sorted(held):
        share, is_owned = held[position]
        arena_offset = _aligned(arena_offset, share.alignment_bytes)
        name = layout.arrays[position].name
        pieces.append(Piece(position, name, share.box, share.flat, arena_offset, share.nbytes))
        spans += share.spans(position, arena_offset, is_owned)
        arena_offset += share.nbytes
    return RankPlan(
        rank=rank,
        layout_digest=layout.digest,
        pieces=tuple(pieces),
        spans=tuple(spans),
        data_bytes=_aligned(arena_offset, ALIGNMENT_BYTES),
    )


def prove_coverage(layout: Layout) -> None:
    """Every byte of every chunk has exactly one writer among all ranks. O(world x spans of a rank).

    Raises Internal, naming array and chunk: the plan itself would be wrong.
    """
    rows = [span[:4] for rank in range(layout.mesh.num_ranks) for span in plan_rank(layout, Rank(rank)).writes]
    fault = check_coverage(layout, Extents.of(rows))
    if fault is not None:
        raise Internal(f"plan of {layout.mesh}: {fault.message}", code=fault.code)


class _Share(NamedTuple):
    """A piece of any array of one kind, and its spans as columns in bytes, but for the chunk's number."""

    box: tuple[tuple[int, int], ...]
    flat: tuple[int, int]
    nbytes: int
    alignment_bytes: int
    units: Ints
    """The units of ownership that the piece has, one for each span."""
    chunks: list[int]
    offsets: list[int]
    lengths: list[int]
    within: list[int]
    """Where the spans begin in the piece."""
    in_file: list[int]

    def spans(self, array: int, arena_offset: int, is_owned: Iterable[bool]) -> Iterator[Span]:
        arena = [arena_offset + within for within in self.within]
        rows = zip(repeat(array), self.chunks, self.offsets, self.lengths, arena, self.in_file, is_owned)
        return map(Span._make, rows)


def _share(kind: Kind, index: int) -> _Share:
    grid, itemsize = kind.grid, kind.grid.spec.itemsize
    coordinates = kind.sharing.coordinates(index)
    block = _block(grid, coordinates)
    start, stop = flat_range(kind.layout, grid, coordinates)
    nbytes = (stop - start) * itemsize
    elements = kind.units.elements[index]
    used = np.flatnonzero(elements)
    local = kind.units.first_chunk[index] + used
    chunks = grid.chunks_of_block(block, local)
    begin = np.maximum(kind.chunk_starts[local], start)
    offsets = (begin - kind.chunk_starts[local]) * itemsize
    return _Share(
        box=tuple((at * size, (at + 1) * size) for at, size in zip(block, grid.block_shape, strict=True)),
        flat=(start, stop),
        nbytes=nbytes,
        alignment_bytes=PAGE_BYTES if nbytes >= PAGED_BYTES else ALIGNMENT_BYTES,
        units=used,
        chunks=chunks.tolist(),
        offsets=offsets.tolist(),
        lengths=(elements[used] * itemsize).tolist(),
        within=((begin - start) * itemsize).tolist(),
        in_file=(chunks * grid.stride_bytes + offsets).tolist(),
    )


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _block(grid: Grid, coordinates: tuple[int, ...]) -> list[int]:
    """The block's place along each dim of the array."""
    block = [0] * len(grid.block_shape)
    for (dim, _), coordinate in zip(grid.spec.dims, coordinates, strict=False):  # a flat coordinate may follow
        block[dim] = coordinate
    return block
