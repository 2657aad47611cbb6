"""A node whose ranks can be restored only from the store: nobody holds a copy, and nothing is read together."""

from __future__ import annotations

from behemoth.agent.memories import Memories
from behemoth.agent.preparing import Preparing
from behemoth.base.errors import NotFound
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.gathering import SnapshotSource
from behemoth.checkpoint.plan import RankPlan
from behemoth.ports import ObjectStore


def lone_preparing(store: ObjectStore, *, ranks_per_node: int, run_name: str) -> Preparing:
    """What of the node's store process makes their memory ready."""
    return Preparing(
        Memories(num_ranks=ranks_per_node),
        store=lambda: store,
        peer=nobody_has_it,
        shared=lambda: None,
        threads=1,
        ranks_per_node=ranks_per_node,
        run_name=run_name,
    )


def nobody_has_it(slot: int, _plan: RankPlan, write_id: WriteId, _step: Step) -> SnapshotSource:
    """As `Preparing` asks for it: of a fleet of which all have lost their memory."""
    raise NotFound(f"slot {slot}: expected a snapshot of write {write_id}, got none")
