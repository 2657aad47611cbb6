"""Which committed write a background task copies, and the one job of the store process that is under way for it.

Starts nothing and waits for nothing: the tasks of the neighbours `copies` (into this node's memory) and `keeping` (to
its own disk), which have one each, do that.
"""

from __future__ import annotations

import asyncio

from behemoth.agent.storelink import StoreLink
from behemoth.wire.commands import RestoreFrom


class BackgroundCopy:
    """Lives as long as its task, in the agent's event loop. No method waits."""

    def __init__(self, store: StoreLink) -> None:
        self._store = store
        self._job: int | None = None
        self.write: RestoreFrom | None = None
        """The write to copy, or None."""
        self.news = asyncio.Event()
        """Set whenever the task has something to look at again; the task clears it."""

    def want(self, write: RestoreFrom | None) -> None:
        """Copy this write from now on. A job for another write is cancelled: its copy would be outdated at once."""
        if write != self.write and self._job is not None:
            self._store.let_go(self._job)
        self.write = write
        self.news.set()

    @property
    def is_under_way(self) -> bool:
        """Whether a job has begun and has not been answered yet."""
        return self._job is not None

    def new_job(self) -> int:
        """The number of the job that begins now."""
        self._job = self._store.new_job()
        return self._job

    def job_ended(self) -> None:
        """The job was answered, and can no longer be cancelled."""
        self._job = None
