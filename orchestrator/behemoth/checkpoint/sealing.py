"""Makes objects durable while others are still being written, so that the end of a save has little left to wait for.

One fsync(2) is short, but those of hundreds of files together take a tenth of the time of a save of 1 GiB. The order is
free, since nothing counts before the commit. The module does not know what it seals. Neighbour: `writer`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

THREADS = 16
"""They wait for the disk and do not compute; a file system makes durable at once what many of them wait for."""
KEYS_PER_CALL = 8
"""A call also syncs the folders that its objects share, and one file after another."""
BYTES_PER_CALL = 32 << 20
"""Bytes in the page cache from which on a call is made at once, so that the disk works while more is written."""


class Sealing:
    """Objects to be made durable by `seal` of their store. Thread-safe. As a context it ends with its threads, whatever
    is sealed by then."""

    def __init__(self, seal: Callable[[Sequence[str]], None]) -> None:
        self._seal = seal
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._begun: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="ckpt-seal")

    def add(self, keys: Sequence[str], *, num_bytes: int = 0) -> None:
        """Seal these objects, which are completely written, soon, many of them by several calls; at once when many
        bytes wait for the disk. `num_bytes`: how many of their bytes went through the page cache."""
        with self._lock:
            self._waiting += keys
            self._waiting_bytes += num_bytes
            least = 1 if self._waiting_bytes >= BYTES_PER_CALL else KEYS_PER_CALL
            while len(self._waiting) >= least:
                self._begin(KEYS_PER_CALL)

    def finish(self) -> None:
        """Blocks until all that was added is durable. Raises the store's errors."""
        with self._lock:
            while self._waiting:
                self._begin(1)
        for begun in self._begun:
            begun.result()

    def __enter__(self) -> Sealing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, most: int) -> None:
        """With those that wait longest. What waits on counts as few bytes: it is less than a call."""
        keys, self._waiting = self._waiting[:most], self._waiting[most:]
        self._waiting_bytes = 0
        self._begun.append(self._pool.submit(self._seal, keys))
