"""The agent's end of one rank, played by a test."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from itertools import groupby
from typing import TypeVar

import numpy as np

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.sdk import Run, State
from behemoth.sdk.joining import _place
from behemoth.sdk.run import Session
from behemoth.wire.ends import Peer, send_with
from behemoth.wire.frames import encode_frame
from behemoth.wire.session import (
    FROM_WORKER,
    TO_WORKER,
    Assigned,
    Declare,
    FromWorker,
    Grant,
    InPhase,
    Proceed,
    Ready,
    SaveDue,
    SaveSafe,
)

M = TypeVar("M")
LIMIT_S = 20.0


def nothing_held(arena: Arena, plan: RankPlan) -> Ready:  # noqa: ARG001
    return Ready(step=Step(0), generation=None)


class Agent:
    """The agent's end of one rank, which trains a single array or holds `state`, and the rank's run. `holding` fills
    the fresh staging memory, and says what the rank is told of it."""

    def __init__(
        self,
        *,
        frozen: bool = False,
        state: State | None = None,
        holding: Callable[[Arena, RankPlan], Ready] = nothing_held,
    ) -> None:
        self.weight = np.zeros(1000)
        self.state = state or State()
        if state is None:
            self.state.array("bias", np.zeros(3), shape=(3,))
            self.state.array("weight", self.weight, shape=(1000,), frozen=frozen)
        self._holding = holding
        mine, theirs = socket.socketpair()
        self._sock = mine
        self.peer: Peer[FromWorker] = Peer(mine, FROM_WORKER)
        self.heard: list[FromWorker] = []
        assigned = Assigned(
            rank=Rank(0),
            world_size=1,
            local_rank=0,
            attempt=Attempt(1),
            mesh={},
            args={},
            total_steps=Step(100),
            wait_limit_us=int(LIMIT_S * 1e6),
        )
        self.run = Run(_place(assigned), Session(Peer(theirs, TO_WORKER), assigned))
        self._theirs = theirs
        self._fd = os.memfd_create("test-saver")
        restoring = threading.Thread(target=self._restore, name="agent")
        restoring.start()
        self.run.restore(self.state)
        restoring.join(LIMIT_S)
        self.arena = Arena.open(self._fd)

    def _restore(self) -> None:
        """Answers the declaration with fresh staging memory."""
        self.declared = self.next(Declare)
        self.plan = plan_rank(Layout.decode(self.declared.layout), Rank(0))
        arena = Arena.format(self._fd, self.plan)
        ready = self._holding(arena, self.plan)
        arena.close()
        send_with(self._sock, encode_frame(ready), [self._fd])

    def call(self, step: int, write_id: str, generation: int | None = 0) -> None:
        """Announces a save in passing, and grants it memory; None: nothing is free."""
        self.peer.send(SaveDue(step=Step(step), write_id=WriteId(write_id), is_last=False), timeout_s=LIMIT_S)
        if generation is not None:
            self.grant(write_id, generation)

    def grant(self, write_id: str, generation: int) -> None:
        self.peer.send(Grant(write_id=WriteId(write_id), generation=generation), timeout_s=LIMIT_S)

    def end(self, step: int, write_id: str = "a1-last") -> None:
        """Announces the last save, and all that its rank will wait for: the rank hears it one after the other."""
        last = WriteId(write_id)
        self.peer.send(SaveDue(step=Step(step), write_id=last, is_last=True), timeout_s=LIMIT_S)
        for message in (Grant(write_id=last, generation=0), Proceed(write_id=last), SaveSafe(write_id=last)):
            self.peer.send(message, timeout_s=LIMIT_S)

    def next(self, kind: type[M]) -> M:
        """The next message of this kind; others before it are kept in `heard`."""
        while True:
            message = self.peer.receive(timeout_s=LIMIT_S, what=kind.__name__)
            self.heard.append(message)
            if isinstance(message, kind):
                return message

    def until_phase(self, phase: str) -> None:
        """Wait for the word that the rank has entered it."""
        while self.next(InPhase).phase != phase:
            pass

    def has_said(self, *kinds: type) -> bool:
        while (message := self.peer.poll()) is not None:
            self.heard.append(message)
        return any(isinstance(message, kinds) for message in self.heard)

    def phases(self) -> list[str]:
        """Those that the rank has told so far, without repetitions."""
        self.has_said()
        told = [message.phase for message in self.heard if isinstance(message, InPhase)]
        return [phase for phase, _ in groupby(told)]

    def close(self) -> None:
        self.arena.close()
        self.peer.close()
        self._theirs.close()
        os.close(self._fd)
