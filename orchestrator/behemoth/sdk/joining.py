"""How a training program joins its run: over the socket that its agent passed to this process, or as a world of one.

The only file of `sdk` that reads the environment. The neighbour is `run`, which is what the program gets.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys

from behemoth.base.errors import Conflict, Internal, Invalid
from behemoth.base.ids import Rank
from behemoth.sdk.place import Place, RankMesh, lone_place
from behemoth.sdk.run import Run, Session
from behemoth.spec.mesh import Mesh
from behemoth.wire.ends import Peer
from behemoth.wire.frames import PROTOCOL_MAJOR, PROTOCOL_MINOR
from behemoth.wire.session import DUMP_SIGNAL, TO_WORKER, WORKER_FD_VARIABLE, Assigned, Join, Refusal

JOIN_LIMIT_S = 60.0

_has_joined = False
"""Whether `join` was called in this process: the first call removes the variable that names the socket."""


def join() -> Run:
    """Join the run that started this process; outside a run, a world of one (or torchrun's world, without saves).

    Blocks until the agent answers, for at most JOIN_LIMIT_S. Raises Invalid when the agent refuses, Timeout when it
    does not answer, and Conflict for a second call in a run."""
    global _has_joined
    if _has_joined:
        raise Conflict(
            "join: expected one call in this process, got a second",
            hint="pass the Run that the first call returned to whoever needs it",
            code="joined-twice",
        )
    fd = os.environ.pop(WORKER_FD_VARIABLE, "")
    if not fd:
        return Run(lone_place(os.environ), None)
    _has_joined = True
    sock = socket.socket(fileno=int(fd))
    sock.set_inheritable(False)
    _write_stacks_on_signal()
    peer = Peer(sock, TO_WORKER)
    peer.send(Join(major=PROTOCOL_MAJOR, minor=PROTOCOL_MINOR), timeout_s=JOIN_LIMIT_S)
    answer = peer.receive(timeout_s=JOIN_LIMIT_S, what="join")
    if isinstance(answer, Refusal):
        raise Invalid(answer.reason, hint=answer.hint)
    if not isinstance(answer, Assigned):
        raise Internal(f"session: expected Assigned, got {type(answer).__name__}")
    return Run(_place(answer), Session(peer, answer))


def _place(assigned: Assigned) -> Place:
    mesh = Mesh(**assigned.mesh)
    return Place(
        rank=Rank(assigned.rank),
        world_size=assigned.world_size,
        local_rank=assigned.local_rank,
        mesh=RankMesh(sizes=mesh, rank=Rank(assigned.rank)),
        args=assigned.args,
        total_steps=assigned.total_steps,
        attempt=assigned.attempt,
        sharding=assigned.sharding,
    )


def _write_stacks_on_signal() -> None:
    """Print the stacks of all threads on DUMP_SIGNAL, which the agent sends to a hung worker before it kills it. Uses
    the real stderr, which the agent reads: a program may have replaced sys.stderr by something without a descriptor."""
    stream = sys.__stderr__
    if stream is not None:
        faulthandler.register(DUMP_SIGNAL, file=stream, all_threads=True, chain=False)
