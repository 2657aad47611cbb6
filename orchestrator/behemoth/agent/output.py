"""Takes in what workers print, in one thread, so that neither a slow disk nor a gigabyte of prints delays a beat.

Workers write into pipes; the thread empties them into their rank's log. A worker is held up only for as long as that
thread needs to write a pipe's content, and never by a full disk. The neighbour `ranklog` is the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import selectors
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from behemoth.agent.ranklog import RankLog
from behemoth.base.errors import Internal

_PIPE_BYTES = 1 << 20
"""Linux's default limit for unprivileged pipes: the slack a burst of prints has before it waits for the disk."""
_READ_BYTES = 256 << 10
_MAX_DRAIN_BYTES = 8 << 20
_WAIT_S = 1.0
_JOIN_LIMIT_S = 5.0
LAST_LINES_LIMIT_S = 2.0
"""A worker's end is told without its last words when the disk of the logs stalls for longer."""


@dataclass(slots=True, eq=False)
class LogPipe:
    """The reading end of one worker's output. Belongs to the thread, but for `num_bytes`, which anybody may read."""

    fd: int
    log: RankLog
    is_open: bool = field(default=True)

    @property
    def num_bytes(self) -> int:
        return self.log.num_bytes


class Output:
    """Owns the thread `output` from `start` to `stop`."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._wake = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after it has written what the pipes held."""
        if self._thread is None:
            return
        self._order(None)
        self._thread.join(_JOIN_LIMIT_S)
        if self._thread.is_alive():
            raise Internal(f"output: the thread did not end within {_JOIN_LIMIT_S} s")
        self._thread = None
        self._selector.close()
        os.close(self._wake)

    def open(self, path: Path, *, max_bytes: int) -> tuple[LogPipe, int]:
        """A log that is fed from now on, and the writing end for the worker, which the caller closes."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        with suppress(PermissionError):  # the user's pipe quota is used up: a smaller pipe does as well
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        pipe = LogPipe(fd=reading, log=RankLog(path, max_bytes=max_bytes))
        self._order(lambda: self._add(pipe))
        return pipe, writing

    async def last_lines(self, pipe: LogPipe) -> str:
        """The newest lines, what is still in the pipe included; empty when the thread does not get to it in time."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        def tell() -> None:
            self._drain(pipe)
            with suppress(RuntimeError):  # the loop has ended, so nobody waits
                loop.call_soon_threadsafe(_resolve, answer, pipe.log.last_lines())

        self._order(tell)
        try:
            return await asyncio.wait_for(answer, LAST_LINES_LIMIT_S)
        except TimeoutError:
            return ""

    def release(self, pipe: LogPipe) -> None:
        """The worker is gone: keep what it wrote, then close, whoever else may still hold the pipe."""
        self._order(lambda: self._finish(pipe))

    def _order(self, order: Callable[[], None] | None) -> None:
        self._orders.put(order)
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(_WAIT_S):
                if key.fd == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._read(key.data)
            if not self._obey():
                return

    def _obey(self) -> bool:
        while not self._orders.empty():
            order = self._orders.get()
            if order is None:
                self._close_all()
                return False
            order()
        return True

    def _add(self, pipe: LogPipe) -> None:
        self._selector.register(pipe.fd, selectors.EVENT_READ, pipe)

    def _read(self, pipe: LogPipe) -> int:
        """One read; how many bytes it gave. The end of the stream closes the log."""
        try:
            data = os.read(pipe.fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        if data:
            pipe.log.append(data)
        else:
            self._close(pipe)
        return len(data)

    def _drain(self, pipe: LogPipe) -> None:
        taken = 0
        while pipe.is_open and taken < _MAX_DRAIN_BYTES:
            count = self._read(pipe)
            if count == 0:
                return
            taken += count

    def _finish(self, pipe: LogPipe) -> None:
        self._drain(pipe)
        if pipe.is_open:
            self._close(pipe)

    def _close(self, pipe: LogPipe) -> None:
        pipe.is_open = False
        self._selector.unregister(pipe.fd)
        os.close(pipe.fd)
        pipe.log.close()

    def _close_all(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, LogPipe):
                self._finish(key.data)


def _resolve(answer: asyncio.Future[str], text: str) -> None:
    if not answer.done():
        answer.set_result(text)
