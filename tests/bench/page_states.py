"""Puts files into, and out of, the page cache, and tells what pages memory is made of: what a transfer costs depends on
both."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from behemoth.checkpoint.address import address_of


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


def put_together() -> None:
    """Free memory in pieces as large as can be, as on a machine that has just started: else who is made first gets the
    last large pages, and the others' transfers are slower for that. Only root may; see `large_share`."""
    os.sync()
    for name, value in (("drop_caches", "3"), ("compact_memory", "1")):
        with suppress(OSError):
            Path("/proc/sys/vm", name).write_text(value)


def large_share(view: memoryview) -> float:
    """How much of the mapping in which `view` begins is mapped in large pages, from 0 to 1."""
    address = address_of(view)
    is_wanted, kib = False, {"Size": 0, "AnonHugePages": 0, "ShmemPmdMapped": 0}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            begin, end = (int(one, 16) for one in first.split("-"))
            is_wanted = begin <= address < end
        elif is_wanted and first[:-1] in kib:
            kib[first[:-1]] = int(rest[0])
    return (kib["AnonHugePages"] + kib["ShmemPmdMapped"]) / max(kib["Size"], 1)
