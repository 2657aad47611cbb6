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
"""Bounds of the pause between two looks at the progress mark. A batch of 32 MiB takes the program two to four times as
long to copy as the first pause. The pauses grow, because a program may hold its copy open for a whole training step,
and polling takes processor time from it."""


class Follower:
    """Waits for the bytes of one filling of a generation; `sequence` is that of `Arena.sequence`.

    `cancelled` is called at each look and ends every wait. Waits have no time limit of their own, because a program may
    hold a copy open for a whole training step; whoever cancels notices when the filling process is gone.
    """

    def __init__(self, arena: Arena, generation: int, sequence: int, *, cancelled: Callable[[], bool]) -> None:
        self._arena = arena
        self._generation = generation
        self._sequence = sequence
        self._cancelled = cancelled

    def until(self, num_bytes: int) -> int:
        """Blocks until the first `num_bytes` of the data are in place; returns how many are, which may be more.

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
    """The pauses of one wait. Each is a quarter of the time waited so far, within the bounds above."""

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
