"""Other nodes' memory as places of one restore: copies of the rank's own snapshot, then replicas of its parts.

The neighbours are `checkpoint.replicas`, which tells who they are, and `agent.places`, which takes what they have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from behemoth.agent.places import SnapshotPlace
from behemoth.agent.storewire import RestoreSource
from behemoth.base.errors import BehemothError, NotFound, Timeout
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.base.slots import slot_of
from behemoth.checkpoint.gathering import Gathering, SnapshotSource
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.replicas import ReplicaSnapshot, common_arrays, replicated

MAX_IN_VAIN = 4
"""Nodes of replicas that a rank asks without getting all that they should have: of a fleet that has lost a tenth of its
memory one rank in 10,000 gives up too early, and reads the store."""

AskPeer: TypeAlias = Callable[[int, RankPlan, WriteId, Step], SnapshotSource]
"""The snapshot of a plan's rank that the node of a slot may have. Raises Behemoth's errors when nobody is there."""


class PeerPlaces:
    """Iterate once, while `gathering` is filled. A node that has failed, or should have had the write and has not, is
    not asked again."""

    def __init__(
        self,
        ask: AskPeer,
        gathering: Gathering,
        layout: Layout,
        plan: RankPlan,
        source: RestoreSource,
        *,
        ranks_per_node: int,
    ) -> None:
        self._ask = ask
        self._gathering = gathering
        self._layout = layout
        self._plan = plan
        self._source = source
        self._ranks_per_node = ranks_per_node
        own_slot = slot_of(plan.rank, ranks_per_node)
        self._silent: set[int] = {own_slot}  # a node loses the memory of all its ranks at once
        self._num_left = MAX_IN_VAIN

    def __iter__(self) -> Iterator[SnapshotPlace]:
        for holder in self._source.holders:
            failed = partial(self._holder_failed, holder)
            yield SnapshotPlace("peer", partial(self._snapshot, holder, self._plan), failed)
        for group in replicated(self._layout, self._plan.rank):
            for other in group.shuffled(self._plan.rank):
                slot = slot_of(other, self._ranks_per_node)
                if slot in self._silent:
                    continue
                if self._num_left == 0 or group.arrays.isdisjoint(self._wanted_arrays()):
                    break
                failed = partial(self._replica_failed, slot)
                yield SnapshotPlace("peer", partial(self._replica, slot, other), failed, is_promised=False)

    def _wanted_arrays(self) -> Iterator[int]:
        return (self._plan.spans[number].array for number in self._gathering.wanted)

    def _snapshot(self, slot: int, plan: RankPlan) -> SnapshotSource:
        return self._ask(slot, plan, self._source.write_id, self._source.step)

    def _replica(self, slot: int, other: Rank) -> SnapshotSource:
        theirs = plan_rank(self._layout, other)
        arrays = common_arrays(self._layout, self._plan.rank, other)
        return ReplicaSnapshot(self._snapshot(slot, theirs), self._plan, theirs, arrays)

    def _holder_failed(self, slot: int, error: BehemothError) -> None:
        if not isinstance(error, NotFound):  # without the copy it may have its own ranks' memory
            self._silent.add(slot)

    def _replica_failed(self, slot: int, error: BehemothError) -> None:
        self._silent.add(slot)
        self._num_left -= 1
        if isinstance(error, Timeout):  # the store is there before another one
            self._num_left = 0
