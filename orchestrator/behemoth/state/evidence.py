"""Evidence: what bodies tell the brain. Facts only, as deltas; a fact may come twice, late, or out of order.

Beats and steps are not evidence one by one: a Tick says once in a while who is late and how far the gang is. What
4,000 agents report alike (all ranks up, all receipts in) the body counts against the rank table that it broadcast,
and tells once. Values are msgspec structs (docs/design/001): the journal decodes them strictly and without pickle.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, Step, WriteId
from behemoth.state.config import RunConfig, WorkPhase
from behemoth.state.effect import CommitRef, Effect


class _Evidence(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of the union; adds the class name as tag `type`."""


class RunOpened(_Evidence, frozen=True, kw_only=True):
    """The first line of every journal."""

    config: RunConfig


class TermBegan(_Evidence, frozen=True, kw_only=True):
    """A coordinator took over with a higher epoch. Agents of the former term have yet to rejoin."""

    epoch: Epoch


class CommitsFound(_Evidence, frozen=True, kw_only=True):
    """What the store holds, by its own word: intact commits in step order. Told at every term's begin, since the
    journal may lag behind the store.

    `others`, told when a run begins: all writes of which something is there, a commit or not. They are another run's,
    and their ids are not used again."""

    commits: tuple[CommitRef, ...]
    others: tuple[WriteId, ...] = ()


class NodeJoined(_Evidence, frozen=True, kw_only=True):
    """An agent finished its handshake. `attempt` is the attempt whose workers it still runs, 0 for none."""

    node: NodeId
    incarnation: int
    attempt: Attempt


class NodeLost(_Evidence, frozen=True, kw_only=True):
    """The agent's connection broke and did not return within the body's reconnect time, or the runtime reported the
    machine gone. Silence alone is told by Tick.late instead."""

    node: NodeId
    incarnation: int
    reason: str


class ProvisionFailed(_Evidence, frozen=True, kw_only=True):
    """The runtime could not start this agent."""

    node: NodeId
    incarnation: int
    reason: str


