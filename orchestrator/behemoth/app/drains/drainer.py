"""The leader's end of draining: which commit goes down next, what is held for it, what came of it.

A thread of its own waits for the drain process, one order at a time. Which commits are due follows from their number
and the newest one below, so nothing needs to be remembered over a restart. A drain that fails is tried again with the
newest commit that is due then, later and later; training goes on. Neighbours: `process`, the other end, and
`checkpoint_desk`, which tells of commits and spares those that are held.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from behemoth.app.drains.messages import Drained
from behemoth.base.errors import BehemothError, Corrupt, NotFound
from behemoth.base.ids import WriteId
from behemoth.checkpoint.copy_plan import REJECTED
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import Evidence
from behemoth.state.observation import Observation

FIRST_WAIT_S = 1.0
"""At most, after a first failure; twice as long after each later one."""
LONGEST_WAIT_S = 60.0
LOOK_S = 0.1
"""Between two looks of who waits for the last drain."""


class DrainLink(Protocol):
    """The way to the process, which it starts when there is none."""

    def drain(self, commit: CommitRef) -> Drained:
        """Blocks until the commit is below. Raises Behemoth's errors, Unavailable when the process ends meanwhile."""
        ...

    def give_way(self, is_saving: bool) -> None:
        """Whether a save is being written, for which a `drain` under way, and any later one, waits a while. From any
        thread; returns at once."""
        ...

    def close(self) -> None:
        """End the process by force, from any thread; a `drain` under way raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainNews:
    """What came of one try. `error` is None when the commit is below; `is_given_up`: another try would not help."""

    commit: CommitRef
    drained: Drained | None = None
    error: BehemothError | None = None
    is_given_up: bool = False


class Drainer:
    """Owns its thread and the link until `close`. `below` is the newest commit of the second store, if any; `tell` is
    called from the thread. Everything else may be called from any thread and returns at once, but for `finish`."""

    def __init__(
        self,
        link: DrainLink,
        *,
        every: int,
        below: CommitRef | None,
        tell: Callable[[DrainNews], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._link = link
        self._every = every
        self._below = below
        self._tell = tell
        self._jitter = jitter
        self._num_since = 0
        self._num_failures = 0
        self._waiting: CommitRef | None = None
        self._current: CommitRef | None = None
        self._given_up: WriteId | None = None
        self._is_closed = False
        self._is_saving = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="drainer", daemon=True)
        self._thread.start()

    @property
    def below(self) -> CommitRef | None:
        """The newest commit that is known to be in the second store."""
        with self._news:
            return self._below

    def found(self, commits: Sequence[CommitRef]) -> None:
        """What the first store has at the begin of a term, oldest first."""
        below = self.below
        newer = [one for one in commits if below is None or one.step > below.step]
        with self._news:
            self._num_since = len(newer)
            if newer and self._num_since >= self._every:
                self._want(newer[-1])

    def committed(self, commit: CommitRef) -> None:
        """A new commit of the first store."""
        with self._news:
            self._num_since += 1
            if self._num_since >= self._every:
                self._want(commit)

    def witness(self, _evidence: Evidence, _before: Observation | None, after: Observation) -> None:
        """A witness of the loop: a save has the bandwidth to itself from when the gang stands at its step."""
        is_saving = after.save is not None and after.save.reached_us is not None
        if is_saving != self._is_saving:
            self._is_saving = is_saving
            self._link.give_way(is_saving)

    def held(self) -> frozenset[WriteId]:
        """Commits that the first store must keep: the one on its way, and the one that waits."""
        with self._news:
            return frozenset(one.write_id for one in (self._current, self._waiting) if one is not None)

    def finish(self, last: CommitRef, *, limit_s: float, cancelled: Callable[[], bool]) -> bool:
        """Whether `last` is below, which is waited for; False after the limit, when `cancelled`, or when no try can
        help. Blocks."""
        end_s = time.monotonic() + limit_s
        with self._news:
            if not self._is_below(last) and (self._current is None or self._current.write_id != last.write_id):
                self._num_failures = 0  # the wait of an earlier failure is not what the end should wait for
                self._want(last)
            while not self._is_below(last):
                if self._given_up == last.write_id or self._is_closed or cancelled():
                    return False
                if time.monotonic() >= end_s:
                    return False
                self._news.wait(LOOK_S)
        return True

    def close(self) -> None:
        """Ends what is under way; idempotent."""
        with self._news:
            self._is_closed = True
            self._news.notify_all()
        self._link.close()
        self._thread.join()

    def _is_below(self, commit: CommitRef) -> bool:
        return self._below is not None and self._below.write_id == commit.write_id

    def _want(self, commit: CommitRef) -> None:
        """In place of one that waits."""
        self._waiting, self._num_since = commit, 0
        self._news.notify_all()

    def _run(self) -> None:
        while (commit := self._next()) is not None:
            try:
                news = DrainNews(commit=commit, drained=self._link.drain(commit))
            except BehemothError as error:
                is_given_up = isinstance(error, Corrupt | NotFound) or error.code == REJECTED
                news = DrainNews(commit=commit, error=error, is_given_up=is_given_up)
            with self._news:
                if self._is_closed:
                    return
                self._settle(news)
            self._tell(news)

    def _next(self) -> CommitRef | None:
        """The commit that waits, once there is one and the wait after a failure is over; None at the end."""
        with self._news:
            self._news.wait_for(lambda: self._is_closed or self._waiting is not None)
            if self._num_failures and not self._is_closed:
                wait_s = self._jitter() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._num_failures - 1, 64))
                self._news.wait_for(lambda: self._is_closed or not self._num_failures, wait_s)
            if self._is_closed:
                return None
            self._current, self._waiting = self._waiting, None
            return self._current

    def _settle(self, news: DrainNews) -> None:
        self._current = None
        if news.error is None:
            self._below, self._num_failures = news.commit, 0
        elif news.is_given_up:
            self._given_up = news.commit.write_id
        else:
            self._num_failures += 1
            self._waiting = self._waiting or news.commit
        self._news.notify_all()
