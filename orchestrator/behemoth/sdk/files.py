"""Fills a rank's arrays straight from the files of a commit that lie in the page cache already.

Going through the staging memory would copy each byte once more. The store process has opened the commit, checked its
metadata, and says where the files are; here each chunk is read into place block by block, and checked while a block is
in the core's caches: faster than a mapping of the same pages. What belongs to a device goes through a block of host
memory. Nothing is written, and the staging memory is left alone.
Neighbours: `cold_files` for files that no page cache holds, `reader`, which fills staging memory from any store, and
`staging`, which copies out of that memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt, Unavailable
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.held import Held, Memory, matched, settle
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.threads import run_all

BATCH_BYTES = 128 << 20
"""Bytes of one shard file that a thread reads through one descriptor."""
BLOCK_BYTES = 2 << 20
"""What is read and then checked while it is in a core's caches. A half, a quarter and the double are as fast."""
BOUNCE_BYTES = 64 << 20
"""Host memory of a rank that everything on its way from files to a device goes through; no budget counts it."""


def read_files(folder: str, layout: Layout, plan: RankPlan, arrays: Mapping[str, Memory], *, threads: int = 1) -> None:
    """Fill `arrays` (memory of the plan's pieces) from the shard files below `folder`, an absolute path.

    The files must be of this very layout; whoever names the folder has seen to that. Blocks for one copy out of the
    page cache. Raises Invalid when a buffer does not fit, before anything is read. Raises Corrupt naming array, chunk
    and file when a chunk is damaged or short, Unavailable when a file cannot be read; the arrays then hold a part.
    """
    targets = matched(plan, arrays, is_out=True)
    work = _FilesRead(folder, layout, targets)
    num_threads = readers(targets, BLOCK_BYTES, threads=threads)
    run_all(work.run, list(batches(plan.spans, BATCH_BYTES)), threads=num_threads, name="read-files")


def readers(targets: Sequence[Held], room_bytes: int, *, threads: int) -> int:
    """How many threads read, each with a buffer of `room_bytes`: `threads`, or, where something is for a device, as
    many as BOUNCE_BYTES suffice for, at least one."""
    is_for_device = any(target.lane is not None for target in targets)
    return max(1, min(threads, BOUNCE_BYTES // room_bytes)) if is_for_device else threads


def batches(spans: Sequence[Span], batch_bytes: int) -> Iterator[list[Span]]:
    """The spans in their order, in batches: each is of one shard, and holds up to `batch_bytes` of the rank's own data,
    or one span."""
    for _, of_shard in groupby(spans, key=lambda span: (span.array, span.shard)):
        batch: list[Span] = []
        num_bytes = 0
        for span in of_shard:
            if batch and num_bytes + span.length > batch_bytes:
                yield batch
                batch, num_bytes = [], 0
            batch.append(span)
            num_bytes += span.length
        yield batch


class _FilesRead:
    """Reads spans into place. Several threads share it."""

    def __init__(self, folder: str, layout: Layout, targets: Sequence[Held]) -> None:
        self._folder = folder
        self._layout = layout
        self._grids = grids(layout)
        self._targets = targets

    def run(self, spans: Sequence[Span]) -> None:
        grid = self._grids[spans[0].array]
        key = grid.shard_key(spans[0].shard)
        path = os.path.join(self._folder, self._layout.paths[spans[0].array], key)
        with named(path), opened(path, grid) as file:
            chunks = _Chunks(file, path, grid)
            for span in spans:
                chunks.read(span, self._targets[span.piece])


class _Chunks:
    """Chunks of one open shard file, one after another."""

    def __init__(self, file: io.BufferedReader, path: str, grid: Grid) -> None:
        self._file = file
        self._path = path
        self._grid = grid
        self._scratch = np.empty(min(BLOCK_BYTES, grid.payload_bytes), np.uint8)
        """Buffer for blocks of which only a part goes into place, or that are scattered there. Its pages are allocated
        as they are touched."""

    def read(self, span: Span, target: Held) -> None:
        """Check the span's chunk, and put what the span has of it into place."""
        grid, crc = self._grid, 0
        self._file.seek(grid.chunk_offset_bytes(span.chunk))
        for begin in range(0, grid.payload_bytes, BLOCK_BYTES):
            end = min(begin + BLOCK_BYTES, grid.payload_bytes)
            first, last = max(begin, span.offset), min(end, span.offset + span.length)
            at = span.arena_offset - target.piece.arena_offset + first - span.offset
            place = target.place(at, at + end - begin) if (first, last) == (begin, end) else None
            block = self._scratch[: end - begin] if place is None else place
            self._fill(span, block)
            crc = crc32c(block.data, crc)
            if place is None and first < last:
                _fill_settled(target, block[first - begin : last - begin], at)
        stored = np.empty(TRAILER_BYTES, np.uint8)
        self._fill(span, stored)
        if crc != int.from_bytes(stored.tobytes(), "little"):
            raise damaged(self._grid, span, self._path)

    def _fill(self, span: Span, block: npt.NDArray[np.uint8]) -> None:
        if self._file.readinto(block.data) != block.nbytes:  # it asks again until the file ends
            raise damaged(self._grid, span, self._path, "the file became shorter", code="shard-short")


def _fill_settled(target: Held, data: npt.NDArray[np.uint8], start: int) -> None:
    """Overwrite a piece from byte `start` on. When it returns or raises, `data` may be reused."""
    try:
        target.fill(data, start)
    finally:
        settle((target,))


def damaged(grid: Grid, span: Span, path: str, what: str = "damaged", *, code: str = "chunk-crc") -> Corrupt:
    """The error of a chunk that is not what was written."""
    return Corrupt(
        f"array {grid.spec.name!r}, chunk {span.chunk}, file {path}: {what}",
        hint="go back to an older checkpoint",
        code=code,
    )


@contextmanager
def named(path: str) -> Iterator[None]:
    """Turn an OSError of the block into Unavailable with the file's name."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"read {path}: {error.strerror}", code="file-read") from error


def opened(path: str, grid: Grid) -> io.BufferedReader:
    """A shard file, for reading; the caller closes it. Raises Corrupt when its size is wrong."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW))  # noqa: SIM115
    num_bytes = os.fstat(file.fileno()).st_size
    if num_bytes != grid.file_bytes:
        file.close()
        raise Corrupt(
            f"array {grid.spec.name!r}, file {path}: expected {grid.file_bytes} bytes, got {num_bytes}",
            hint="go back to an older checkpoint",
            code="shard-short",
        )
    return file
