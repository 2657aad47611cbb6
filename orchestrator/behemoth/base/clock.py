"""The only place that reads the time. The core takes `now_us` as an argument; bodies read it from a Clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Exactly one method, because the core knows one kind of time: whole microseconds that never run backwards."""

    def now_us(self) -> int:
        """Microseconds; never less than an earlier answer of the same object."""
        ...


class WallClock:
    """Wall time, held back where the system clock is set back, so that journals of successive processes line up.

    `not_before_us` is the last time that an earlier process of the same run wrote down.
    """

    def __init__(self, *, not_before_us: int = 0) -> None:
        self._offset_us = max(0, not_before_us - time.time_ns() // 1000)
        self._start_us = time.time_ns() // 1000 + self._offset_us
        self._start_monotonic_ns = time.monotonic_ns()

    def now_us(self) -> int:
        return self._start_us + (time.monotonic_ns() - self._start_monotonic_ns) // 1000


class ManualClock:
    """A clock that tests and the simulator move by hand."""

    def __init__(self, *, now_us: int = 0) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def advance_to(self, now_us: int) -> None:
        """Raises ValueError when time would run backwards."""
        if now_us < self._now_us:
            raise ValueError(f"clock: expected a time >= {self._now_us} us, got {now_us} us")
        self._now_us = now_us
