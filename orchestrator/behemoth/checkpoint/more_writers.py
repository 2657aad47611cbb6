"""When the further writers of a save may join the first ones: as soon as they cost the program nothing.

While the program copies its state it wants the processors. Writers whose bytes go to a disk mostly wait, so many of
them keep it busy and hardly compute; where a write is a copy, as on tmpfs, each further writer would hold the program
up. What the first writers do tells the two apart. Neighbour: `writer`.
"""

from __future__ import annotations

import threading

WAITING_SHARE = 4
"""Writers mostly wait when the time that passed is at least so many times what they computed. On a disk it is about
ten times, on tmpfs two at most, with the processors shared by as many threads that copy."""


class MoreWriters:
    """Thread-safe. The first writers call `wrote` after each batch, the others `wait` once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._may_join = threading.Event()
        self._passed_s = self._computed_s = 0.0

    def wrote(self, *, passed_s: float, computed_s: float, is_whole: bool) -> None:
        """One more batch was written, in so many seconds, of which the thread computed so many. `is_whole`: the copy is
        complete, so that nobody is held up any more."""
        with self._lock:
            self._passed_s += passed_s
            self._computed_s += computed_s
            mostly_wait = self._passed_s >= WAITING_SHARE * self._computed_s
        if is_whole or mostly_wait:
            self._may_join.set()

    def wait(self) -> None:
        """Blocks until it is time to join, or until `end`."""
        self._may_join.wait()

    def end(self) -> None:
        """Nobody waits any longer: there is nothing more to write, or a writer has failed."""
        self._may_join.set()
