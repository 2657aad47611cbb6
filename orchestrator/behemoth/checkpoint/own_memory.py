"""Memory of this process alone that chunks are read into: whole pages, and large ones where the kernel has them.

Python's own anonymous mapping is shared memory, which comes in pages of 4 KiB. To have them entered one by one takes
longer than to fill them, and direct I/O into them is many small requests. It must not know what is read. The neighbour
is `arena_memory`, for memory that is shared.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

from behemoth.checkpoint.arena_memory import LARGE_BYTES


def own_memory(num_bytes: int) -> memoryview:
    """Writable memory of `num_bytes` from a page's start. It is taken as it is touched, and given back with the last
    view. Raises OSError when the machine has no more."""
    # Since Linux 6.7 a mapping begins where a large page can, if it is as long as some of them.
    mapped = mmap.mmap(-1, -(-num_bytes // LARGE_BYTES) * LARGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    large_bytes = num_bytes // LARGE_BYTES * LARGE_BYTES
    if large_bytes:
        with suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE, 0, large_bytes)  # not the tail: 4 bytes would take 2 MiB
    return memoryview(mapped)[:num_bytes]
