"""What agents say to the coordinator: who they are, how far their ranks are, what became of its commands.

Everything per rank that is alike on a node travels as one message per node. Values only. The neighbour `commands` is
the other direction.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from behemoth.base.hidden import repr_without
from behemoth.base.ids import Attempt, NodeId, Rank, RunUid, Step, WriteId
from behemoth.state.config import WorkPhase
from behemoth.state.fence import Fence
from behemoth.wire.message import Message


class Hello(Message, frozen=True, kw_only=True):
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


class DiskState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a node's own disk is. `trouble`: no-space, failed, slow, unreadable, or a kind that a newer agent knows;
    empty: it holds whole copies of the newest checkpoint."""

    trouble: str = ""
    reason: str = ""
    """What is wrong, and what to do about it."""


class Beat(Message, frozen=True, kw_only=True):
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
    own_disk: DiskState | None = None
    """None: the run uses none, or nothing was copied there yet."""


class RanksUp(Message, frozen=True, kw_only=True):
    """All workers of the node run and have joined."""

    attempt: Attempt


class RanksRestored(Message, frozen=True, kw_only=True):
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


class RanksGone(Message, frozen=True, kw_only=True):
    """No worker process of the attempt is left on this node."""

    attempt: Attempt


class RanksFinished(Message, frozen=True, kw_only=True):
    """All workers of the node ended with exit code 0."""

    attempt: Attempt


class WorkerEnded(Message, frozen=True, kw_only=True):
    """A worker ended with an error, by a signal, or with 0 while its peers still train. Exactly one of `exit_code`
    and `signal` is set."""

    attempt: Attempt
    rank: Rank
    exit_code: int | None = None
    signal: int | None = None
    last_lines: str = ""
    quiet_us: int = 0
    """How long before this report the rank last completed a step or entered a phase."""


class RestoreRefused(Message, frozen=True, kw_only=True):
    """A rank of the node could not be restored from `write_id`."""

    attempt: Attempt
    write_id: WriteId
    reason: str
    is_corrupt: bool
    is_unfit: bool = False


class ProgramRefused(Message, frozen=True, kw_only=True):
    """What a rank of the node declares cannot be had, whatever attempt asks for it: arrays that are not those of its
    peers, or more staging memory than the node may hold."""

    attempt: Attempt
    reason: str


class SaveReached(Message, frozen=True, kw_only=True):
    """All ranks of the node reached this stage of the save."""

    attempt: Attempt
    write_id: WriteId
    stage: Literal["armed", "staged"]


class SaveMissed(Message, frozen=True, kw_only=True):
    """A rank of the node was already past the step; `step` is where it stands."""

    attempt: Attempt
    write_id: WriteId
    step: Step


class ReceiptBatch(Message, frozen=True, kw_only=True):
    """Receipts of the node's ranks, as `behemoth.checkpoint.receipt` encodes them, told again to a coordinator that
    comes back until the commit is seen. `num_ranks` is how many the node owes in all for this write; slot 0 also sends
    the layout."""

    attempt: Attempt
    write_id: WriteId
    num_ranks: int
    receipts: tuple[bytes, ...]
    layout: bytes | None = None


class SaveBroken(Message, frozen=True, kw_only=True):
    """The node gave this write up."""

    attempt: Attempt
    write_id: WriteId
    reason: str


class Refused(Message, frozen=True, kw_only=True):
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
