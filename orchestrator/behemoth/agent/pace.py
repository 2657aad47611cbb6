"""How background copies of a store process keep out of the way: at a bounded rate, and not while a save is written.

Neighbours: `pulling` (copies from other nodes) and `own_disk` (copies to the node's own disk).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from behemoth.base.bucket import TokenBucket
from behemoth.base.errors import Conflict
from behemoth.checkpoint.gathering import BLOCK_BYTES

LOOK_S = 0.05
"""Interval at which a waiting copy checks whether it may go on."""
LONGEST_GIVING_WAY_S = 60.0
"""Longest time that a copy waits for saves, over all of its blocks: where saves follow one another, copies must be made
beside them."""


def bucket_of(rate_bytes_per_s: int | None) -> TokenBucket | None:
    """For all copies of one kind together; None: no limit."""
    if rate_bytes_per_s is None:
        return None
    return TokenBucket(rate_per_s=rate_bytes_per_s, burst=min(rate_bytes_per_s, BLOCK_BYTES))


class Pace:
    """Waits before each block of one copy, and raises Conflict once that is cancelled. `what` names it then."""

    def __init__(
        self,
        what: str,
        bucket: TokenBucket | None,
        *,
        is_writing: Callable[[], bool],
        cancelled: Callable[[], bool],
    ) -> None:
        self._what = what
        self._bucket = bucket
        self._is_writing = is_writing
        self._cancelled = cancelled
        self._left_s = LONGEST_GIVING_WAY_S

    def __call__(self, num_bytes: int) -> None:
        while self._is_writing() and self._left_s > 0:
            self._left_s -= LOOK_S
            self._sleep(LOOK_S)
        wait_s = self._bucket.take(num_bytes, now_s=time.monotonic()) if self._bucket is not None else 0.0
        while wait_s > 0:
            self._sleep(min(wait_s, LOOK_S))
            wait_s -= LOOK_S
        self._sleep(0.0)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        if self._cancelled():
            raise Conflict(f"{self._what}: cancelled", code="cancelled")
