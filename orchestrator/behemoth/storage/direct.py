"""Transfers past the page cache, where the file system can.

They cost no second copy and take no memory from training, and nothing is left to flush at the end. What is small, not
aligned, or refused goes through the page cache. Neighbours: `local` is the store, `positional` the reads and writes.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Sequence

from behemoth.storage.page_cache import cached_bytes
from behemoth.storage.positional import Run, new_bounce, page_bytes, page_runs, read_pages, write_all, write_pages

DIRECT_BYTES = 1 << 20
"""From here on a transfer goes to the disk itself; below, the page cache gathers better."""


class Direct:
    """Of one store. Thread-safe. Without `writes` everything that is written stays in the page cache."""

    def __init__(self, *, writes: bool) -> None:
        self._min_write_bytes = DIRECT_BYTES if writes else sys.maxsize
        self._own = threading.local()

    def write(self, fd: int, run: Run) -> None:
        """Write the run; its whole pages to the disk itself, its edges through the page cache."""
        pages, edges = page_runs(run, min_bytes=self._min_write_bytes)
        if pages is not None and not self._is_written(fd, pages):
            edges = [run]
        for edge in edges:
            write_all(fd, edge)

    def read(self, fd: int, offset_bytes: int, views: Sequence[memoryview]) -> int:
        """Bytes at the front that were read past the page cache: 0 where that is not possible, and where the page cache
        holds the data, which is faster still."""
        num_bytes = page_bytes(offset_bytes, views[0]) if views else 0
        if num_bytes < DIRECT_BYTES:
            return 0
        cached = cached_bytes(fd, offset_bytes, num_bytes)
        if cached is None or 2 * cached >= num_bytes:
            return 0
        direct = _opened_direct(fd, os.O_RDONLY)
        if direct is None:
            return 0
        try:
            return read_pages(direct, offset_bytes, views, self._bounce())
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0
        finally:
            os.close(direct)

    def _is_written(self, fd: int, pages: Run) -> bool:
        """False when this file system does not take direct I/O, or not such; what was written then does not count."""
        direct = _opened_direct(fd, os.O_WRONLY)
        if direct is None:
            return False
        try:
            write_pages(direct, pages, self._bounce())
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        finally:
            os.close(direct)
        return True

    def _bounce(self) -> memoryview:
        """The calling thread's own."""
        if not hasattr(self._own, "bounce"):
            self._own.bounce = new_bounce()
        bounce: memoryview = self._own.bounce
        return bounce


def _opened_direct(fd: int, access: int) -> int | None:
    """A second descriptor of the same file, past the page cache; None where there is no such thing."""
    try:
        return os.open(f"/proc/self/fd/{fd}", access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
