"""Holds a drain up while a save is written: both take the same disk, network and store, and the save comes first.

Niceness alone leaves the processor to others, not bandwidth. Neighbours: `process`, which is told and waits here, and
`drainer`, which sees saves begin and end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_GIVING_WAY_S = 60.0
"""For one save. One that takes longer is stuck, or the store is slow: copies must come about beside it."""


class GivingWay:
    """Thread-safe. `now`, in seconds, never runs backwards; it is for tests."""

    def __init__(self, *, limit_s: float = LONGEST_GIVING_WAY_S, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._now = now
        self._changed = threading.Condition()
        self._end_s: float | None = None

    def tell(self, is_saving: bool) -> None:
        """A save begins to be written, or is over."""
        with self._changed:
            self._end_s = self._now() + self._limit_s if is_saving else None
            self._changed.notify_all()

    def wait(self) -> None:
        """Until no save is being written, or one has been for too long."""
        with self._changed:
            while self._end_s is not None and (left_s := self._end_s - self._now()) > 0:
                self._changed.wait(left_s)
