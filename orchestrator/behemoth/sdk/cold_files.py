"""Fills a rank's arrays from files of a commit that no page cache holds.

One direct read (O_DIRECT) brings a chunk and its CRC into place, or into a small buffer where the place is not aligned
to pages; it is checked and copied while other threads read, so that the disk is never idle. Staging memory is left
alone: another copy of each byte would take longer than it is likely to save. Neighbours: `files`, for what the page
cache holds.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.address import address_of
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.held import Held, Memory, matched, settle
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.own_memory import own_memory
from behemoth.checkpoint.plan import PAGE_BYTES, RankPlan, Span
from behemoth.checkpoint.reading_threads import THREADS_PER_READER
from behemoth.checkpoint.threads import run_all
from behemoth.sdk.files import batches, damaged, named, opened, readers

BATCH_BYTES = 16 << 20
"""What a thread reads through one descriptor: little enough that all threads end together."""
BLOCK_BYTES = 1 << 20
"""What is checked and then copied while it is in a core's caches."""


def read_cold_files(
    folder: str, layout: Layout, plan: RankPlan, arrays: Mapping[str, Memory], *, threads: int = 1
) -> None:
    """As `files.read_files`, with the same errors, but past the page cache (O_DIRECT). Memory: one chunk per thread."""
    targets = matched(plan, arrays, is_out=True)
    work = _ColdRead(folder, layout, targets)
    chunk_bytes = max((grid.payload_bytes for grid in grids(layout)), default=0)
    num_threads = readers(targets, _room_bytes(chunk_bytes), threads=threads * THREADS_PER_READER)
    run_all(work.run, list(batches(plan.spans, BATCH_BYTES)), threads=num_threads, name="read-cold")


def _room_bytes(payload_bytes: int) -> int:
    """A page for what follows a chunk, and whole pages for a chunk."""
    return 2 * PAGE_BYTES + payload_bytes


class _ColdRead:
    """Reads spans into place. Several threads share it."""

    def __init__(self, folder: str, layout: Layout, targets: Sequence[Held]) -> None:
        self._folder = folder
        self._layout = layout
        self._grids = grids(layout)
        self._targets = targets
        self._own = threading.local()

    def run(self, spans: Sequence[Span]) -> None:
        """Read spans of one shard file."""
        grid = self._grids[spans[0].array]
        path = os.path.join(self._folder, self._layout.paths[spans[0].array], grid.shard_key(spans[0].shard))
        with named(path), _shard(path, grid) as shard:
            for span in spans:
                self._read(shard, span, self._targets[span.piece])

    def _read(self, shard: _Shard, span: Span, target: Held) -> None:
        size = shard.grid.payload_bytes
        room = self._room(size)
        begin = span.arena_offset - target.piece.arena_offset
        place = target.place(begin, begin + size) if span.length == size else None
        if place is not None and place.ctypes.data % PAGE_BYTES == 0:
            stored, crc = shard.read(span, place.data, room[:PAGE_BYTES]), crc32c(place.data)
        else:
            chunk = room[PAGE_BYTES : PAGE_BYTES + size]
            stored = shard.read(span, chunk, room[:PAGE_BYTES])
            crc = _copied(np.frombuffer(chunk, np.uint8), span, target, begin)
        if crc != stored:
            raise damaged(shard.grid, span, shard.path)

    def _room(self, payload_bytes: int) -> memoryview:
        """The calling thread's own buffer of at least the bytes that a chunk needs."""
        num_bytes = _room_bytes(payload_bytes)
        if not hasattr(self._own, "room") or self._own.room.nbytes < num_bytes:
            self._own.room = own_memory(num_bytes)
        room: memoryview = self._own.room
        return room


def _copied(chunk: npt.NDArray[np.uint8], span: Span, target: Held, begin: int) -> int:
    """The CRC-32C of a chunk, of which the span's part is then in place, from byte `begin` of the piece on."""
    crc = 0
    try:
        for at in range(0, len(chunk), BLOCK_BYTES):
            block = chunk[at : at + BLOCK_BYTES]
            crc = crc32c(block.data, crc)
            first, last = max(at, span.offset), min(at + len(block), span.offset + span.length)
            if first < last:
                target.fill(block[first - at : last - at], begin + first - span.offset)
    finally:
        settle((target,))
    return crc


class _Shard:
    """An open shard file. `direct`: a second descriptor of it, past the page cache, where there is such a thing."""

    def __init__(self, path: str, grid: Grid, fd: int, direct: int | None) -> None:
        self.path = path
        self.grid = grid
        self._fd = fd
        self._direct = direct

    def read(self, span: Span, payload: memoryview, page: memoryview) -> int:
        """Fill `payload` with that of the span's chunk; its stored CRC. `page` is room for that, at a page's start."""
        start = self.grid.chunk_offset_bytes(span.chunk)
        tail = page[:TRAILER_BYTES]
        done_bytes = self._read_direct(start, payload, page)
        for view, begin in ((payload, 0), (tail, payload.nbytes)):
            at = max(0, done_bytes - begin)
            while at < view.nbytes:
                count = os.preadv(self._fd, [view[at:]], start + begin + at)
                if count == 0:
                    raise damaged(self.grid, span, self.path, "the file became shorter", code="shard-short")
                at += count
        return int.from_bytes(tail, "little")

    def _read_direct(self, start: int, payload: memoryview, page: memoryview) -> int:
        """The number of bytes that are in place: 0 where the chunk or the memory is not aligned to pages, or the file
        system wants another alignment."""
        if self._direct is None or any(one % PAGE_BYTES for one in (start, payload.nbytes, address_of(payload))):
            return 0
        try:
            return os.preadv(self._direct, [payload, page], start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0


@contextmanager
def _shard(path: str, grid: Grid) -> Iterator[_Shard]:
    with ExitStack() as stack:
        fd = stack.enter_context(opened(path, grid)).fileno()
        direct: int | None = None
        try:
            direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            stack.callback(os.close, direct)
        except OSError:
            pass  # tmpfs before Linux 6.6, and others: what follows reads through the cache
        yield _Shard(path, grid, fd, direct)
