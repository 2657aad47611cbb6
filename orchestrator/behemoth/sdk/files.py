"""Fills a rank's arrays straight from the files of a commit that lie in the page cache already.

Going through the staging memory would copy each byte once more. The store process has opened the commit, checked its
metadata, and says where the files are; here they are mapped, and each chunk is checked and copied into place block by
block, while a block is in the core's cache: faster than read(2) from the same pages. Nothing is written, and the
staging memory is left alone. Neighbours: `reader`, which fills staging memory from any store, `staging`, which copies
out of that memory, and the SDK as the caller.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
from typing_extensions import Buffer

from behemoth.base.errors import Corrupt, Unavailable
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.staging import copied_crc, matched
from behemoth.checkpoint.threads import run_all

BATCH_SPANS = 16
"""Chunks of one shard that a thread reads through one mapping: 128 MiB at most."""
MADV_POPULATE_READ = 22
"""Of madvise(2), since Linux 5.14; Python 3.11 does not name it."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def read_files(folder: str, layout: Layout, plan: RankPlan, arrays: Mapping[str, Buffer], *, threads: int = 1) -> None:
    """Fill `arrays` (writable buffers of the plan's pieces) from the shard files below `folder`, an absolute path.

    The files must be of this very layout; whoever names the folder has seen to that. Blocks for one copy out of the
    page cache. Raises Invalid when a buffer does not fit, before anything is read. Raises Corrupt naming array, chunk
    and file when a chunk is damaged or short, Unavailable when a file cannot be read; the arrays then hold a part.
    """
    work = _FilesRead(folder, layout, plan, arrays)
    run_all(work.run, list(_batches(plan.spans)), threads=threads, name="read-files")


def _batches(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The spans in their order, some of one shard at a time."""
    for _, of_shard in groupby(spans, key=lambda span: (span.array, span.shard)):
        whole = list(of_shard)
        yield from (whole[at : at + BATCH_SPANS] for at in range(0, len(whole), BATCH_SPANS))


class _FilesRead:
    """Reads spans into place. Several threads share it."""

    def __init__(self, folder: str, layout: Layout, plan: RankPlan, arrays: Mapping[str, Buffer]) -> None:
        self._folder = folder
        self._layout = layout
        self._grids = grids(layout)
        self._targets = matched(plan, arrays, is_out=True)

    def run(self, spans: Sequence[Span]) -> None:
        grid = self._grids[spans[0].array]
        key = grid.shard_key(spans[0].shard)
        path = os.path.join(self._folder, self._layout.paths[spans[0].array], key)
        try:
            mapped = _mapped(path, grid)
            for span in spans:
                self._read(mapped, path, grid, span)
        except OSError as error:
            raise Unavailable(f"read {path}: {error.strerror}", code="file-read") from error

    def _read(self, mapped: mmap.mmap, path: str, grid: Grid, span: Span) -> None:
        start = grid.chunk_offset_bytes(span.chunk)
        _populate(mapped, start, grid.payload_bytes + TRAILER_BYTES)
        chunk = np.frombuffer(mapped, np.uint8, count=grid.payload_bytes + TRAILER_BYTES, offset=start)
        payload, stored = chunk[: grid.payload_bytes], int.from_bytes(chunk[grid.payload_bytes :].tobytes(), "little")
        target = self._targets[span.piece]
        at = span.arena_offset - target.piece.arena_offset
        is_whole = span.length == grid.payload_bytes
        crc = copied_crc(payload, target, at) if is_whole else crc32c(payload.data)
        if crc != stored:
            raise _damaged(path, grid, span.chunk)
        if not is_whole:
            target.fill(payload[span.offset : span.offset + span.length], at)


def _mapped(path: str, grid: Grid) -> mmap.mmap:
    """The whole shard file, for reading. Unmapped with its last view. Raises Corrupt when its size is wrong."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        num_bytes = os.fstat(fd).st_size
        if num_bytes != grid.file_bytes:
            raise Corrupt(
                f"array {grid.spec.name!r}, file {path}: expected {grid.file_bytes} bytes, got {num_bytes}",
                hint="go back to an older checkpoint",
                code="shard-short",
            )
        return mmap.mmap(fd, num_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


def _populate(mapped: mmap.mmap, start: int, num_bytes: int) -> None:
    """Bring these bytes in. A disk that cannot read them is an OSError here, and would be a SIGBUS at the first touch.

    Kernels before 5.14 do not know how: an OSError too, since nobody may die of a bad disk. Through ctypes, because
    `mmap.madvise` holds the interpreter lock all the while: 0.1 s of 4 GiB in files of 64 MiB.
    """
    first = start - start % mmap.PAGESIZE
    address = np.frombuffer(mapped, np.uint8).ctypes.data + first
    if _libc.madvise(address, start + num_bytes - first, MADV_POPULATE_READ) == 0:
        return
    error = ctypes.get_errno()
    number = errno.EIO if error == errno.EFAULT else error  # EFAULT is what the kernel calls an I/O error here
    raise OSError(number, os.strerror(number))


def _damaged(path: str, grid: Grid, chunk: int) -> Corrupt:
    return Corrupt(
        f"array {grid.spec.name!r}, chunk {chunk}, file {path}: damaged",
        hint="go back to an older checkpoint",
        code="chunk-crc",
    )
