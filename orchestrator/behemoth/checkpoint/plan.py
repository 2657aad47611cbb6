"""What one rank holds, where in its arena, and which bytes of which file it writes. Pure, the same on every rank.

A span is the part of a held piece that lies in one chunk: contiguous in the arena and in the file. Spans are the unit
of CRCs, receipts and ownership. The module does no I/O. Neighbours: `sharing` (owners), `grid` (offsets), `arena`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

from behemoth.base.errors import Internal, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.box import Box, Interval
from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.sharing import Kind, Share, SharePart, kinds, owners
from behemoth.checkpoint.windows import Window

ALIGNMENT_BYTES = 64  # a cache line, and more than any element
PAGED_BYTES = 1 << 20
"""Pieces from this size on begin at a page, so that a disk can reach them without a copy in between."""
PAGE_BYTES = 4096


class Piece(NamedTuple):
    """What a rank holds of one array, or of one part of a packed one: elements `flat` (start, stop; C order) of the box
    `box` (per dim) of the logical array."""

    array: int
    name: str
    box: Box
    flat: Interval
    arena_offset: int
    nbytes: int
    window: Window
    """Where the piece lies in the program's buffer."""
    share: Share
    """All that the rank holds of the array, as the program has it in its buffer."""


class Span(NamedTuple):
    """The part of a piece within one chunk. Offsets and lengths in bytes; `offset` counts from the chunk's start,
    `shard_offset` from that of its shard.

    Named tuples, because a plan has as many of them as chunks.
    """

    array: int
    chunk: int
    offset: int
    length: int
    arena_offset: int
    shard: int
    shard_offset: int
    is_owned: bool
    piece: int
    """Its number in the plan."""


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
        """The spans that this rank writes; it holds the others too, but another holder writes them."""
        return tuple(span for span in self.spans if span.is_owned)

    @property
    def written_bytes(self) -> int:
        return sum(span.length for span in self.spans if span.is_owned)


@lru_cache(maxsize=64)
def plan_rank(layout: Layout, rank: Rank) -> RankPlan:
    """What `rank` holds and writes. O(chunks that the rank meets), milliseconds once `owners` is known for the layout.
    Raises Invalid for a rank outside the mesh."""
    if not 0 <= rank < layout.mesh.num_ranks:
        raise Invalid(f"plan: expected a rank below {layout.mesh.num_ranks}, got {rank}", code="plan-rank")
    held: dict[int, tuple[tuple[_Part, ...], Iterable[bool]]] = {}
    for kind, owner in zip(kinds(layout), owners(layout), strict=True):
        index = int(kind.sharing.piece_of_rank[rank])
        if index < 0:
            continue
        parts = _parts(kind, index)
        num_units = sum(len(part.chunks) for part in parts)
        owned = repeat(repeat(True)) if owner is None else (owner[:, index, :num_units] == rank).tolist()
        held.update(zip(kind.positions, zip(repeat(parts), owned), strict=False))
    pieces: list[Piece] = []
    spans: list[Span] = []
    arena_offset = 0
    for position in sorted(held):
        parts, owned_units = held[position]
        is_owned, name = iter(owned_units), layout.arrays[position].name
        for part in parts:
            arena_offset = _aligned(arena_offset, part.alignment_bytes)
            spans += part.spans(position, len(pieces), arena_offset, is_owned)
            pieces.append(
                Piece(position, name, part.box, part.flat, arena_offset, part.nbytes, part.window, part.share)
            )
            arena_offset += part.nbytes
    return RankPlan(
        rank=rank,
        layout_digest=layout.digest,
        pieces=tuple(pieces),
        spans=tuple(spans),
        data_bytes=_aligned(arena_offset, ALIGNMENT_BYTES),
    )


def prove_coverage(layout: Layout) -> None:
    """Check the plans of all ranks: every byte of every chunk has exactly one writer. O(world x spans of a rank), so
    for tests and for a look at a layout, not for saves, which prove the receipts instead.

    Raises Internal, naming array and chunk.
    """
    rows = [span[:4] for rank in range(layout.mesh.num_ranks) for span in plan_rank(layout, Rank(rank)).writes]
    fault = check_coverage(layout, Extents.of(rows))
    if fault is not None:
        raise Internal(f"plan of {layout.mesh}: {fault.message}", code=fault.code)


class _Part(NamedTuple):
    """A piece of any array of one kind, and its spans as columns (in bytes, except for `chunks` and `shards`)."""

    box: Box
    flat: Interval
    nbytes: int
    alignment_bytes: int
    window: Window
    share: Share
    chunks: list[int]
    offsets: list[int]
    lengths: list[int]
    within: list[int]
    """Where the spans begin in the piece."""
    shards: list[int]
    in_shard: list[int]

    def spans(self, array: int, piece: int, arena_offset: int, is_owned: Iterator[bool]) -> list[Span]:
        arena = [arena_offset + within for within in self.within]
        columns = (self.chunks, self.offsets, self.lengths, arena, self.shards, self.in_shard, is_owned)
        return [Span._make(row) for row in zip(repeat(array), *columns, repeat(piece))]


def _parts(kind: Kind, index: int) -> tuple[_Part, ...]:
    """An empty piece counts as one part, so that a program may declare it as any other."""
    share = kind.share(index)
    if not share.parts:
        return (_empty_part(kind, share),)
    return tuple(_part(kind, share, part) for part in share.parts)


def _part(kind: Kind, share: Share, part: SharePart) -> _Part:
    itemsize, stride = kind.grid.spec.itemsize, kind.grid.stride_bytes
    start, stop = part.flat
    nbytes = (stop - start) * itemsize
    offsets = part.meeting.offsets * itemsize
    shards, slots = kind.grid.place(part.meeting.chunks)
    return _Part(
        box=part.held.box,
        flat=part.flat,
        nbytes=nbytes,
        alignment_bytes=PAGE_BYTES if nbytes >= PAGED_BYTES else ALIGNMENT_BYTES,
        window=_window(kind, share, part),
        share=share,
        chunks=part.meeting.chunks.tolist(),
        offsets=offsets.tolist(),
        lengths=(part.meeting.elements * itemsize).tolist(),
        within=((part.meeting.first - start) * itemsize).tolist(),
        shards=shards.tolist(),
        in_shard=(slots * stride + offsets).tolist(),
    )


def _empty_part(kind: Kind, share: Share) -> _Part:
    return _Part(
        box=tuple((0, 0) for _ in kind.grid.spec.shape),
        flat=(0, 0),
        nbytes=0,
        alignment_bytes=ALIGNMENT_BYTES,
        window=Window(0, 0, 0, 0),
        share=share,
        chunks=[],
        offsets=[],
        lengths=[],
        within=[],
        shards=[],
        in_shard=[],
    )


def _window(kind: Kind, share: Share, part: SharePart) -> Window:
    """The buffer holds the flat range of the local array; of a packed dim, the box has some columns of each row."""
    spec, itemsize = kind.grid.spec, kind.grid.spec.itemsize
    if spec.packed is None:
        return Window(0, 0, 0, 0)
    dim = spec.packed[0]
    inner = math.prod(share.local_shape[dim + 1 :])
    low, high = part.held.place[dim]
    row, pitch = (high - low) * inner, share.local_shape[dim] * inner
    first_row, skip = divmod(part.flat[0], row)
    start = first_row * pitch + low * inner - share.flat[0]
    return Window(row * itemsize, pitch * itemsize, start * itemsize, skip * itemsize)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
