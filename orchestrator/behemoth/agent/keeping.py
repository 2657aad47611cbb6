"""The newest committed checkpoint of this node's ranks on the node's own disk: which is wanted, and the task for it.

A save never waits for it: no memory is held back, so a copy that is too slow ends when its memory is filled anew, or
when the next checkpoint is committed. The store process moves the bytes (`own_disk`).
"""

from __future__ import annotations

import asyncio
import logging

from behemoth.agent.arenas import Arenas, RankMemory
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import Failed, KeepOnDisk
from behemoth.base.ids import Rank
from behemoth.wire.messages import RestoreFrom, Setup

CLEAR_LIMIT_S = 5.0
_TOO_LATE = (
    "the next checkpoint was committed before; raise spec.checkpoint.local_disk.rate, save less often, or name a "
    "faster disk"
)

_log = logging.getLogger(__name__)


class Keeping:
    """Lives as long as the agent. Everything but `run` and `clear` returns at once."""

    def __init__(self, *, store: StoreLink, arenas: Arenas, setup: Setup) -> None:
        self._store = store
        self._arenas = arenas
        self._is_wanted = setup.local_disk is not None
        self._wanted: RestoreFrom | None = None
        self._kept: dict[Rank, tuple[RestoreFrom, str]] = {}
        self._job: int | None = None
        self._news = asyncio.Event()

    def began(self, restore: RestoreFrom | None) -> None:
        """A new attempt, from this checkpoint."""
        self._want(restore)

    def restored(self) -> None:
        """A rank's memory has what it shall get back."""
        self._news.set()

    def committed(self, write: RestoreFrom) -> None:
        """The memory of the node's ranks is the newest checkpoint."""
        self._want(write)

    async def run(self) -> None:
        """Until cancelled: have copied what is wanted and not there, one rank at a time. What fails is tried again with
        the next news, a commit or a restore."""
        while self._is_wanted:
            self._news.clear()
            for memory in self._missing():
                await self._keep(memory)
                if self._news.is_set():
                    break
            else:
                await self._news.wait()

    async def clear(self) -> None:
        """The run is over for good: nobody will want it back."""
        if not self._is_wanted:
            return
        self._want(None)
        try:
            async with asyncio.timeout(CLEAR_LIMIT_S):
                answer = await self._store.clear_disk()
        except TimeoutError:
            _log.warning("own disk: its files could not be removed within %g s", CLEAR_LIMIT_S)
            return
        if isinstance(answer, Failed):
            _log.warning("own disk: its files could not be removed: %s", answer.reason)

    async def _keep(self, memory: RankMemory) -> None:
        write, layout = self._wanted, memory.declared
        assert write is not None
        self._job = self._store.new_job()
        order = KeepOnDisk(
            job=self._job, rank=memory.rank, layout=layout.layout, write_id=write.write_id, step=write.step
        )
        answer = await self._store.keep_on_disk(order, memory.fd)
        self._job = None
        if isinstance(answer, Failed):
            reason = answer.reason if write == self._wanted else _TOO_LATE
            _log.warning("own disk: rank %d, write %s is not there: %s", memory.rank, write.write_id, reason)
        else:
            self._kept[memory.rank] = (write, layout.digest)

    def _missing(self) -> list[RankMemory]:
        wanted = self._wanted
        return [
            memory
            for memory in self._arenas.all()
            if wanted is not None
            and memory.has_committed(wanted.write_id)
            and self._kept.get(memory.rank) != (wanted, memory.declared.digest)
        ]

    def _want(self, write: RestoreFrom | None) -> None:
        """A copy of another write is not worth its end."""
        if write != self._wanted and self._job is not None:
            self._store.let_go(self._job)
        self._wanted = write
        self._news.set()
