"""Decides when additional writer threads of a save may start: as soon as they do not slow the program down.

While the program copies its state it needs the processors. Threads that write to a disk mostly wait, so that many of
them keep the disk busy at little cost; where a write is a memory copy, as on tmpfs, each additional thread would slow
the program. Which case it is follows from the processor time of the first writers. Neighbour: `writer`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

LOOK_S = 0.1
"""How soon who waits sees that the save was given up."""
WAITING_SHARE = 4
"""Writers count as waiting when wall time is at least this many times their processor time. Measured on two cores
beside as many copying threads: about 10 on a disk, at most 2 on tmpfs."""


class MoreWriters:
    """Thread-safe. The first writers call `wrote` after each batch, the others `wait` once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._may_join = threading.Event()
        self._passed_s = self._computed_s = 0.0

    def wrote(self, *, passed_s: float, computed_s: float, is_whole: bool) -> None:
        """A batch was written: `passed_s` seconds of wall time, of which the thread used `computed_s` of processor
        time. `is_whole`: the program's copy is complete, so that nothing is slowed down any more."""
        with self._lock:
            self._passed_s += passed_s
            self._computed_s += computed_s
            mostly_wait = self._passed_s >= WAITING_SHARE * self._computed_s
        if is_whole or mostly_wait:
            self._may_join.set()

    def wait(self, go_on: Callable[[], None]) -> None:
        """Blocks until it is time to join, or until `end`. Raises what `go_on` does, which is called meanwhile: the
        first writers may be in a write that does not return."""
        while not self._may_join.wait(LOOK_S):
            go_on()

    def end(self) -> None:
        """Nobody waits any longer: there is nothing more to write, or a writer has failed."""
        self._may_join.set()
