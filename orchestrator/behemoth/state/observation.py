"""All that the brain knows: nothing but the fold of a run's journal, with the indexes that keep a decision cheap.

Nodes change through `with_node` alone, which keeps every index; `indexes_of` recomputes them by a full scan and exists
for the property that both agree. No policy lives here. Neighbour: `behemoth.reconcile.fold`, the only writer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from immutables import Map

from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, Slot, Step, WriteId
from behemoth.state.config import RunConfig
from behemoth.state.effect import CommitRef, Outcome
from behemoth.state.evidence import Progress
from behemoth.state.fence import Fence
from behemoth.state.step_times import StepTimes

NodeState = Literal["absent", "coming", "unknown", "present"]
"""`coming`: its agent was ordered. `unknown`: an agent of the former term, which may rejoin."""

GangState = Literal["none", "starting", "restoring", "training", "finished"]

Cause = Literal["node", "coordinator", "signal", "exit", "corrupt", "restore", "ended", "hang", "resume"]
"""Why an attempt ended, the most root-like first: what stands further left explains what stands further right."""

SaveState = Literal["called", "armed", "agreed", "staged", "written", "committing"]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One configured node. `incarnation` is the highest that was ordered or has joined."""

    order: int
    """Place in the run file."""
    state: NodeState = "absent"
    incarnation: int = 0
    slot: Slot | None = None
    """The slot it holds; a lost node keeps it until a spare replaces it."""
    former_slot: Slot | None = None
    """The slot that it held when all holders were lost with their coordinator."""
    joined_us: int = 0
    overdue_us: int | None = None
    """Until when its ordered agent may take to join; None while none is awaited."""
    due_us: int | None = None
    """When its next agent shall be ordered; None while that is not wanted."""
    evict: str | None = None
    """Why the agent of this incarnation has yet to be ended by force; None when that is done or not needed."""
    late_us: int | None = None
    """Last beat, when the latest tick missed one."""
    num_refusals: int = 0
    """Agents in a row that were ordered and did not join."""
    returned_us: int | None = None
    """When it came back after a loss."""
    strikes_micro: int = 0
    """Failures of workers on this node that were its own, in millionths, as of `struck_us`; they decay."""
    struck_us: int = 0


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """Why the present attempt must be replaced; at most one is open, the most root-like cause known so far."""

    cause: Cause
    node: NodeId | None = None
    rank: Rank | None = None
    reason: str
    at_us: int
    """First sign of it."""
    act_at_us: int
    """Until then a better explanation may come."""
    told_us: int
    decided_us: int | None = None
    """When the first effect because of it was decided."""
    signature: str = ""
    """What makes two failures the same: how the worker ended and the last line that it printed."""
    is_final: bool = False
    """Another attempt would meet the same."""

    @property
    def is_program(self) -> bool:
        """Whether it counts against `max_failures`: machines, coordinators and wishes do not."""
        return self.cause in ("signal", "exit", "restore", "ended", "hang")


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of the program since the run last got further than ever before (`behemoth.policy.failure` counts)."""

    num_same: int = 0
    """Failures in a row with the same signature."""
    num_any: int = 0
    best_step: int = -1
    """The furthest step when the latest failed: a run that exceeds it begins a new tally."""
    latest: Incident | None = None
    latest_step: int = -1
    """How far the attempt was that failed last."""


class SaveInFlight(msgspec.Struct, frozen=True, kw_only=True):
    """The one save that was announced and is neither committed nor given up."""

    step: Step
    write_id: WriteId
    attempt: Attempt
    is_last: bool
    state: SaveState = "called"
    reached_us: int | None = None
    """When the gang was first known to stand at its step: from then `save_limit_us` counts."""
    doom: str | None = None
    """Why it must be given up; None while it may still commit."""
    is_failure: bool = False
    """Whether its end counts as a failed save: one that a fault, a wish or a fast gang ended does not."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One run at `now_us`. Build it with `observe`, change it with `msgspec.structs.replace` and `with_node`."""

    config: RunConfig
    now_us: int
    opened_us: int
    epoch: Epoch = Epoch(0)
    term_us: int = 0

    nodes: Map[NodeId, Node] = Map()
    spares: Map[NodeId, int] = Map()
    """Index: present nodes without a slot -> order."""
    holders: Map[Slot, NodeId] = Map()
    """Index: who holds each slot; empty until placed."""
    vacant: Map[Slot, NodeId] = Map()
    """Index: slots whose holder is neither present nor may rejoin."""
    unknown: Map[NodeId, int] = Map()
    """Index: agents of the former term that have not rejoined."""
    due: Map[NodeId, int] = Map()
    """Index: absent nodes -> when to order their next agent."""
    coming: Map[NodeId, int] = Map()
    """Index: nodes whose agent has yet to join -> when it is overdue."""
    coming_check_us: int | None = None
    """No ordered agent is overdue before this time; the exact time costs a scan, which is made when it has come."""
    evicting: Map[NodeId, str] = Map()
    """Index: agents to be ended by force -> why."""
    late: Map[NodeId, int] = Map()
    """Index: present nodes that missed a beat -> the last one."""
    rejoin_by_us: int = 0
    placed_epoch: Epoch = Epoch(0)
    """The term in which the holders were last told as a whole."""
    waiting_since_us: int | None = None
    """Since when there are not nodes enough to go on."""

    attempt: Attempt = Attempt(0)
    gang: GangState = "none"
    gang_since_us: int = 0
    """When the gang came into this state."""
    watch_us: int = 0
    """Hang deadlines count from here at the earliest (a takeover is no hang)."""
    progress: Progress | None = None
    """The latest of this attempt."""
    best_step: Step = Step(0)
    step_us: int = 0
    """Estimated time per step of the gang, 0 when unknown."""
    step_times: StepTimes = StepTimes()
    incident: Incident | None = None
    tally: Tally = Tally()
    failures_seen: tuple[tuple[str, NodeId], ...] = ()
    """The latest 16 (signature, node): the same signature on two nodes is the program's fault."""
    start_message: str = ""

    save: SaveInFlight | None = None
    num_writes: int = 0
    lead_steps: int = 0
    """How many steps further ahead than the cadence asks a save is announced, learned from saves that came too late."""
    num_save_failures: int = 0
    num_last_failures: int = 0
    """How many of these were last saves."""
    aborted: tuple[WriteId, ...] = ()
    """The latest 16 that were given up; a commit of one of them may still turn up."""
    save_message: str = ""
    saved_us: int = 0
    """When the last save was announced; intervals count from it."""
    ending_step: Step | None = None
    """The step of the committed last save of this attempt, after which its workers end."""
    ended_us: int = 0
    """When that was committed."""

    commits: tuple[CommitRef, ...] = ()
    """Intact commits in step order, one per step."""
    are_commits_known: bool = False
    """Whether the store was listed in this term."""
    commits_of_term: tuple[CommitRef, ...] = ()
    """Committed in this term before the store was listed."""
    rejected: frozenset[WriteId] = frozenset()
    rejecting: tuple[CommitRef, str] | None = None
    expired: tuple[CommitRef, ...] = ()
    """Index: what retention no longer wants and nobody was told to delete."""
    deleting: frozenset[WriteId] = frozenset()
    pinned: frozenset[WriteId] = frozenset()
    """What somebody has pinned in the store, as it was last read there."""
    restore: CommitRef | None = None
    """What the present attempt restored."""

    asked: Literal["suspend", "stop"] | None = None
    outcome: Outcome | None = None
    close_reason: str = ""

    @property
    def fence(self) -> Fence:
        return Fence(run_uid=self.config.run_uid, epoch=self.epoch, attempt=self.attempt)

    @property
    def num_ranks(self) -> int:
        return self.config.num_slots * self.config.ranks_per_node

    @property
    def newest_commit(self) -> CommitRef | None:
        return self.commits[-1] if self.commits else None

    @property
    def is_done(self) -> bool:
        """Whether the last step is committed."""
        return bool(self.commits) and self.commits[-1].step >= self.config.total_steps

    @property
    def is_gang_active(self) -> bool:
        return self.gang in ("starting", "restoring", "training")


