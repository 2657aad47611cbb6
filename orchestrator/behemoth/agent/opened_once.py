"""A cache of the commit that a node restores: one of its ranks opens it for all of them.

Otherwise each rank would read and decode the same megabytes. It holds one commit, until the ranks save again. The
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
"""Longest wait for a commit that another rank is opening; a rank that waited in vain opens it itself."""


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
        """The commit. The first caller opens it, the others wait. An error of `open_commit` is raised to all that wait;
        later callers try again."""
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
        """Free the commit: no rank restores any more."""
        with self._lock:
            self._key, self._opening = None, Future()

    def _forget(self, opening: Future[Commit]) -> None:
        with self._lock:
            if self._opening is opening:
                self._key = None
