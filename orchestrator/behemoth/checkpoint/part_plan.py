"""The parts that one rank uploads of a save, byte for byte, and who completes each object. Pure, same on every rank.

A part is data of chunks, in order, and behind the last byte of a chunk its padding, its CRC, a gap. Some of the data
may lie with other ranks, and of a chunk that began in an earlier part its CRC must be known: both are named as
fragments, by chunk, so that whoever holds them finds them in its own plan. Neighbours: `uploads` (parts and owners),
`upload_writer`, which sends them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.segments import Segments, data_starts
from behemoth.checkpoint.uploads import Uploads, plan_uploads


class ShardId(NamedTuple):
    """An object of an array: the array's position in the layout, and the shard in C order of the array's grid."""

    array: int
    number: int


class Fragment(NamedTuple):
    """Bytes [offset, offset + length) of a chunk's data, and a rank that holds them."""

    rank: Rank
    array: int
    chunk: int
    offset: int
    length: int


class PlannedPart(NamedTuple):
    """A part of a shard, which it alone makes up when `num_parts` is 1. Parts count from 1."""

    shard: ShardId
    number: int
    num_parts: int
    size_bytes: int
    completer: Rank
    head: tuple[Fragment, ...]
    """Where this part ends a chunk that an earlier part began: that chunk's data in the earlier parts."""
    data: tuple[Fragment, ...]
    """The data of the part itself, in order."""

    @property
    def is_last(self) -> bool:
        """Whether the part ends with the shard's index."""
        return self.number == self.num_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class RankParts:
    """`parts` in the layout's order; `completes`: the shards of several parts that this rank begins and completes, each
    with the ranks that upload its parts, by number."""

    rank: Rank
    parts: tuple[PlannedPart, ...]
    completes: dict[ShardId, tuple[Rank, ...]]


@lru_cache(maxsize=64)
def plan_parts(layout: Layout, rank: Rank) -> RankParts:
    """O(parts of all kinds) in columns, and O(what the rank uploads and completes). Raises what `plan_uploads` does."""
    parts: list[PlannedPart] = []
    completes: dict[ShardId, tuple[Rank, ...]] = {}
    for uploads in plan_uploads(layout).uploads:
        view = _KindView(uploads, rank)
        parts += view.parts()
        completes.update(view.completes())
    return RankParts(
        rank=rank, parts=tuple(sorted(parts, key=lambda part: (part.shard, part.number))), completes=completes
    )


class _KindView:
    """The parts of one kind, as one rank sees them."""

    def __init__(self, uploads: Uploads, rank: Rank) -> None:
        self._uploads = uploads
        self._rank = rank
        self._positions = uploads.kind.positions
        self._holders = uploads.kind.sharing.holders
        self._chunks: dict[int, list[int]] = {}  # of shards, which are the same for all arrays of the kind

    @cached_property
    def _starts(self) -> list[int]:
        return data_starts(self._uploads.kind.grid).tolist()  # type: ignore[no-any-return]

    def parts(self) -> Iterator[PlannedPart]:
        found = np.flatnonzero(self._uploads.owner.reshape(-1) == self._rank)  # of all parts: what takes longest
        rows, columns = np.divmod(found, self._uploads.owner.shape[1])
        shards = np.searchsorted(self._uploads.first_part, columns, side="right") - 1
        for row, part, shard in zip(rows.tolist(), columns.tolist(), shards.tolist(), strict=True):
            first, end = self._uploads.first_part[shard : shard + 2].tolist()
            begin, stop = self._uploads.data[part].tolist()
            array, low = self._positions[row], bisect_right(self._starts, begin) - 1
            ends_chunk = self._starts[low] < begin and self._starts[low + 1] <= stop
            yield PlannedPart(
                shard=ShardId(array, shard),
                number=part - first + 1,
                num_parts=end - first,
                size_bytes=int(np.diff(self._uploads.range[part])[0]),
                completer=Rank(int(self._uploads.completer[row, shard])),
                head=tuple(self._fragments(array, shard, self._starts[low], begin)) if ends_chunk else (),
                data=tuple(self._fragments(array, shard, begin, stop)),
            )

    def completes(self) -> Iterator[tuple[ShardId, tuple[Rank, ...]]]:
        rows, shards = np.nonzero(self._uploads.completer == self._rank)
        for row, shard in zip(rows.tolist(), shards.tolist(), strict=True):
            first, end = self._uploads.first_part[shard : shard + 2].tolist()
            if end - first > 1:
                owners = self._uploads.owner[row, first:end].tolist()
                yield ShardId(self._positions[row], shard), tuple(Rank(owner) for owner in owners)

    def _fragments(self, array: int, shard: int, begin: int, stop: int) -> Iterator[Fragment]:
        """Data [begin, stop) of a shard, cut where chunks and where pieces end."""
        segments: Segments = self._uploads.segments[shard]
        if shard not in self._chunks:
            self._chunks[shard] = self._uploads.kind.grid.chunks_of(shard).tolist()
        chunks = self._chunks[shard]
        slot, segment = bisect_right(self._starts, begin) - 1, bisect_right(segments.bounds, begin) - 1
        while begin < stop:
            end = min(stop, self._starts[slot + 1], segments.bounds[segment + 1])
            holder = self._nearest(segments.pieces[segment])
            yield Fragment(holder, array, chunks[slot], begin - self._starts[slot], end - begin)
            slot, segment = slot + (end == self._starts[slot + 1]), segment + (end == segments.bounds[segment + 1])
            begin = end

    def _nearest(self, piece: int) -> Rank:
        """The holder of a piece whose number is nearest to this rank: itself, or a rank of its node, if it is one."""
        holders = self._holders[piece]
        if len(holders) == 1:
            return Rank(int(holders[0]))
        return Rank(int(holders[np.argmin(np.abs(holders - self._rank))]))