class Late(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A joined agent that has not beaten since `since_us` (the coordinator's clock)."""

    node: NodeId
    since_us: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the gang of `attempt` is: every rank has completed `step`; the last one did so at `at_us` (when
    the coordinator heard it). `phase` is what the slowest rank is doing, since `phase_since_us`."""

    attempt: Attempt
    step: Step
    furthest_step: Step
    at_us: int
    phase: WorkPhase
    phase_since_us: int
    slowest_step_us: int
    """Longest step of any rank since the last Progress; 0 when no step was completed."""
    stall_us: int
    """Time that ranks spent blocked in saves during this attempt, summed over ranks."""
    next_report_by_us: int | None = None
    """The body's promise that the gang goes on as before until then and that it reports by then. None, as real bodies
    say it: a Progress is told whenever something changed, so silence is no step (`behemoth.policy.hang`)."""


class Tick(_Evidence, frozen=True, kw_only=True):
    """One line per tick. `late` lists all joined agents that missed a beat, so an absent one has beaten. `progress`
    is there when it changed since the last line. The body also sends one at once when the first step after a start
    completes."""

    late: tuple[Late, ...] = ()
    progress: Progress | None = None
    awake_us: int | None = None
    """Set when the body itself was away until then (stopped, or held up): it says nothing of silence before that."""


class GangUp(_Evidence, frozen=True, kw_only=True):
    """Every worker of the attempt runs and has joined."""

    attempt: Attempt


class GangRestored(_Evidence, frozen=True, kw_only=True):
    """Every rank has its state back and stands at `step` completed steps. `num_from_memory` counts ranks that were
    restored from their own node's memory, `num_from_peer` those from other nodes', `num_from_disk` those from their own
    node's disk, `num_from_several` those of which parts came from places of different kinds; the rest came from the
    store, of which the fleet read `store_bytes`. `missed` says why, where nearer places were asked."""

    attempt: Attempt
    step: Step
    num_from_memory: int
    num_from_peer: int = 0
    num_from_disk: int = 0
    num_from_several: int = 0
    peer_bytes: int = 0
    disk_bytes: int = 0
    store_bytes: int = 0
    missed: str = ""


class GangMismatched(_Evidence, frozen=True, kw_only=True):
    """What ranks of the attempt on `node` declare cannot be, nor at another attempt: other arrays than their peers, so
    that no save could commit, or more staging memory than a node may hold."""

    attempt: Attempt
    node: NodeId
    reason: str


class GangGone(_Evidence, frozen=True, kw_only=True):
    """No worker process of the attempt is left on any node that still answers."""

    attempt: Attempt


class GangFinished(_Evidence, frozen=True, kw_only=True):
    """Every worker of the attempt ended with exit code 0."""

    attempt: Attempt


class WorkerFailed(_Evidence, frozen=True, kw_only=True):
    """A worker ended that should not have, or ended with an error. `last_lines` is the tail of its output. `quiet_us`:
    for how long the rank had completed no step and entered no phase."""

    node: NodeId
    attempt: Attempt
    rank: Rank
    exit_code: int | None
    signal: int | None
    last_lines: str
    quiet_us: int | None = None


class RestoreFailed(_Evidence, frozen=True, kw_only=True):
    """A rank could not get `write_id` back. `is_corrupt`: the bytes are bad, so an older commit must serve;
    otherwise the store did not answer and the same one is tried again."""

    attempt: Attempt
    node: NodeId
    write_id: WriteId
    reason: str
    is_corrupt: bool
    is_unfit: bool = False
    """It is of another model, so that no attempt of this program can restore it."""


class SavePassed(_Evidence, frozen=True, kw_only=True):
    """A rank was already past the step named by Save; it stands at `step`."""

    attempt: Attempt
    write_id: WriteId
    step: Step


class SaveArmed(_Evidence, frozen=True, kw_only=True):
    """Every rank knows of the Save and none has passed its step."""

    attempt: Attempt
    write_id: WriteId


class SaveStaged(_Evidence, frozen=True, kw_only=True):
    """Every rank's copy is in its node's memory."""

    attempt: Attempt
    write_id: WriteId


class SaveWritten(_Evidence, frozen=True, kw_only=True):
    """Every receipt is in: the leader may commit."""

    attempt: Attempt
    write_id: WriteId


class SaveFailed(_Evidence, frozen=True, kw_only=True):
    """A rank, a store or the leader gave up on this write. Training goes on."""

    write_id: WriteId
    reason: str


class Committed(_Evidence, frozen=True, kw_only=True):
    """The commit exists in the store."""

    commit: CommitRef


class Deleted(_Evidence, frozen=True, kw_only=True):
    """These commits and their files are gone from the store. Those in `kept` were to go, and are there: their records
    cannot be read now, or they were given up beside a commit that was taken back since. Retention judges them anew with
    the next commit."""

    write_ids: tuple[WriteId, ...]
    kept: tuple[WriteId, ...] = ()


class Pinned(_Evidence, frozen=True, kw_only=True):
    """These writes, and no others, are pinned in the store: retention leaves their commits alone."""

    write_ids: tuple[WriteId, ...]


class Asked(_Evidence, frozen=True, kw_only=True):
    """The operator's wish. `suspend` saves and leaves the run resumable; `stop` saves, then ends it as cancelled."""

    request: Literal["suspend", "stop", "resume"]


class Decided(_Evidence, frozen=True, kw_only=True):
    """The brain's own decision, folded back before its effects are applied."""

    effects: tuple[Effect, ...]


Evidence: TypeAlias = (
    RunOpened
    | TermBegan
    | CommitsFound
    | NodeJoined
    | NodeLost
    | ProvisionFailed
    | Tick
    | GangUp
    | GangRestored
    | GangMismatched
    | GangGone
    | GangFinished
    | WorkerFailed
    | RestoreFailed
    | SavePassed
    | SaveArmed
    | SaveStaged
    | SaveWritten
    | SaveFailed
    | Committed
    | Deleted
    | Pinned
    | Asked
    | Decided
)
