"""Who puts the CRC behind a chunk of several spans, and whose CRCs it is made of. Pure, the same on every rank.

Where ranks have flat shares nearly every chunk is of several. Whoever writes a chunk's last byte writes its end: each
rank a hundred, where one process for all would have millions. Only chunks of very many spans, those of small arrays,
are left to the leader. The same tables tell `proof` who owes what a chunk lacks. Neighbours: `sharing` (the owners),
`segments` (whose bytes a chunk consists of), `end_writer`, which asks and writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from behemoth.base.ids import Rank
from behemoth.checkpoint.grid import Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.part_plan import Fragment
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.segments import pieces_of
from behemoth.checkpoint.sharing import kinds, owners

MAX_SPANS = 64
"""Of a chunk; the leader, who is told all CRCs anyway, writes the ends of others. In the reference Behemoth on 32,000
ranks these are 14,001 of 3.2 million, for which eight ranks would have to ask 2,000 others each for 349,000 CRCs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkEnds:
    """The chunks of 2 to MAX_SPANS spans whose last byte a rank writes. What their data consist of, as columns: each
    row is a span of the rank that writes it, chunk after chunk, in order of offsets."""

    spans: tuple[Span, ...]
    """The last one of each chunk."""
    first: Ints
    """The first row of each chunk, and the end of the last one's."""
    rank: Ints
    array: Ints
    chunk: Ints
    offset: Ints
    length: Ints

    def by_rank(self) -> Iterator[tuple[Rank, Ints]]:
        """The rows of each rank that wrote something of these chunks."""
        order = np.argsort(self.rank, kind="stable")
        ranks = self.rank[order]
        bounds = np.flatnonzero(np.diff(ranks, prepend=-1, append=-1))
        for low, high in pairwise(bounds.tolist()):
            yield Rank(int(ranks[low])), order[low:high]

    def fragments(self, rows: Ints) -> list[Fragment]:
        """The spans of these rows."""
        columns = (column[rows].tolist() for column in (self.rank, self.array, self.chunk, self.offset, self.length))
        return list(map(Fragment._make, zip(*columns, strict=True)))


def chunk_ends(layout: Layout, plan: RankPlan) -> ChunkEnds:
    """In the order of the plan. O(chunks + pieces) of the rank's kinds once per layout, and O(what it finds)."""
    spans: list[Span] = []
    rows = [np.zeros((5, 0), dtype=np.int64)]
    for span in _ending(layout, plan):
        found = _rows(layout, span.array, span.chunk)
        if found.shape[1] <= MAX_SPANS:
            spans.append(span)
            rows.append(found)
    rank, array, chunk, offset, length = np.concatenate(rows, axis=1)
    first = np.cumsum([found.shape[1] for found in rows])
    return ChunkEnds(spans=tuple(spans), first=first, rank=rank, array=array, chunk=chunk, offset=offset, length=length)


def chunk_spans(layout: Layout, array: int, chunk: int) -> list[Fragment]:
    """The spans that a whole chunk consists of, in order of offsets, each with the rank that writes it. O(pieces of the
    array's kind) once per layout."""
    return list(map(Fragment._make, _rows(layout, array, chunk).T.tolist()))


def _ending(layout: Layout, plan: RankPlan) -> Iterator[Span]:
    of_arrays = grids(layout)
    for span in plan.spans:
        if not span.is_owned or span.offset == 0:
            continue
        if span.offset + span.length == of_arrays[span.array].data_bytes(span.chunk):
            yield span


class _Table:
    """The pieces of all chunks of the arrays of one kind, by chunk and offset."""

    def __init__(self, layout: Layout, kind: int) -> None:
        rows = pieces_of(kinds(layout)[kind])
        chunk, offset, _, piece = rows
        order = np.lexsort((offset, chunk))
        self._chunk, self._offset, self._length, self._piece = rows[:, order]
        self._unit = _counted(piece)[order]
        self._holders = kinds(layout)[kind].sharing.holders
        self._owner = owners(layout)[kind]

    def rows(self, array: int, chunk: int, *, row: int) -> Ints:
        """See `_rows`. `row`: of the array in the kind."""
        low, high = np.searchsorted(self._chunk, (chunk, chunk + 1))
        some = slice(int(low), int(high))
        found = np.empty((5, some.stop - some.start), dtype=np.int64)
        if self._owner is None:
            found[0] = self._holders[self._piece[some], 0]
        else:
            found[0] = self._owner[row, self._piece[some], self._unit[some]]
        found[1], found[2] = array, chunk
        found[3], found[4] = self._offset[some], self._length[some]
        return found


def _rows(layout: Layout, array: int, chunk: int) -> Ints:
    """[5, spans]: rank, array, chunk, offset and length of all spans of a chunk, in order of offsets."""
    kind, row = _places(layout)[array]
    return _table(layout, kind).rows(array, chunk, row=row)


@lru_cache(maxsize=16)
def _places(layout: Layout) -> dict[int, tuple[int, int]]:
    """The kind of each array, by number, and the array's row in it."""
    return {
        array: (number, row) for number, kind in enumerate(kinds(layout)) for row, array in enumerate(kind.positions)
    }


@lru_cache(maxsize=256)
def _table(layout: Layout, kind: int) -> _Table:
    return _Table(layout, kind)


def _counted(piece: Ints) -> Ints:
    """Of each row, how many of the same piece come before it: its unit, as `owners` counts them."""
    order = np.argsort(piece, kind="stable")
    grouped = piece[order]
    counted = np.empty_like(piece)
    counted[order] = np.arange(len(piece)) - np.searchsorted(grouped, grouped, side="left")
    return counted
