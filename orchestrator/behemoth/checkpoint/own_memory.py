"""Private memory that chunks are read into: page-aligned, and of 2 MiB pages where the kernel has them.

`mmap.mmap(-1, n)` of Python is shared memory by default, which comes in pages of 4 KiB: page faults one by one take
longer than filling the pages, and direct I/O into them becomes many small requests. It must not know what is read. The
neighbour is `arena_memory`, for memory that is shared.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

from behemoth.checkpoint.arena_memory import LARGE_BYTES


def own_memory(num_bytes: int) -> memoryview:
    """Writable memory of `num_bytes` (at least 1), page-aligned. Pages are allocated when they are touched, and freed
    with the last view. Raises OSError when the machine has no more."""
    # Since Linux 6.7 a mapping begins where a large page can, if it is as long as some of them.
    mapped = mmap.mmap(-1, -(-num_bytes // LARGE_BYTES) * LARGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    large_bytes = num_bytes // LARGE_BYTES * LARGE_BYTES
    if large_bytes:
        with suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE, 0, large_bytes)  # not the tail: 4 bytes would take 2 MiB
    return memoryview(mapped)[:num_bytes]
