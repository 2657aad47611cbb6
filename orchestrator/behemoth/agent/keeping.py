"""Keeps the newest committed checkpoint of this node's ranks on the node's own disk: which write, and the task for it.

A save never waits for it: no memory is reserved for a copy, so a copy that is too slow is abandoned when its memory is
filled again, or when the next checkpoint is committed. The store process moves the bytes (`own_disk`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from behemoth.agent.arenas import Arenas, RankMemory
from behemoth.agent.background_copy import BackgroundCopy
from behemoth.agent.disk_health import DiskHealth
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import Failed, KeepOnDisk
from behemoth.base.ids import Rank
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.setup import Setup

CLEAR_LIMIT_S = 5.0
_TOO_LATE = (
    "the next checkpoint was committed before; raise spec.checkpoint.local_disk.rate, save less often, or name a "
    "faster disk"
)

_log = logging.getLogger(__name__)


class Keeping:
    """Lives as long as the agent. Everything but `run` and `clear` returns at once."""

    def __init__(self, *, store: StoreLink, arenas: Arenas, setup: Setup, changed: Callable[[], None]) -> None:
        """`changed` is called when there is something new to tell about the disk (`health`)."""
        self._store = store
        self._arenas = arenas
        self._has_disk = setup.local_disk is not None
        self._background = BackgroundCopy(store)
        self._kept: dict[Rank, tuple[RestoreFrom, str]] = {}
        self.health = DiskHealth(changed)

    def began(self, restore: RestoreFrom | None) -> None:
        """A new attempt, from this checkpoint."""
        self._background.want(restore)

    def restored(self, rank: Rank) -> None:
        """A rank was restored. Its copy on the disk is checked again: the restore may have found it damaged, or the
        rank may have been on another node meanwhile."""
        self._kept.pop(rank, None)
        self._background.news.set()

    def committed(self, write: RestoreFrom) -> None:
        """The memory of the node's ranks is the newest checkpoint."""
        if self._background.is_under_way and write != self._background.write:
            self.health.late(_TOO_LATE)  # here: what hangs has no answer
        self._background.want(write)

    async def run(self) -> None:
        """Until cancelled: have copied what is wanted and not there, one rank at a time. What fails is tried again with
        the next news, a commit or a restore."""
        while self._has_disk:
            self._background.news.clear()
            for memory in self._missing():
                await self._keep(memory)
                if self._background.news.is_set():
                    break
            else:
                if self._is_whole():
                    self.health.whole()
                await self._background.news.wait()

    async def clear(self) -> None:
        """The run is over for good: remove the copies. Takes at most CLEAR_LIMIT_S."""
        if not self._has_disk:
            return
        self._background.want(None)
        try:
            async with asyncio.timeout(CLEAR_LIMIT_S):
                answer = await self._store.clear_disk()
        except TimeoutError:
            _log.warning("own disk: its files could not be removed within %g s", CLEAR_LIMIT_S)
            return
        if isinstance(answer, Failed):
            _log.warning("own disk: its files could not be removed: %s", answer.reason)

    async def _keep(self, memory: RankMemory) -> None:
        write, layout = self._background.write, memory.declared
        assert write is not None
        order = KeepOnDisk(
            job=self._background.new_job(),
            rank=memory.rank,
            layout=layout.layout,
            write_id=write.write_id,
            step=write.step,
        )
        answer = await self._store.keep_on_disk(order, memory.fd)
        self._background.job_ended()
        if isinstance(answer, Failed):
            is_late = write != self._background.write
            reason = _TOO_LATE if is_late else answer.reason
            if not is_late:
                self.health.failed(answer.code, f"rank {memory.rank}, write {write.write_id}: {reason}")
            _log.warning("own disk: rank %d, write %s is not there: %s", memory.rank, write.write_id, reason)
        else:
            self._kept[memory.rank] = (write, layout.digest)

    def _missing(self) -> list[RankMemory]:
        wanted = self._background.write
        return [
            memory
            for memory in self._arenas.all()
            if wanted is not None and memory.has_committed(wanted.write_id) and not self._is_kept(memory)
        ]

    def _is_kept(self, memory: RankMemory) -> bool:
        return self._kept.get(memory.rank) == (self._background.write, memory.declared.digest)

    def _is_whole(self) -> bool:
        """Whether all ranks of the node have copies of what is wanted."""
        memories = self._arenas.all()
        return bool(memories) and all(map(self._is_kept, memories))
