"""Retries transient errors: the one place that does so for stores.

Waits have full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): thousands of agents
that were refused in the same instant must not come back in the same instant. Must not know what it calls. The neighbour
is `errors`, whose Unavailable alone is tried again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from behemoth.base.errors import Unavailable

FIRST_WAIT_S = 0.2
"""Longest wait before the second try, in seconds; it doubles before each later one."""
LONGEST_WAIT_S = 20.0
TELL_AFTER_S = 5.0
"""What takes longer is said, once: somebody may sit before a command that shows nothing for minutes."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def retried(
    work: Callable[[], _T],
    *,
    limit_s: float,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> _T:
    """What `work` returns, called until it does not raise Unavailable, or `limit_s` is over; blocks meanwhile.

    No try begins after `limit_s`, and none is cut off. Then the last Unavailable is raised, with the number of tries. A
    warning before that tells what is waited for. `work` must be idempotent. `now`, `wait` and `jitter` (0 .. 1) are for
    tests.
    """
    began_s = now()
    tries, is_told = 0, False
    while True:
        tries += 1
        try:
            return work()
        except Unavailable as error:
            # A double overflows at the 1024th power of 2; the wait does not grow for so long.
            wait_s = jitter() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries - 1, 64))
            spent_s = now() - began_s
            if spent_s + wait_s >= limit_s:
                message = f"{error.message}; gave up after {tries} tries in {spent_s:.1f} s"
                raise Unavailable(message, hint=error.hint, code=error.code) from error
            if spent_s >= TELL_AFTER_S and not is_told:
                is_told = True
                _log.warning("%s; tried again for up to %.0f s", error.message, limit_s - spent_s)
            wait(wait_s)
