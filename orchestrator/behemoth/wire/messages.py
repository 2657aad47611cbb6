"""What agents and the coordinator say to each other: reports go up, commands come down.

Values only. Commands carry their fence; an agent refuses one that is stale and says so. Everything per rank that is
alike on a node travels as one message per node. The neighbour `session` is the other wire, between agent and worker.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from behemoth.base.hidden import repr_without
from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, RunUid, Step, WriteId
from behemoth.state.config import HangFloors, WorkPhase
from behemoth.state.fence import Fence


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of both unions; unknown fields of a higher minor version are ignored."""


# Reports: agent -> coordinator


class Hello(_Message, frozen=True, kw_only=True):
    """First frame of a connection. `token` proves that the coordinator's run started this agent. After a reconnect it
    also tells what is still here: the attempt whose workers run (0: none)."""

    major: int
    minor: int
    run_uid: RunUid
    node: NodeId
    incarnation: int
    token: str
    host: str
    """Address at which this node's workers listen for their peers."""
    rendezvous_port: int
    """A port kept free on `host` for the next attempt's MASTER_PORT."""
    attempt: Attempt
    peer_port: int = 0
    """Where on `host` other nodes ask for what lies in this node's memory (`behemoth.wire.peers`); 0: nowhere."""

    def __repr__(self) -> str:
        return repr_without(self, "token")


class OwnDisk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a node's own disk is. `trouble`: no-space, failed, slow, unreadable, or a kind that a newer agent knows;
    empty: it holds whole copies of the newest checkpoint."""

    trouble: str = ""
    reason: str = ""
    """What is wrong, and what to do about it."""


class Beat(_Message, frozen=True, kw_only=True):
    """Alive, and how far: sent every beat interval, and at once when all ranks completed the attempt's first step.
    `step` is the least completed by any rank of the node, `furthest_step` the most."""

    attempt: Attempt
    step: Step
    furthest_step: Step
    phase: WorkPhase
    phase_age_us: int
    """For how long the slowest rank has been in `phase` or, in phase `step`, without completing one."""
    slowest_step_us: int
    stall_us: int
    rendezvous_port: int
    loss: float | None = None
    tokens: int = 0
    """Tokens this node's ranks have reported during the attempt."""
    own_disk: OwnDisk | None = None
    """None: the run uses none, or nothing was copied there yet."""


class RanksUp(_Message, frozen=True, kw_only=True):
    """All workers of the node run and have joined."""

    attempt: Attempt


class RanksRestored(_Message, frozen=True, kw_only=True):
    """All ranks of the node stand at `step`. `layout`: digest of the arrays that they declare, alike."""

    attempt: Attempt
    step: Step
    num_from_memory: int
    layout: str = ""
    num_from_peer: int = 0
    """Ranks whose state came out of other nodes' memory."""
    num_from_disk: int = 0
    """Ranks whose state came from their node's own disk."""
    num_from_several: int = 0
    """Ranks of which parts came from places of different kinds, as from other nodes' memory and from the store."""
    peer_bytes: int = 0
    disk_bytes: int = 0
    store_bytes: int = 0
    """Read from the store, metadata and what is read for CRCs included."""
    missed: str = ""
    """Why a rank's state, or a part of it, came from the store and not from a nearer place that was asked for it."""


class RanksGone(_Message, frozen=True, kw_only=True):
    """No worker process of the attempt is left on this node."""

    attempt: Attempt


class RanksFinished(_Message, frozen=True, kw_only=True):
    """All workers of the node ended with exit code 0."""

    attempt: Attempt


class WorkerEnded(_Message, frozen=True, kw_only=True):
    """A worker ended with an error, by a signal, or with 0 while its peers still train. Exactly one of `exit_code`
    and `signal` is set."""

    attempt: Attempt
    rank: Rank
    exit_code: int | None = None
    signal: int | None = None
    last_lines: str = ""
    quiet_us: int = 0
    """How long before this report the rank last completed a step or entered a phase."""


class RestoreRefused(_Message, frozen=True, kw_only=True):
    """A rank of the node could not be restored from `write_id`."""

    attempt: Attempt
    write_id: WriteId
    reason: str
    is_corrupt: bool
    is_unfit: bool = False


class ProgramRefused(_Message, frozen=True, kw_only=True):
    """What a rank of the node declares cannot be had, whatever attempt asks for it: arrays that are not those of its
    peers, or more staging memory than the node may hold."""

    attempt: Attempt
    reason: str


class SaveReached(_Message, frozen=True, kw_only=True):
    """All ranks of the node reached this stage of the save."""

    attempt: Attempt
    write_id: WriteId
    stage: Literal["armed", "staged"]


class SaveMissed(_Message, frozen=True, kw_only=True):
    """A rank of the node was already past the step; `step` is where it stands."""

    attempt: Attempt
    write_id: WriteId
    step: Step


class ReceiptBatch(_Message, frozen=True, kw_only=True):
    """Receipts of the node's ranks, as `behemoth.checkpoint.receipt` encodes them, told again to a coordinator that
    comes back until the commit is seen. `num_ranks` is how many the node owes in all for this write; slot 0 also sends
    the layout."""

    attempt: Attempt
    write_id: WriteId
    num_ranks: int
    receipts: tuple[bytes, ...]
    layout: bytes | None = None


class SaveBroken(_Message, frozen=True, kw_only=True):
    """The node gave this write up."""

    attempt: Attempt
    write_id: WriteId
    reason: str


