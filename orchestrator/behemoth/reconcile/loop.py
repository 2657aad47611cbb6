"""The loop that a real body runs: evidence in, journal, decide, journal, effects out, sleep.

It contains no policy and no I/O of its own. The order of its lines is the crash safety of the run: what was decided is
in the journal, durably, before anything of it is applied; a process that dies in between is followed by one that folds
the same journal and decides the same. Neighbours: `fold`, `decide`; `behemoth.app.body` applies effects.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol

from behemoth.base.clock import Clock
from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.reconcile.journal import encode_line
from behemoth.state.decision import Decision
from behemoth.state.effect import Effect
from behemoth.state.evidence import Decided, Evidence, Tick
from behemoth.state.observation import Observation

MAX_SLEEP_S = 60.0
"""Upper bound of one sleep, so that a clock that jumps cannot put the loop to sleep for ever."""

_log = logging.getLogger(__name__)


class Journal(Protocol):
    """Two methods, because a decision needs durability and a beat does not."""

    def append(self, line: bytes) -> None: ...

    def sync(self) -> None:
        """Blocks until all lines survive the machine."""
        ...


class Body(Protocol):
    """What the loop needs of the world."""

    def look(self) -> Tick:
        """The present state of beats and progress, asked for when silence alone may matter."""
        ...

    def apply(self, effect: Effect) -> None:
        """Starts what the effect wants and returns at once; what comes of it is told as evidence."""
        ...

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        """Told of everything folded, the brain's own decisions included: for events and views."""
        ...


class Loop:
    """One term of one run. `observation` is what an earlier process left, None for a new run.

    `tell` may be called from any thread; everything else happens on the event loop that `run` runs on.
    """

    def __init__(self, *, clock: Clock, journal: Journal, body: Body, observation: Observation | None) -> None:
        self.observation = observation
        self.decision: Decision | None = None
        self._clock = clock
        self._journal = journal
        self._body = body
        self._inbox: deque[Evidence] = deque()
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def tell(self, evidence: Evidence) -> None:
        """Never blocks. Facts are folded in the order in which they are told."""
        self._inbox.append(evidence)
        self._loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> Observation:
        """Until the brain closes the run; the last observation. Cancelling it leaves the journal consistent."""
        while True:
            self._news.clear()
            observation = self._turn()
            if observation is not None and observation.outcome is not None:
                return observation
            await self._sleep()

    def _turn(self) -> Observation | None:
        now_us = self._clock.now_us()
        while self._inbox:
            self._fold(self._inbox.popleft(), now_us)
        if self.observation is None:
            return None
        self.decision = decide(self.observation)
        effects = self.decision.effects
        if effects:
            self._fold(Decided(effects=effects), now_us)
            self._journal.sync()
        for effect in effects:
            self._body.apply(effect)
        return self.observation

    def _fold(self, evidence: Evidence, now_us: int) -> None:
        self._journal.append(encode_line(now_us, evidence))
        before = self.observation
        self.observation = fold(before, evidence, now_us)
        self._body.witness(evidence, before, self.observation)

    async def _sleep(self) -> None:
        wake_at_us = self.decision.wake_at_us if self.decision is not None else None
        timeout_s = MAX_SLEEP_S
        if wake_at_us is not None:
            timeout_s = min(timeout_s, (wake_at_us - self._clock.now_us()) / 1e6)  # below 0: at once
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            self.tell(self._body.look())
