"""Puts files into, and out of, the page cache: what a restore costs depends on where its bytes are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def each_file(folder: Path, work: Callable[[int], None]) -> None:
    """Call `work` with a descriptor of every file below."""
    for path in (one for one in folder.rglob("*") if one.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            work(fd)
        finally:
            os.close(fd)


def drop(fd: int) -> None:
    """Out of the page cache."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def cache(fd: int) -> None:
    """Into the page cache in one way for everybody: pages that a mapped read has brought in are smaller and slower, and
    the second read of a page pays for its place among the active ones.
    """
    drop(fd)
    block = bytearray(8 << 20)
    for _ in range(2):
        os.lseek(fd, 0, os.SEEK_SET)
        while os.readv(fd, [block]):
            pass
