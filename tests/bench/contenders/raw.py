"""The machine's own rate: the same bytes in large blocks by pwrite(2) and preadv(2), without CRCs, names or a commit.

A file for each thread, unless told otherwise, since threads that share one wait for each other on its lock: that would
be an easy opponent.
Memory is page-aligned and one block after another; nothing is copied besides. Neighbours: `state`, `ours`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from behemoth.checkpoint.address import address_of

BLOCK_BYTES = 8 << 20


class Raw:
    """`memory`, in as many files below `folder` as there are threads; `is_shared`: in one, each thread its part.
    `staging`: warm memory as large, into which each block is copied before it is written from there, as it must be if
    training is to go on meanwhile."""

    def __init__(
        self,
        memory: memoryview,
        folder: Path,
        *,
        num_threads: int,
        is_direct: bool,
        is_shared: bool = False,
        staging: memoryview | None = None,
    ) -> None:
        self._memory = memory
        self._folder = folder
        self._flags = os.O_DIRECT if is_direct else 0
        share = -(-memory.nbytes // num_threads)
        self._share_bytes = -(-share // mmap.PAGESIZE) * mmap.PAGESIZE
        self._num_threads = num_threads
        self._is_shared = is_shared
        self._staging = staging

    def write(self) -> None:
        """Durable on return, names too. Into the files that are there, or into new ones."""
        self._folder.mkdir(exist_ok=True)
        self._each(os.O_WRONLY | os.O_CREAT, self._write)
        for folder in (self._folder, self._folder.parent):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(fd)
            os.close(fd)

    def read(self) -> None:
        """Back into the memory that it came from."""
        self._each(os.O_RDONLY, _read)

    def remove(self) -> None:
        """So that the next write has new files."""
        for path in self._folder.iterdir():
            path.unlink()

    def _each(self, access: int, work: Callable[[int, memoryview, int], None]) -> None:
        def run(number: int) -> None:
            share = self._memory[number * self._share_bytes : (number + 1) * self._share_bytes]
            name, at = ("whole", number * self._share_bytes) if self._is_shared else (f"part-{number}", 0)
            fd = os.open(self._folder / name, access | self._flags, 0o666)
            try:
                work(fd, share, at)
            finally:
                os.close(fd)

        with ThreadPoolExecutor(self._num_threads) as pool:
            list(pool.map(run, range(self._num_threads)))

    def _write(self, fd: int, share: memoryview, begin: int) -> None:
        _whole(share, lambda block, at: os.pwrite(fd, self._staged(block), begin + at))
        os.fsync(fd)

    def _staged(self, block: memoryview) -> memoryview:
        if self._staging is None:
            return block
        at = address_of(block) - address_of(self._memory)
        staged = self._staging[at : at + block.nbytes]
        np.copyto(np.frombuffer(staged, np.uint8), np.frombuffer(block, np.uint8))
        return staged


def _read(fd: int, share: memoryview, begin: int) -> None:
    _whole(share, lambda block, at: os.preadv(fd, [block], begin + at))


def _whole(share: memoryview, transfer: Callable[[memoryview, int], int]) -> None:
    """Block after block; the system may take less than a block at once."""
    at = 0
    while at < share.nbytes:
        count = transfer(share[at : at + BLOCK_BYTES], at)
        if count == 0:
            raise SystemExit(f"raw baseline: expected {share.nbytes} bytes in its file, got {at}")
        at += count
