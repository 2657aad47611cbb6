"""Keeps reads to a rate of bytes, so that work in the background leaves the bandwidth to the run.

Only reads are paced; nothing here writes. Neighbour: `base.bucket`, which computes the waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from behemoth.base.bucket import TokenBucket
from behemoth.base.errors import Conflict
from behemoth.checkpoint.into import num_bytes
from behemoth.checkpoint.wrapper_store import WrapperStore
from behemoth.ports import Into, ObjectStore

BURST_S = 0.1
"""How much of a second's bytes may be read at once after a pause."""


class Pacer:
    """Lets bytes pass at `bytes_per_s`, those of all threads together. Thread-safe.

    Once `stop` is set every wait, present or later, ends with Conflict. `wait` gets seconds and returns early when
    `stop` is set; it and `now` (seconds, monotonic) are for tests.
    """

    def __init__(
        self,
        *,
        bytes_per_s: int,
        stop: threading.Event,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._bucket = TokenBucket(rate_per_s=bytes_per_s, burst=bytes_per_s * BURST_S)
        self._lock = threading.Lock()
        self._stop = stop
        self._now = now
        self._wait = wait if wait is not None else stop.wait

    def take(self, num_bytes: int, *, what: str) -> None:
        """Block until so many bytes may pass. `what` names the work in the Conflict."""
        with self._lock:
            wait_s = self._bucket.take(num_bytes, now_s=self._now())
        if wait_s:
            self._wait(wait_s)
        if self._stop.is_set():
            raise Conflict(f"{what}: stopped", code="cancelled")


class PacedStore(WrapperStore):
    """Reads from `inner` as `pacer` lets them. Thread-safe."""

    def __init__(self, inner: ObjectStore, pacer: Pacer) -> None:
        super().__init__(inner)
        self._pacer = pacer

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self._pacer.take(num_bytes(into), what=f"read {key}")
        super().read_into(key, offset_bytes=offset_bytes, into=into)
