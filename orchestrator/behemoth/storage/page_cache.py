"""Asks the kernel how much of a file the page cache holds, to choose between cached and direct reads.

Python has no binding of cachestat(2), hence ctypes here and nowhere else in `storage`. Asking reads and changes
nothing. The neighbour is `local`.
"""

from __future__ import annotations

import ctypes
import mmap

_CACHESTAT = 451
"""Number of the system call on every architecture but alpha (Linux 6.5, include/uapi/asm-generic/unistd.h)."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Statistics(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "refaulted"))


def cached_bytes(fd: int, offset_bytes: int, num_bytes: int) -> int | None:
    """How many bytes of this range the page cache holds, in whole pages; None when the kernel does not say.

    It does not before Linux 6.5, under some sandboxes, and for files that belong to somebody else.
    """
    extent, found = _Range(offset_bytes, num_bytes), _Statistics()
    status = _LIBC.syscall(
        ctypes.c_long(_CACHESTAT), ctypes.c_int(fd), ctypes.byref(extent), ctypes.byref(found), ctypes.c_uint(0)
    )
    return None if status != 0 else int(found.cached) * mmap.PAGESIZE
