"""What the coordinator says to agents: welcome, the rank table, saves, the end.

Commands carry their fence; an agent refuses one that is stale and says so. Values only. The neighbour `reports` is the
other direction.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from behemoth.base.ids import Epoch, NodeId, Step, WriteId
from behemoth.state.fence import Fence
from behemoth.wire.message import Message
from behemoth.wire.setup import Setup


class Welcome(Message, frozen=True, kw_only=True):
    """The agent is in. Anything of an older epoch is stale from now on."""

    minor: int
    epoch: Epoch
    beat_interval_us: int
    setup: Setup


class Rejected(Message, frozen=True, kw_only=True):
    """The agent must end: it will never be welcome with these credentials or this version."""

    code: str
    reason: str


class RestoreFrom(Message, frozen=True, kw_only=True):
    """A committed checkpoint."""

    step: Step
    write_id: WriteId


class PeerPlace(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Where a node listens for its peers; port 0: nowhere that anybody knows. `domain` is its failure domain."""

    host: str
    port: int
    domain: int


class StartGang(Message, frozen=True, kw_only=True):
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
    """Indexed by slot, like `nodes`."""
    record_bytes: int = 0
    """Size of the commit record of `restore`, so that nodes read it by name instead of listing commits; 0: unknown."""


class StopGang(Message, frozen=True, kw_only=True):
    """End all workers of the attempt by force; answer RanksGone."""

    fence: Fence
    reason: str
    dump_stacks: bool = False


class SaveAt(Message, frozen=True, kw_only=True):
    """Save when `step` is completed. See `behemoth.state.effect.Save`."""

    fence: Fence
    step: Step
    write_id: WriteId
    is_last: bool = False


class GoAhead(Message, frozen=True, kw_only=True):
    """Every rank knows of the last save: those that wait at its step save and end."""

    fence: Fence
    write_id: WriteId


class CommitSeen(Message, frozen=True, kw_only=True):
    """The write is committed: receipts may go, the snapshot in memory is the one to restore from."""

    fence: Fence
    step: Step
    write_id: WriteId


class AbortSave(Message, frozen=True, kw_only=True):
    """The write is given up; ranks that wait for it go on."""

    fence: Fence
    write_id: WriteId
    reason: str


class Leave(Message, frozen=True, kw_only=True):
    """The run is over here, or the agent was evicted: end all workers and exit with 0. `is_run_over`: it has succeeded,
    so nobody will take it up again."""

    reason: str
    is_run_over: bool = False


Command: TypeAlias = Welcome | Rejected | StartGang | StopGang | SaveAt | GoAhead | CommitSeen | AbortSave | Leave