def observe(config: RunConfig, now_us: int) -> Observation:
    """A run that was just opened: every node is absent and due at once."""
    nodes = Map({name: Node(order=order, due_us=now_us) for order, name in enumerate(config.nodes)})
    due = Map(dict.fromkeys(nodes, now_us))
    return Observation(config=config, now_us=now_us, opened_us=now_us, nodes=nodes, due=due)


_Entry = tuple[Any, Any]
_INDEXES: tuple[tuple[str, Callable[[NodeId, Node], _Entry | None]], ...] = (
    ("spares", lambda name, n: (name, n.order) if n.state == "present" and n.slot is None else None),
    ("holders", lambda name, n: (n.slot, name) if n.slot is not None else None),
    ("vacant", lambda name, n: (n.slot, name) if n.slot is not None and n.state in ("absent", "coming") else None),
    ("unknown", lambda name, n: (name, n.order) if n.state == "unknown" else None),
    ("due", lambda name, n: (name, n.due_us) if n.due_us is not None else None),
    ("coming", lambda name, n: (name, n.overdue_us) if n.overdue_us is not None else None),
    ("evicting", lambda name, n: (name, n.evict) if n.evict is not None else None),
    ("late", lambda name, n: (name, n.late_us) if n.late_us is not None else None),
)


def with_node(obs: Observation, name: NodeId, node: Node) -> Observation:
    """`obs` with this node changed and every index kept, in O(log n)."""
    old = obs.nodes[name]
    changes: dict[str, Any] = {"nodes": obs.nodes.set(name, node)}
    for index, entry_of in _INDEXES:
        before, after = entry_of(name, old), entry_of(name, node)
        if before != after:
            changes[index] = _moved(getattr(obs, index), before, after)
    return msgspec.structs.replace(obs, **changes)


def _moved(index: Map[Any, Any], before: _Entry | None, after: _Entry | None) -> Map[Any, Any]:
    if before is not None and index.get(before[0]) == before[1]:
        index = index.delete(before[0])
    return index if after is None else index.set(after[0], after[1])


def indexes_of(obs: Observation) -> dict[str, Map[Any, Any]]:
    """Every node index by a full scan, by name: equal to the fields of `obs`, or there is a bug."""
    found: dict[str, dict[Any, Any]] = {index: {} for index, _ in _INDEXES}
    for name, node in obs.nodes.items():
        for index, entry_of in _INDEXES:
            entry = entry_of(name, node)
            if entry is not None:
                found[index][entry[0]] = entry[1]
    return {index: Map(entries) for index, entries in found.items()}
