"""Direct I/O: transfers past the page cache, where the file system supports it.

They save a copy, take no memory from training, and leave nothing to flush at the end. Transfers that are small,
unaligned or refused go through the page cache. Neighbours: `local` is the store, `positional` the reads and writes.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Sequence

from behemoth.storage.page_cache import cached_bytes
from behemoth.storage.positional import BufferRun, new_bounce, page_bytes, page_runs, read_pages, write_all, write_pages

DIRECT_BYTES = 1 << 20
"""Least size of a direct transfer; the page cache merges smaller ones better."""


class Direct:
    """Direct I/O of one store. Thread-safe. Without `writes` all writes go through the page cache."""

    def __init__(self, *, writes: bool) -> None:
        self._min_write_bytes = DIRECT_BYTES if writes else sys.maxsize
        self._own = threading.local()

    def write(self, fd: int, run: BufferRun) -> None:
        """Write the run; its whole pages to the disk itself, its edges through the page cache."""
        pages, edges = page_runs(run, min_bytes=self._min_write_bytes)
        if pages is not None and not self._is_written(fd, pages):
            edges = [run]
        for edge in edges:
            write_all(fd, edge)

    def read(self, fd: int, offset_bytes: int, views: Sequence[memoryview]) -> int:
        """Read what can be read directly into the front of `views`; returns how many bytes. 0 where direct I/O is not
        possible, and where the page cache holds most of the data, from which reading is faster."""
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

    def _is_written(self, fd: int, pages: BufferRun) -> bool:
        """Write whole pages directly. False when the file system refuses that; the caller then writes the run again."""
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
