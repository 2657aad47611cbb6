"""The committed write that a background task is to copy, and the one job that is under way for it.

The neighbours `copies` (to this node's memory) and `keeping` (to its own disk) each have one, and do the rest.
"""

from __future__ import annotations

import asyncio

from behemoth.agent.storelink import StoreLink
from behemoth.wire.commands import RestoreFrom


class Wanted:
    """Lives as long as its task, in the agent's loop. Nothing here waits."""

    def __init__(self, store: StoreLink) -> None:
        self._store = store
        self._job: int | None = None
        self.write: RestoreFrom | None = None
        self.news = asyncio.Event()
        """Set whenever the task has something to look at again; the task clears it."""

    def want(self, write: RestoreFrom | None) -> None:
        """A copy of another write is not worth its end."""
        if write != self.write and self._job is not None:
            self._store.let_go(self._job)
        self.write = write
        self.news.set()

    @property
    def is_under_way(self) -> bool:
        """Whether a job has begun and was not answered yet."""
        return self._job is not None

    def new_job(self) -> int:
        """The number of the job that begins now."""
        self._job = self._store.new_job()
        return self._job

    def job_ended(self) -> None:
        """It was answered, and cannot be given up any more."""
        self._job = None
