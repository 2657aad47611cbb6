"""Pulls copies of other nodes' snapshots: in the background, at a bounded rate, and not while a save is written.

Runs in the store process; the neighbours are `copies`, the agent's end, `pace`, which holds it up, and
`checkpoint.copying`, which does the work.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.agent.memories import Memories
from behemoth.agent.pace import Pace, bucket_of
from behemoth.agent.peers.places import AskPeer
from behemoth.agent.storewire import Pull, Pulled
from behemoth.checkpoint.copying import copy_snapshot
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import plan_rank


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
        self._bucket = bucket_of(rate_bytes_per_s)

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
            pace=Pace(f"copy of rank {order.rank}", self._bucket, is_writing=self._is_writing, cancelled=cancelled),
        )
        return Pulled(job=order.job, num_bytes=plan.data_bytes)
