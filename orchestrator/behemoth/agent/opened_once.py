"""The commit that a node restores, opened by one of its ranks for all of them.

Without it each rank would read and decode the same megabytes. It holds one commit, until the ranks save again. The
neighbour is `preparing`, which decides where a commit is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NamedTuple

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.opened import Commit

WAIT_LIMIT_S = 60.0
"""For what another rank is opening. Who waited in vain opens for itself."""


class OpenedAs(NamedTuple):
    """Which commit, and whether it was read through other nodes."""

    step: Step
    write_id: WriteId
    is_shared: bool


class OpenedOnce:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: OpenedAs | None = None
        self._opening: Future[Commit] = Future()

    def get(self, key: OpenedAs, open_commit: Callable[[], Commit]) -> Commit:
        """The commit; whoever asks first has it opened, and the others wait. Raises what that raised, for all who
        wait; who asks afterwards tries again."""
        with self._lock:
            is_first = key != self._key
            if is_first:
                self._key, self._opening = key, Future()
            opening = self._opening
        if not is_first:
            wait([opening], timeout=WAIT_LIMIT_S)
            return opening.result() if opening.done() else open_commit()
        try:
            opening.set_result(open_commit())
        except BaseException as error:
            self._forget(opening)
            opening.set_exception(error)
            raise
        return opening.result()

    def clear(self) -> None:
        """Nobody restores any more."""
        with self._lock:
            self._key, self._opening = None, Future()

    def _forget(self, opening: Future[Commit]) -> None:
        with self._lock:
            if self._opening is opening:
                self._key = None
