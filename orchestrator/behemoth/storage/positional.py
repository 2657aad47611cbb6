"""Buffers to and from offsets of a file: pwritev and preadv in full, whatever the system takes at once.

Direct I/O requires file offsets, memory addresses and lengths that are multiples of a block. A page is such a multiple
on every disk in use, so whole pages are transferred directly, and unaligned memory is copied through a small buffer.
Must know descriptors and buffers only. The neighbour is `local`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.address import address_of
from behemoth.checkpoint.into import buffers_of
from behemoth.ports import Into, Part

MAX_BUFFERS_PER_CALL = min(1024, os.sysconf("SC_IOV_MAX"))
"""Linux takes 1024 buffers in one pwritev(2) (IOV_MAX)."""

PAGE_BYTES = 4096
BOUNCE_BYTES = 4 << 20
"""Size of the buffer for unaligned memory: large enough to keep a disk busy, small enough for a core's cache."""

BufferRun = tuple[int, list[memoryview]]
"""An offset in bytes, and what lands there one after another."""


def byte_view(buffer: Buffer, doing: str) -> memoryview:
    """The buffer's bytes, without a copy. Raises Invalid for a strided one, or an element type without a format."""
    try:
        view = memoryview(buffer)
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError, BufferError) as error:
        hint = "pass array.reshape(-1).view(numpy.uint8) of a C-contiguous array"
        raise Invalid(f"{doing}: expected a C-contiguous buffer of plain bytes, got {error}", hint=hint) from error


def target_views(into: Into, key: str, offset_bytes: int) -> list[memoryview]:
    """What a read from `offset_bytes` fills, in buffers that are not empty. Raises Invalid for one that takes none."""
    found = (byte_view(one, f"read {key}") for one in buffers_of(into))
    views = [view for view in found if view.nbytes]
    if offset_bytes < 0 or any(view.readonly for view in views):
        raise Invalid(f"read {key}: expected a writable buffer and an offset >= 0, got offset {offset_bytes} bytes")
    return views


def total_bytes(views: Sequence[memoryview]) -> int:
    """Sum of the sizes of the views."""
    return sum(view.nbytes for view in views)


