"""What the agent and its fork server say to each other: orders down, reports up.

Values only; both ends come from one installation, so there is no handshake. The neighbour `storewire` is the same for
the store process.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from behemoth.base.hidden import repr_without
from behemoth.base.ids import Attempt
from behemoth.wire.message import Message


class Warm(Message, frozen=True, kw_only=True):
    """Import these modules, in order; Warmed or WarmFailed answers."""

    modules: tuple[str, ...]


class Spawn(Message, frozen=True, kw_only=True):
    """Fork one worker; Spawned or SpawnFailed answers. Carries two descriptors: where its output goes, and its end of
    the session. Exactly one of `entrypoint` and `argv` is set: a function to call, or a program to execute."""

    attempt: Attempt
    local_rank: int
    environment: dict[str, str]
    entrypoint: str | None = None
    argv: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return repr_without(self, "environment")


class KillAll(Message, frozen=True, kw_only=True):
    """End every worker and its process group by force; each is told by Exited."""


class SignalAll(Message, frozen=True, kw_only=True):
    """Send a signal to every worker and wake those that are stopped, so that they can handle it."""

    signal: int


Order: TypeAlias = Warm | Spawn | KillAll | SignalAll


class Warmed(Message, frozen=True, kw_only=True):
    """All modules are imported."""


class WarmFailed(Message, frozen=True, kw_only=True):
    """An import failed; the fork server ends."""

    reason: str
    trace: str


class Spawned(Message, frozen=True, kw_only=True):
    """The worker runs, as leader of its own session and process group `pid`."""

    attempt: Attempt
    local_rank: int
    pid: int


class SpawnFailed(Message, frozen=True, kw_only=True):
    """No worker was started."""

    attempt: Attempt
    local_rank: int
    reason: str


class Exited(Message, frozen=True, kw_only=True):
    """The worker has ended and nothing of its process group is left. One of `exit_code` and `signal` is set."""

    attempt: Attempt
    local_rank: int
    pid: int
    exit_code: int | None = None
    signal: int | None = None


ForkReport: TypeAlias = Warmed | WarmFailed | Spawned | SpawnFailed | Exited

ORDERS: Final = msgspec.msgpack.Decoder(Order)
FORK_REPORTS: Final = msgspec.msgpack.Decoder(ForkReport)
