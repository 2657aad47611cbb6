"""Fills a rank's arrays straight from the files of a commit that lie in the page cache already.

Going through the staging memory would copy each byte once more. The store process has opened the commit, checked its
metadata, and says where the files are; here each chunk is read whole, into place, and checked before it leaves the
core's cache. Nothing is written, and the staging memory is left alone. Neighbours: `reader`, which does the same into
staging memory from any store, `staging`, which copies out of that memory, and the SDK as the caller.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from typing_extensions import Buffer

from behemoth.base.errors import Corrupt, Unavailable
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.staging import CHECKED_BYTES, matched
from behemoth.checkpoint.threads import run_all

BATCH_SPANS = 16
"""Chunks of one array that a thread reads through one descriptor: 128 MiB at most."""


def read_files(folder: str, layout: Layout, plan: RankPlan, arrays: Mapping[str, Buffer], *, threads: int = 1) -> None:
    """Fill `arrays` (writable buffers of the plan's pieces) from the shard files below `folder`, an absolute path.

    The files must be of this very layout; whoever names the folder has seen to that. Blocks for one copy out of the
    page cache. Raises Invalid when a buffer does not fit, before anything is read. Raises Corrupt naming array, chunk
    and file when a chunk is damaged or short, Unavailable when a file cannot be read; the arrays then hold a part.
    """
    work = _FilesRead(folder, layout, plan, arrays)
    run_all(work.run, list(_batches(plan.spans)), threads=threads, name="read-files")


def _batches(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The spans in their order, some of one array at a time."""
    for _, of_array in groupby(spans, key=lambda span: span.array):
        whole = list(of_array)
        yield from (whole[at : at + BATCH_SPANS] for at in range(0, len(whole), BATCH_SPANS))


class _FilesRead:
    """Reads spans into place. Several threads share it; each has a scratch buffer for chunks that it needs in part."""

    def __init__(self, folder: str, layout: Layout, plan: RankPlan, arrays: Mapping[str, Buffer]) -> None:
        self._folder = folder
        self._layout = layout
        self._grids = grids(layout)
        pieces = matched(plan, arrays, is_out=True)
        self._targets = {piece.array: (piece.arena_offset, array) for piece, array in pieces}
        self._own = threading.local()

    def run(self, spans: Sequence[Span]) -> None:
        array = spans[0].array
        path = os.path.join(self._folder, self._layout.paths[array], self._grids[array].chunk_key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                for span in spans:
                    self._read(fd, path, span)
            finally:
                os.close(fd)
        except OSError as error:
            raise Unavailable(f"read {path}: {error.strerror}", code="file-read") from error

    def _read(self, fd: int, path: str, span: Span) -> None:
        grid = self._grids[span.array]
        offset, array = self._targets[span.array]
        target = array[span.arena_offset - offset :][: span.length].data
        is_whole = span.length == grid.payload_bytes
        payload = target if is_whole else self._room(grid.payload_bytes)
        if not _is_chunk_intact(fd, grid, span.chunk, payload):
            raise Corrupt(
                f"array {grid.spec.name!r}, chunk {span.chunk}, file {path}: damaged or cut off",
                hint="go back to an older checkpoint",
                code="chunk-crc",
            )
        if not is_whole:
            target[:] = payload[span.offset : span.offset + span.length]

    def _room(self, num_bytes: int) -> memoryview:
        scratch: memoryview = getattr(self._own, "scratch", memoryview(b""))
        if len(scratch) < num_bytes:
            scratch = self._own.scratch = memoryview(mmap.mmap(-1, num_bytes))
        return scratch[:num_bytes]


def _is_chunk_intact(fd: int, grid: Grid, chunk: int, payload: memoryview) -> bool:
    """Read a chunk into `payload`; False when its CRC does not fit or the file ends before."""
    start = grid.chunk_offset_bytes(chunk)
    crc = 0
    for at in range(0, grid.payload_bytes, CHECKED_BYTES):
        block = payload[at : at + CHECKED_BYTES]
        if not _is_read(fd, start + at, block):
            return False
        crc = crc32c(block, crc)
    tail = memoryview(bytearray(TRAILER_BYTES))
    return _is_read(fd, start + grid.payload_bytes, tail) and crc == int.from_bytes(tail, "little")


def _is_read(fd: int, offset_bytes: int, into: memoryview) -> bool:
    """Fill `into`; False when the file ends before. Raises OSError."""
    done = 0
    while done < len(into):
        count = os.preadv(fd, [into[done:]], offset_bytes + done)
        if count == 0:
            return False
        done += count
    return True