def cut(views: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """Bytes [start, stop) of the concatenation."""
    found: list[memoryview] = []
    at = 0
    for view in views:
        part = view[max(0, start - at) : max(0, stop - at)]
        if part.nbytes:
            found.append(part)
        at += view.nbytes
    return found


def runs_of(key: str, size_bytes: int, parts: Sequence[Part]) -> list[BufferRun]:
    """Parts as runs, those that follow one another joined. Raises Invalid for bytes outside of the object."""
    runs: list[BufferRun] = []
    next_offset_bytes = -1
    for part in parts:
        views = [view for view in (byte_view(buffer, f"write {key}") for buffer in part.buffers) if view.nbytes]
        end_bytes = part.offset_bytes + total_bytes(views)
        if part.offset_bytes < 0 or end_bytes > size_bytes:
            got = f"[{part.offset_bytes}, {end_bytes})"
            raise Invalid(f"write {key}: expected bytes within [0, {size_bytes}), got {got}")
        if part.offset_bytes == next_offset_bytes:
            runs[-1][1].extend(views)
        else:
            runs.append((part.offset_bytes, views))
        next_offset_bytes = end_bytes
    return runs


def write_all(fd: int, run: BufferRun) -> None:
    """Write the whole run. Raises OSError; the run may then be there in part."""
    offset_bytes, views = run
    first = 0
    while first < len(views):
        batch = views[first : first + MAX_BUFFERS_PER_CALL]
        written_bytes = os.pwritev(fd, batch, offset_bytes)
        offset_bytes += written_bytes
        while first < len(views) and written_bytes >= views[first].nbytes:
            written_bytes -= views[first].nbytes
            first += 1
        if written_bytes:
            views = [views[first][written_bytes:], *views[first + 1 :]]
            first = 0


def new_bounce() -> memoryview:
    """A buffer at a page boundary, for one thread at a time. Its memory is taken as it is touched."""
    return memoryview(mmap.mmap(-1, BOUNCE_BYTES))


def page_runs(run: BufferRun, *, min_bytes: int) -> tuple[BufferRun | None, list[BufferRun]]:
    """The middle of a run that fills whole pages of the file, and what is left; None when it is below `min_bytes`."""
    offset_bytes, views = run
    end_bytes = offset_bytes + total_bytes(views)
    first = -(-offset_bytes // PAGE_BYTES) * PAGE_BYTES
    last = end_bytes // PAGE_BYTES * PAGE_BYTES
    if last - first < max(min_bytes, PAGE_BYTES):
        return None, [run]
    edges = [(offset_bytes, cut(views, 0, first - offset_bytes)), (last, cut(views, last - offset_bytes, end_bytes))]
    return (first, cut(views, first - offset_bytes, last - offset_bytes)), [edge for edge in edges if edge[1]]


def write_pages(fd: int, run: BufferRun, bounce: memoryview) -> None:
    """Write whole pages to a descriptor opened with O_DIRECT. Raises OSError as `write_all` does; EINVAL says that the
    file system wants something else, and nothing is lost by writing the run again another way."""
    offset_bytes, views = run
    for batch in _page_aligned(views, bounce):
        write_all(fd, (offset_bytes, batch))
        offset_bytes += total_bytes(batch)


def page_bytes(offset_bytes: int, into: memoryview) -> int:
    """How many bytes at the front of `into` could be read with O_DIRECT; 0 when file offset or memory is unaligned."""
    if into.nbytes < PAGE_BYTES or offset_bytes % PAGE_BYTES or address_of(into) % PAGE_BYTES:
        return 0
    return into.nbytes // PAGE_BYTES * PAGE_BYTES


def read_pages(fd: int, offset_bytes: int, views: Sequence[memoryview], bounce: memoryview) -> int:
    """Read from a descriptor opened with O_DIRECT what forms whole pages at the front of the first view, and what
    follows it in the same call where that fits into a page: a chunk's CRC, which would be a read of its own.

    Returns the bytes that are in place, which may be fewer. Raises OSError, EINVAL as `write_pages` does.
    """
    first_bytes, end_bytes = page_bytes(offset_bytes, views[0]), total_bytes(views)
    buffers = [views[0][:first_bytes]]
    if first_bytes < end_bytes <= first_bytes + PAGE_BYTES:
        buffers.append(bounce[:PAGE_BYTES])
    read_bytes = min(os.preadv(fd, buffers, offset_bytes), end_bytes)
    at = 0
    for view in cut(views, first_bytes, read_bytes):
        view[:] = bounce[at : at + view.nbytes]
        at += view.nbytes
    return read_bytes


def read_all(fd: int, key: str, offset_bytes: int, views: Sequence[memoryview], *, done_bytes: int = 0) -> None:
    """Fill all of `views` behind the first `done_bytes`. Raises Corrupt when the file ends before, OSError."""
    end_bytes = total_bytes(views)
    while done_bytes < end_bytes:
        batch = cut(views, done_bytes, end_bytes)[:MAX_BUFFERS_PER_CALL]
        count = os.preadv(fd, batch, offset_bytes + done_bytes)
        if count == 0:
            expected = f"at least {offset_bytes + end_bytes} bytes"
            raise Corrupt(f"read {key}: expected {expected}, got {os.fstat(fd).st_size} bytes", code="truncated")
        done_bytes += count


def _page_aligned(views: Sequence[memoryview], bounce: memoryview) -> Iterator[list[memoryview]]:
    """The same bytes in batches of views at page boundaries, of whole pages each: as they are, or in `bounce`."""
    batch: list[memoryview] = []
    kept = filled = 0  # bytes of bounce that are in the batch, and that hold something
    for view in views:
        left = view
        while left.nbytes:
            if filled % PAGE_BYTES == 0 and left.nbytes >= PAGE_BYTES and address_of(left) % PAGE_BYTES == 0:
                taken = left.nbytes // PAGE_BYTES * PAGE_BYTES
                batch += [part for part in (bounce[kept:filled], left[:taken]) if part.nbytes]
                kept = filled
            else:
                taken = min(left.nbytes, bounce.nbytes - filled)
                bounce[filled : filled + taken] = left[:taken]
                filled += taken
            left = left[taken:]
            if filled == bounce.nbytes:
                yield [*batch, bounce[kept:filled]] if kept < filled else batch
                batch, kept, filled = [], 0, 0
    if batch or filled > kept:
        yield [*batch, bounce[kept:filled]] if kept < filled else batch
