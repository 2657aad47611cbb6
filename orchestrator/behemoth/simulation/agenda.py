"""The heap of things to come, the only source of time in a simulation.

Virtual time is whole microseconds and moves from event to event, so that 54 days cost as much as their events. Ties are
broken by the order of pushing, never by chance: one seed gives one history. Neighbour: `cluster`, which fills it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from behemoth.base.errors import Internal


class Agenda:
    """Events in time order. An event cannot be taken back: it asks by itself whether it still has a meaning."""

    def __init__(self) -> None:
        self.now_us = 0
        self.num_events = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._num_pushed = 0

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        """Do `action` in `delay_us` microseconds of virtual time."""
        self.at(self.now_us + delay_us, action)

    def at(self, time_us: int, action: Callable[[], None]) -> None:
        """Do `action` at `time_us`. Raises Internal when that moment has passed."""
        if time_us < self.now_us:
            raise Internal(f"agenda: expected an event at or after {self.now_us} us, got {time_us} us")
        heapq.heappush(self._heap, (time_us, self._num_pushed, action))
        self._num_pushed += 1

    def next_us(self) -> int | None:
        """When the next event is due; None when nothing is to come."""
        return self._heap[0][0] if self._heap else None

    def advance_to(self, time_us: int) -> None:
        """Do everything that is due up to and at `time_us`, what comes up on the way included, and stand there."""
        while self._heap and self._heap[0][0] <= time_us:
            due_us, _, action = heapq.heappop(self._heap)
            self.now_us = due_us
            self.num_events += 1
            action()
        self.now_us = time_us
