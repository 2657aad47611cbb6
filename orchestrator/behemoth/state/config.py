"""What the brain knows of the run file: sizes, limits and cadence, in the units it computes with.

`behemoth.app` derives it from the spec; nothing here is read from a file or the environment.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from behemoth.base.ids import NodeId, Rank, RunUid, Slot, Step
from behemoth.base.slots import slot_of

WorkPhase = Literal["start", "restore", "first_step", "step", "eval", "save"]
"""What a rank says it is doing; each has its own hang limit."""


class HangFloors(msgspec.Struct, frozen=True, kw_only=True):
    """Least time without progress, in us, before a phase may be called a hang: limit = max(3 x p99 seen, floor)."""

    start_us: int
    restore_us: int
    first_step_us: int
    step_us: int
    eval_us: int
    save_us: int


class Cadence(msgspec.Struct, frozen=True, kw_only=True):
    """When to save: every `steps` steps (on multiples) or every `interval_us`; exactly one is set."""

    steps: int | None = None
    interval_us: int | None = None


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as the brain sees it. Never changes during the life of a journal."""

    run_uid: RunUid
    nodes: tuple[NodeId, ...]
    """Every node that may be used, in placement order; the first `num_slots` that join form the gang."""
    num_slots: int
    """Nodes of the gang."""
    ranks_per_node: int
    total_steps: Step
    cadence: Cadence
    keep_last: int
    keep_every_steps: int | None
    keep_hourly: int = 0
    """Like `keep_daily` 0, none, in journals of releases that did not know it."""
    keep_daily: int = 0
    heartbeat_limit_us: int
    """Silence after which an agent counts as lost."""
    hang_floors: HangFloors
    settle_us: int
    """How long a worker's plain exit waits for a better explanation (a lost node shows in its peers first)."""
    max_failures: int
    """Failures of the program without progress after which the run stops with the reason."""
    node_wait_us: int
    """How long the gang waits for a missing node before the run fails."""
    rejoin_us: int
    """How long agents of an earlier coordinator may take to come back before their workers count as lost."""
    save_limit_us: int
    """How long one save may take from its call to its commit before it is aborted."""

    def slot_of(self, rank: Rank) -> Slot:
        """Ranks fill the slots in order."""
        return slot_of(rank, self.ranks_per_node)
