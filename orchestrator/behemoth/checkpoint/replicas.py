"""Which other ranks hold the same pieces as a rank, and their snapshots as places for these parts of its own.

On one mesh two ranks hold the same piece of an array or have nothing of it in common, so that what they share are whole
arrays of their plans: a closed form of the layout. Pure. Neighbours: `sharing`, which knows the pieces, `gathering`,
which takes the parts, and `agent.peers.places`, which asks for them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from behemoth.base.errors import Internal
from behemoth.base.ids import Rank
from behemoth.checkpoint.gathering import SnapshotSource
from behemoth.checkpoint.grid import Ints
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan
from behemoth.checkpoint.sharing import kinds


class Replicated(NamedTuple):
    """Arrays, by position in the layout, of which the ranks `others` hold the same piece as a given rank."""

    arrays: frozenset[int]
    others: Ints

    def shuffled(self, rank: Rank) -> list[Rank]:
        """The other ranks in an order of `rank`'s own, so that many ranks that restore at once spread their
        requests."""
        return [Rank(int(other)) for other in np.random.default_rng(rank).permutation(self.others)]


def replicated(layout: Layout, rank: Rank) -> list[Replicated]:
    """The arrays that a rank shares with others, grouped by the set of holders; smallest sets first, since a small set
    is mostly part of the larger ones.

    O(kinds + ranks), not O(arrays x ranks).
    """
    found: dict[bytes, tuple[Ints, list[int]]] = {}
    for kind in kinds(layout):
        piece = int(kind.sharing.piece_of_rank[rank])
        if piece >= 0 and kind.has_choice:
            holders = kind.sharing.holders[piece]
            found.setdefault(holders.tobytes(), (holders, []))[1].extend(kind.positions)
    groups = [Replicated(frozenset(arrays), holders[holders != rank]) for holders, arrays in found.values()]
    return sorted(groups, key=lambda group: (len(group.others), min(group.arrays)))


def common_arrays(layout: Layout, rank: Rank, other: Rank) -> frozenset[int]:
    """The arrays of which both hold the same piece."""
    return frozenset(
        position
        for kind in kinds(layout)
        if kind.sharing.piece_of_rank[rank] == kind.sharing.piece_of_rank[other] >= 0
        for position in kind.positions
    )


class _Run(NamedTuple):
    """Bytes that lie in the same order in both data areas: from `start` up to `end` in one, from `there` on in the
    other."""

    start: int
    end: int
    there: int


class ReplicaSnapshot:
    """Implements `SnapshotSource` for `mine`: the `arrays` that it has in common with `theirs`, out of a snapshot of
    that plan."""

    def __init__(self, inner: SnapshotSource, mine: RankPlan, theirs: RankPlan, arrays: Collection[int]) -> None:
        self._inner = inner
        self._num_spans = len(mine.spans)
        self._numbers = list(zip(_numbers(mine, arrays), _numbers(theirs, arrays), strict=True))
        self._runs = _runs(mine, theirs, self._numbers)
        self._starts = [run.start for run in self._runs]

    def crcs(self) -> Sequence[int | None]:
        told = self._inner.crcs()
        found: list[int | None] = [None] * self._num_spans
        for here, there in self._numbers:
            found[here] = told[there]
        return found

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        end = offset_bytes + into.nbytes
        for run in self._runs[bisect_right(self._starts, offset_bytes) - 1 :]:
            if run.start >= end:
                return
            low, high = max(run.start, offset_bytes), min(run.end, end)  # between two runs is no part of a span
            self._inner.read_into(run.there + low - run.start, into[low - offset_bytes : high - offset_bytes])


def _numbers(plan: RankPlan, arrays: Collection[int]) -> list[int]:
    return [number for number, span in enumerate(plan.spans) if span.array in arrays]


def _runs(mine: RankPlan, theirs: RankPlan, numbers: Sequence[tuple[int, int]]) -> list[_Run]:
    runs: list[_Run] = []
    before: tuple[int, int] | None = None
    for here, there in numbers:
        span, other = mine.spans[here], theirs.spans[there]
        if span[:4] != other[:4]:
            raise Internal(f"ranks {mine.rank} and {theirs.rank}: expected the same span, got {span} and {other}")
        end = span.arena_offset + span.length
        last = runs[-1] if before == (here - 1, there - 1) else None
        if last is not None and other.arena_offset - last.there == span.arena_offset - last.start:
            runs[-1] = last._replace(end=end)
        else:
            runs.append(_Run(span.arena_offset, end, other.arena_offset))
        before = (here, there)
    return runs
