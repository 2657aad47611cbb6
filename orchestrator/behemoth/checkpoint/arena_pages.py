"""The pages of an arena: mapped and faulted in once, so that no save pays for it.

Knows nothing of what stands in them; the neighbour `arena` does. It never creates or closes the descriptor.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress

import numpy as np

from behemoth.base.errors import Unavailable
from behemoth.checkpoint.arena_format import PAGE_BYTES

_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23  # linux/mman.h, since Linux 5.14; Python 3.11 has no names for them


def map_new(fd: int, size_bytes: int) -> mmap.mmap:
    """Empty pages of our own. What the memory held before is lost. Raises Unavailable when memory is short."""
    os.ftruncate(fd, 0)
    os.ftruncate(fd, size_bytes)
    memory = mmap.mmap(fd, size_bytes)
    _want_large_pages(memory)
    _populate(memory, _MADV_POPULATE_WRITE)
    return memory


def fault_in(memory: mmap.mmap) -> None:
    """Map pages that another process has made. Reading maps sixteen at a time, and shared memory writable, for a third
    of the time."""
    _want_large_pages(memory)
    _populate(memory, _MADV_POPULATE_READ)


def _want_large_pages(memory: mmap.mmap) -> None:
    """Where the machine gives shared memory pages of 2 MiB to those who ask (`shmem_enabled` of transparent hugepages),
    copies and direct I/O get through less of them."""
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)


def _populate(memory: mmap.mmap, advice: int) -> None:
    try:
        memory.madvise(advice)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise Unavailable(
                f"arena of {len(memory)} bytes: expected that much memory, got {error.strerror}",
                hint="free memory on the node, or shrink what a rank holds",
                code="arena-memory",
            ) from error
        # An older kernel: reading maps the pages, and the first copy pays for the rest.
        np.frombuffer(memory, dtype=np.uint8)[::PAGE_BYTES].max()
