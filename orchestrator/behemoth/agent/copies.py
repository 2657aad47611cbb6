"""Copies of other nodes' staged checkpoints in this node's memory: which are wanted, and the task that gets them.

A node pulls: it copies the newest committed write from the memory of each of its wards (`behemoth.policy.peers`), in
the background, and retries until it has it. So a replaced holder gets its copies by the same rule as any other, and a
ward never waits for its holders. Each copy has two generations, of which only the older is overwritten. The store
process moves the bytes (`pulling`); the agent owns the memory and tracks what it holds.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from behemoth.agent.background_copy import BackgroundCopy
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import Budget, Failed, Pull, ShareMemory
from behemoth.base.ids import Rank, Slot
from behemoth.base.slots import ranks_of
from behemoth.policy import peers
from behemoth.wire.commands import RestoreFrom, StartGang
from behemoth.wire.session import Declare
from behemoth.wire.setup import Setup

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
"""Bounds of the pause between two tries: a ward that is restoring has nothing to copy yet, a lost one never will."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class CopyMemory:
    """Memory for one rank of another node; owns the descriptor. `held`: the newest write that is whole in it."""

    rank: Rank
    layout: str
    fd: int
    held: RestoreFrom | None = None


class Copies:
    """Lives as long as the agent. Everything but `run` returns at once."""

    def __init__(self, *, store: StoreLink, setup: Setup) -> None:
        self._store = store
        self._num_copies = setup.peer_copies
        self._stride = setup.peer_stride
        self._budget_bytes = setup.staging_budget
        self._ranks_per_node = setup.ranks_per_node
        self._domains: tuple[int, ...] = ()
        self._slot: Slot | None = None
        self._wards: tuple[Slot, ...] = ()
        self._background = BackgroundCopy(store)
        self._declared: Declare | None = None
        self._memories: dict[Rank, CopyMemory] = {}

    # What happened

    def began(self, table: StartGang, slot: Slot | None) -> None:
        """A new attempt; `slot` is None on a node that is not in its gang and holds no copies then."""
        self._domains = tuple(place.domain for place in table.peers)
        self._slot = slot
        self._wards = ()
        if slot is not None and self._num_copies and self._domains:
            self._wards = peers.wards(slot, self._domains, stride=self._stride, copies=self._num_copies)
        self._background.want(table.restore)

    def declared(self, declared: Declare) -> None:
        """The layout is the same for all ranks of the run."""
        self._declared = declared
        self._background.news.set()

    def committed(self, write: RestoreFrom) -> None:
        """A newer write is committed: pull that, and free the copies of ranks that are no wards any more. Until now a
        restore might have asked for them."""
        wanted = {rank for _, rank in self._of_wards()}
        unwanted = self._memories.keys() - wanted
        for rank in unwanted:
            os.close(self._memories.pop(rank).fd)
        if unwanted:
            self._store.keep_copies(self._memories)
        self._background.want(write)

    def budget(self, own: Sequence[Rank]) -> Budget | None:
        """The memory that this node may use, and the ranks for which; None where it is not bounded."""
        if self._budget_bytes is None:
            return None
        copies = tuple(rank for _, rank in self._of_wards())
        return Budget(limit_bytes=self._budget_bytes, own=tuple(own), copies=copies)

    def asked(self) -> tuple[Slot, ...]:
        """Slots that may hold a copy of this node's ranks, likeliest first."""
        if self._slot is None or not self._num_copies or not self._domains:
            return ()
        return peers.asked(self._slot, self._domains, stride=self._stride, copies=self._num_copies)

    def shared(self) -> list[tuple[ShareMemory, int]]:
        """The memory that a new store process must know of, with its descriptors."""
        return [
            (ShareMemory(job=0, rank=one.rank, is_copy=True), one.fd) for one in self._memories.values() if one.held
        ]

    def close(self) -> None:
        for memory in self._memories.values():
            os.close(memory.fd)
        self._memories.clear()

    # The task

    async def run(self) -> None:
        """Until cancelled: pull what is wanted and not held, one rank at a time."""
        if not self._num_copies:
            return
        pause_s = FIRST_PAUSE_S
        while True:
            self._background.news.clear()
            missing = self._missing()
            num_pulled = 0
            for ward, rank in missing:
                num_pulled += await self._pull(ward, rank)
                if self._background.news.is_set():
                    break
            if num_pulled or self._background.news.is_set():
                pause_s = FIRST_PAUSE_S
                continue
            await self._hear(pause_s if missing else None)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _pull(self, ward: Slot, rank: Rank) -> bool:
        """True when the copy is whole."""
        write, declared = self._background.write, self._declared
        assert write is not None
        assert declared is not None
        memory = self._memory(rank, declared)
        order = Pull(
            job=self._background.new_job(),
            rank=rank,
            layout=declared.layout,
            slot=ward,
            write_id=write.write_id,
            step=write.step,
        )
        answer = await self._store.pull(order, memory.fd)
        self._background.job_ended()
        if isinstance(answer, Failed):
            _log.info("copy of rank %d, write %s: %s", rank, write.write_id, answer.reason)
            return False
        memory.held = write
        return True

    def _missing(self) -> list[tuple[Slot, Rank]]:
        wanted = self._background.write
        if wanted is None or self._declared is None:
            return []
        layout = self._declared.digest
        held = {rank for rank, one in self._memories.items() if (one.held, one.layout) == (wanted, layout)}
        return [(ward, rank) for ward, rank in self._of_wards() if rank not in held]

    def _of_wards(self) -> Iterator[tuple[Slot, Rank]]:
        """Whose memory is copied here: each ward with each of its ranks."""
        return ((ward, rank) for ward in self._wards for rank in ranks_of(ward, self._ranks_per_node))

    def _memory(self, rank: Rank, declared: Declare) -> CopyMemory:
        memory = self._memories.get(rank)
        if memory is not None and memory.layout == declared.digest:
            return memory
        if memory is not None:
            os.close(memory.fd)
        fd = os.memfd_create(f"behemoth-copy-{rank}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        memory = self._memories[rank] = CopyMemory(rank=rank, layout=declared.digest, fd=fd)
        return memory

    async def _hear(self, limit_s: float | None) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._background.news.wait()
        except TimeoutError:
            return
