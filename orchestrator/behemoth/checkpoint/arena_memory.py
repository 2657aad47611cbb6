"""Shared memory for an arena: mapped at addresses that suit 2 MiB pages, and backed by such pages where possible.

A kernel gives shared memory in pages of 4 KiB unless its administrator says otherwise (`shmem_enabled` of transparent
hugepages). They lie anywhere, so that direct I/O becomes many small requests, and a mapping of a GiB has 262,144
entries. Since Linux 6.1 whoever asks for it in so many words (MADV_COLLAPSE) gets large ones all the same, if address
and offset agree in 2 MiB. mmap(2) does not see to that, and Python's does not let one choose the place: hence ctypes
here. What the bytes mean is `arena`'s.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
import weakref
from collections.abc import Callable

import numpy as np

from behemoth.base.errors import Unavailable
from behemoth.checkpoint.address import address_of

LARGE_BYTES = 2 << 20
"""A large page of x86, and of ARM with small pages of 4 KiB. Where they are larger nothing is collapsed."""
_ASKED_BYTES = 128 << 20
"""Bytes that are collapsed to large pages by one call."""
_LIMIT_S = 1.0
"""A kernel that takes longer for so many is moving others' memory about: the rest stays in small pages."""

# linux/mman.h; Python 3.11 has no names for them: since Linux 5.14 the first two, 6.1 the third
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE, _MADV_COLLAPSE = 22, 23, 25
_MAP_FIXED, _PROT_NONE = 0x10, 0
_FAILED = ctypes.c_void_p(-1).value

_LIBC = ctypes.CDLL(None, use_errno=True)
_MMAP = _LIBC.mmap
_MMAP.restype = ctypes.c_void_p
_MMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_MUNMAP = _LIBC.munmap
_MUNMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MADVISE = _LIBC.madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def map_shared(fd: int, size_bytes: int) -> memoryview:
    """All of a memfd of `size_bytes`, writable, from an address that is a multiple of 2 MiB. Takes no memory yet.

    Unmapped when the last view of it has gone; the descriptor may be closed before. Raises Unavailable when the process
    may map no more.
    """
    reserved_bytes = size_bytes + LARGE_BYTES
    reserved = _mapped(None, reserved_bytes, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    begin = -(-reserved // LARGE_BYTES) * LARGE_BYTES
    try:
        _mapped(begin, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)
    except Unavailable:
        _MUNMAP(reserved, reserved_bytes)
        raise
    memory = (ctypes.c_char * size_bytes).from_address(begin)
    # What was reserved around it goes with it; an exiting process needs none of this.
    weakref.finalize(memory, _MUNMAP, reserved, reserved_bytes).atexit = False
    return memoryview(memory).cast("B")


def before_unmapping(view: memoryview, call: Callable[[], object]) -> None:
    """Register `call` to run once the last view of a mapping is gone, just before it is unmapped; it does not run at
    the end of the process. `view` is any view of the mapping."""
    # Callbacks of a weak reference run from the newest to the oldest one, which unmaps.
    weakref.finalize(view.obj, call).atexit = False


def take(view: memoryview) -> None:
    """Allocate every page of a mapping now, large ones first, so that no later copy into it pays for page faults.

    Blocks 0.1 to 2.5 s per GiB, as the machine has memory at hand. Raises Unavailable when memory is short.
    """
    begin = address_of(view)
    at, end = begin, begin + view.nbytes // LARGE_BYTES * LARGE_BYTES
    while at < end:
        num_bytes = min(_ASKED_BYTES, end - at)
        started = time.monotonic()
        view[at - begin : at - begin + num_bytes : LARGE_BYTES] = bytes(num_bytes // LARGE_BYTES)  # else it finds none
        if _MADVISE(at, num_bytes, _MADV_COLLAPSE) != 0 or time.monotonic() - started > _LIMIT_S:
            break
        at += num_bytes
    _populate(view, _MADV_POPULATE_WRITE)


def enter(view: memoryview) -> None:
    """Map pages that exist already into this process's page table. By read faults: these map many pages at a time, and
    shared memory writable, in a third of the time of write faults. Blocks about 0.1 s per GiB, hardly at all for large
    pages."""
    _populate(view, _MADV_POPULATE_READ)


def _mapped(address: int | None, num_bytes: int, access: int, flags: int, fd: int) -> int:
    place = _MMAP(address, num_bytes, access, flags, fd, 0)
    if place is None or place == _FAILED:
        raise Unavailable(
            f"arena: expected to map {num_bytes} bytes, got {os.strerror(ctypes.get_errno())}",
            hint="see `ulimit -v` and vm.max_map_count",
            code="arena-memory",
        )
    return int(place)


def _populate(view: memoryview, advice: int) -> None:
    if _MADVISE(address_of(view), view.nbytes, advice) == 0:
        return
    error = ctypes.get_errno()
    if error != errno.EINVAL:
        raise Unavailable(
            f"arena of {view.nbytes} bytes: expected that much memory, got {os.strerror(error)}",
            hint="free memory on the node, or shrink what a rank holds",
            code="arena-memory",
        )
    # An older kernel: reading maps the pages, and the first copy pays for the rest.
    np.frombuffer(view, dtype=np.uint8)[:: mmap.PAGESIZE].max()
