"""Restores a rank's state: the rank declares what it holds, the agent says where the bytes are, and they are copied
into the program's arrays.

Neighbours: `run`, which calls this once, `state` (the program's memory), `files` (out of the page cache),
`cold_files` (from the disk), and `behemoth.checkpoint.staging` (out of the agent's memory).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from behemoth.base.errors import BehemothError, Corrupt, Internal, Invalid, Unavailable
from behemoth.base.ids import Rank
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.conversion import AS_SAVED, Intake
from behemoth.checkpoint.staging import unstage
from behemoth.sdk.cold_files import read_cold_files
from behemoth.sdk.files import read_files
from behemoth.sdk.state import BoundState
from behemoth.wire.ends import Peer
from behemoth.wire.session import Declare, Ready, Refusal, ToWorker


def restored(peer: Peer[ToWorker], bound: BoundState, intake: Intake, *, limit_s: float) -> tuple[Ready, Arena]:
    """Fill the state from the place that the agent names: staging memory, or files of this machine. When those bytes
    turn out damaged or unreadable, the agent is asked once more, and its store process reads and checks them.

    Blocks for the copy, and for at most `limit_s` for each answer. Returns the agent's answer and the mapped staging
    memory. Raises Invalid when the agent refuses, Corrupt when memory was damaged."""
    ready, arena = _fetch(peer, bound, intake, limit_s)
    try:
        _take_over(bound, arena, ready)
    except (Corrupt, Unavailable):
        if ready.is_checked:
            raise
        arena.close()
        ready, arena = _fetch(peer, bound, intake, limit_s, must_read=True)
        _take_over(bound, arena, ready)
    return ready, arena


def _fetch(
    peer: Peer[ToWorker], bound: BoundState, intake: Intake, limit_s: float, *, must_read: bool = False
) -> tuple[Ready, Arena]:
    declared = Declare(
        layout=bound.layout.encode(),
        digest=bound.layout.digest,
        arena_bytes=Arena.size_bytes(bound.plan),
        must_read=must_read,
        frozen=bound.frozen,
        intake=intake.encode() if intake != AS_SAVED else b"",
    )
    peer.send(declared, timeout_s=limit_s)
    answer = peer.receive(timeout_s=limit_s, what="the staging memory")
    if isinstance(answer, Refusal):
        raise Invalid(answer.reason, hint=answer.hint)
    if not isinstance(answer, Ready):
        raise Internal(f"session: expected Ready, got {type(answer).__name__}")
    fd = peer.take_descriptor()
    try:
        with _restoring(bound.plan.rank):
            arena = Arena.open(fd)
    finally:
        os.close(fd)
    bound.pin(arena)
    return answer, arena


def _take_over(bound: BoundState, arena: Arena, ready: Ready) -> None:
    with _restoring(bound.plan.rank):
        if ready.folder:
            read = read_cold_files if ready.is_cold else read_files
            read(ready.folder, bound.layout, bound.plan, bound.targets(), threads=ready.threads)
        elif ready.generation is not None:
            _copy_out(bound, arena, ready.generation, ready)
        else:
            return
        bound.read_records(left_out=ready.left_out)


@contextmanager
def _restoring(rank: Rank) -> Iterator[None]:
    """Errors inside end the worker: they say whose they are, and in which stage."""
    try:
        yield
    except BehemothError as error:
        raise error.within(f"rank {rank}, restoring") from error


def _copy_out(bound: BoundState, arena: Arena, generation: int, ready: Ready) -> None:
    snapshot = unstage(
        arena,
        bound.plan,
        generation,
        bound.targets(),
        threads=ready.threads,
        is_checked=ready.is_checked,
        left_out=ready.left_out,
    )
    if snapshot.step != ready.step:
        raise Corrupt(f"arena: expected a snapshot of step {ready.step}, got one of step {snapshot.step}")