class Refused(_Message, frozen=True, kw_only=True):
    """A command was not obeyed; `fence` is the newest that the agent has seen."""

    command: str
    fence: Fence
    reason: str


Report: TypeAlias = (
    Hello
    | Beat
    | RanksUp
    | RanksRestored
    | RanksGone
    | RanksFinished
    | WorkerEnded
    | RestoreRefused
    | ProgramRefused
    | SaveReached
    | SaveMissed
    | ReceiptBatch
    | SaveBroken
    | Refused
)


# Commands: coordinator -> agent


class EntrypointWork(_Message, frozen=True, kw_only=True):
    """A python function that the fork server calls in every worker; `preload` is imported before any fork."""

    entrypoint: str
    preload: tuple[str, ...]


class CommandWork(_Message, frozen=True, kw_only=True):
    """A program that is executed anew in every worker."""

    argv: tuple[str, ...]


class LocalDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of each node, to which it copies what its ranks have committed. `budget_bytes`: most of one node there."""

    path: str
    rate_bytes_per_s: int | None = None
    budget_bytes: int | None = None


class Setup(_Message, frozen=True, kw_only=True):
    """What stays the same for the life of a run. `environment` may hold secrets: it is never logged."""

    work: EntrypointWork | CommandWork
    args: dict[str, bool | int | float | str]
    environment: dict[str, str]
    total_steps: Step
    mesh: dict[str, int]
    ranks_per_node: int
    store_url: str
    sharding: Literal["array", "box"] = "array"
    """How the store's layouts are sharded (`Layout.sharding`)."""
    run_name: str
    log_dir: str
    io_threads: int
    hang_floors: HangFloors
    coordinator_grace_us: int | None
    """How long workers go on without a coordinator; None: for ever."""
    max_log_bytes: int
    """Per rank and attempt; older output beyond it is dropped, never the newest."""
    peer_key: str = ""
    """What nodes of the run prove themselves to each other with; a secret. Empty: they do not talk."""
    peer_copies: int = 0
    """How many nodes hold a copy of each node's staged checkpoint (`behemoth.policy.peers`)."""
    staging_budget: int | None = None
    """Most bytes of staging memory on a node, copies included."""
    peer_stride: int = 1
    """Nodes of a failure domain."""
    peer_rate: int | None = None
    """Most bytes a second that a node takes for copies."""
    share_reads: Literal["auto", "always", "never"] = "never"
    """Whether each part of a checkpoint is read from the store by one node and passed on to the others."""
    local_disk: LocalDisk | None = None

    def __repr__(self) -> str:
        return repr_without(self, "environment", "peer_key")


class Welcome(_Message, frozen=True, kw_only=True):
    """The agent is in. Anything of an older epoch is stale from now on."""

    minor: int
    epoch: Epoch
    beat_interval_us: int
    setup: Setup


class Rejected(_Message, frozen=True, kw_only=True):
    """The agent must end: it will never be welcome with these credentials or this version."""

    code: str
    reason: str


class RestoreFrom(_Message, frozen=True, kw_only=True):
    """A committed checkpoint."""

    step: Step
    write_id: WriteId


class PeerPlace(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Where a node listens for its peers; port 0: nowhere that anybody knows. `domain` is its failure domain."""

    host: str
    port: int
    domain: int


class StartGang(_Message, frozen=True, kw_only=True):
    """The rank table, sent to every agent alike: `nodes[slot]`. Agents in it end workers of older attempts by force and
    start their own; agents that are not in it end whatever they run. `dump_stacks`: the old workers hang, so their
    Python stacks are written to their logs before they die."""

    fence: Fence
    nodes: tuple[NodeId, ...]
    master_host: str
    master_port: int
    restore: RestoreFrom | None
    dump_stacks: bool = False
    peers: tuple[PeerPlace, ...] = ()
    """By slot, as `nodes`."""
    record_bytes: int = 0
    """Size of the commit record of `restore`, so that nodes read it by name instead of listing commits; 0: unknown."""


class StopGang(_Message, frozen=True, kw_only=True):
    """End all workers of the attempt by force; answer RanksGone."""

    fence: Fence
    reason: str
    dump_stacks: bool = False


class SaveAt(_Message, frozen=True, kw_only=True):
    """Save when `step` is completed. See `behemoth.state.effect.Save`."""

    fence: Fence
    step: Step
    write_id: WriteId
    is_last: bool = False


class GoAhead(_Message, frozen=True, kw_only=True):
    """Every rank knows of the last save: those that wait at its step save and end."""

    fence: Fence
    write_id: WriteId


class CommitSeen(_Message, frozen=True, kw_only=True):
    """The write is committed: receipts may go, the snapshot in memory is the one to restore from."""

    fence: Fence
    step: Step
    write_id: WriteId


class AbortSave(_Message, frozen=True, kw_only=True):
    """The write is given up; ranks that wait for it go on."""

    fence: Fence
    write_id: WriteId
    reason: str


class Leave(_Message, frozen=True, kw_only=True):
    """The run is over here, or the agent was evicted: end all workers and exit with 0. `is_run_over`: it has succeeded,
    so nobody will take it up again."""

    reason: str
    is_run_over: bool = False


Command: TypeAlias = Welcome | Rejected | StartGang | StopGang | SaveAt | GoAhead | CommitSeen | AbortSave | Leave
