"""Pulls copies of other nodes' snapshots: in the background, at a bounded rate, and not while a save is written.

Runs in the store process; the neighbours are `copies`, the agent's end, and `checkpoint.copying`, which does the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from behemoth.agent.memories import Memories
from behemoth.agent.peers.places import AskPeer
from behemoth.agent.storewire import Pull, Pulled
from behemoth.base.bucket import TokenBucket
from behemoth.base.errors import Conflict
from behemoth.checkpoint.copying import copy_snapshot
from behemoth.checkpoint.gathering import BLOCK_BYTES
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import plan_rank

LOOK_S = 0.05
"""Between two looks at what a pull waits for."""
LONGEST_GIVING_WAY_S = 60.0
"""All blocks of a pull together: where one save follows the other, copies must come about beside them."""


class Pulling:
    """Used by one thread. `is_writing` tells whether a save is being written."""

    def __init__(
        self,
        memories: Memories,
        *,
        peer: AskPeer,
        is_writing: Callable[[], bool],
        rate_bytes_per_s: int | None,
    ) -> None:
        self._memories = memories
        self._peer = peer
        self._is_writing = is_writing
        self._bucket = None
        if rate_bytes_per_s is not None:
            self._bucket = TokenBucket(rate_per_s=rate_bytes_per_s, burst=min(rate_bytes_per_s, BLOCK_BYTES))

    def pull(self, order: Pull, fd: int, *, cancelled: Callable[[], bool]) -> Pulled:
        """Raises Behemoth's errors when the ward does not have the write, and Conflict when cancelled."""
        plan = plan_rank(Layout.decode(order.layout), order.rank)
        arena = self._memories.copy(order.rank, fd, plan)
        if any(one.is_verified and one.write_id == order.write_id for one in arena.held()):
            return Pulled(job=order.job, num_bytes=0)
        copy_snapshot(
            self._peer(order.slot, plan, order.write_id, order.step),
            plan,
            arena,
            arena.oldest_generation(),
            write_id=order.write_id,
            step=order.step,
            threads=1,
            pace=_Pace(order, self._bucket, self._is_writing, cancelled),
        )
        return Pulled(job=order.job, num_bytes=plan.data_bytes)


class _Pace:
    """Waits before each block of one pull."""

    def __init__(
        self, order: Pull, bucket: TokenBucket | None, is_writing: Callable[[], bool], cancelled: Callable[[], bool]
    ) -> None:
        self._order = order
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
            raise Conflict(f"copy of rank {self._order.rank}: cancelled", code="cancelled")
