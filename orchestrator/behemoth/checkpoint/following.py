"""Reads a generation of an arena while somebody else is still filling it.

A large save is written out while the worker copies: it then lasts as long as the slower of the two, not as long as
both. What is filled is told by one number in shared memory, the bytes that are in place without a gap from the front on
(`Arena.advance`). Only bytes below it may be read, and nothing counts before the generation is whole. Neighbours:
`staging`, which fills, and `writer`, which follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from behemoth.base.errors import Conflict
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot

FIRST_POLL_S, LONGEST_POLL_S = 0.0005, 0.02
"""A block of 32 MiB takes two to four times as long to copy as the first. A program that holds its copy open for a step
is looked at ever less often: the processors are its own."""


class Follower:
    """Waits for the bytes of one filling of a generation, told by `Arena.sequence`.

    `cancelled` ends every wait; it is asked at each look. There is no limit in time: a program may hold a copy open for
    as long as a training step lasts. Whoever cancels knows when the filling side is gone.
    """

    def __init__(self, arena: Arena, generation: int, sequence: int, *, cancelled: Callable[[], bool]) -> None:
        self._arena = arena
        self._generation = generation
        self._sequence = sequence
        self._cancelled = cancelled

    def until(self, num_bytes: int) -> int:
        """Blocks until the first `num_bytes` of the data are in place; how many are, which may be more.

        Raises Conflict when cancelled, or when another filling has begun.
        """
        pause = _Pause(self._arena, self._cancelled)
        while (filled := self._arena.filled_bytes(self._generation, self._sequence)) < num_bytes:
            pause.take()
        return filled

    def is_whole(self) -> bool:
        """Whether the generation is sealed. Raises Conflict when another filling has begun."""
        return self._arena.sealed(self._generation, self._sequence) is not None

    def whole(self) -> Snapshot:
        """Blocks until the generation is sealed. Raises Conflict as `until` does."""
        pause = _Pause(self._arena, self._cancelled)
        while (snapshot := self._arena.sealed(self._generation, self._sequence)) is None:
            pause.take()
        return snapshot


class _Pause:
    """The pauses of one wait, each a quarter of what it has lasted."""

    def __init__(self, arena: Arena, cancelled: Callable[[], bool]) -> None:
        self._arena = arena
        self._cancelled = cancelled
        self._waited_s = 0.0

    def take(self) -> None:
        if self._cancelled():
            raise Conflict(
                f"arena of rank {self._arena.rank}: cancelled while it was being filled", code="save-cancelled"
            )
        pause_s = min(max(FIRST_POLL_S, self._waited_s / 4), LONGEST_POLL_S)
        self._waited_s += pause_s
        time.sleep(pause_s)
