"""The moves of a restore without asking what is moved: between warm buffers, by the same threads in the same blocks.

Neighbours: `restore_tiers`, which has our side of each move, and `peer_memory`, the program that answers `receive`.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from programs.peer_memory import RANGE
from programs.tiers_scene import BLOCK_BYTES

from behemoth.checkpoint.threads import run_all


class FileRange(NamedTuple):
    """Bytes of a file. Whole blocks of ranges past the page cache must begin and end pages."""

    path: Path
    offset: int
    num_bytes: int


class RawMoves:
    """Staging memory and a program's memory, both of `num_bytes`, page-aligned."""

    def __init__(self, num_bytes: int, peer_port: int, *, num_threads: int) -> None:
        self._staged = _warm(num_bytes)
        self._target = _warm(num_bytes)
        self._links = [socket.create_connection(("127.0.0.1", peer_port)) for _ in range(num_threads)]

    def copy_out(self) -> None:
        def copy(start: int) -> None:
            part = slice(start, start + BLOCK_BYTES)
            np.copyto(self._target[part], self._staged[part])

        run_all(copy, self._starts(), threads=len(self._links), name="raw")

    def receive(self) -> None:
        shares = [self._starts()[number :: len(self._links)] for number in range(len(self._links))]

        def work(number: int) -> None:
            link = self._links[number]
            for start in shares[number]:
                view = self._staged[start : start + BLOCK_BYTES].data
                link.sendall(RANGE.pack(start, len(view)))
                while view:
                    view = view[link.recv_into(view) :]

        run_all(work, range(len(self._links)), threads=len(self._links), name="raw")

    def read(self, ranges: Sequence[FileRange], *, is_direct: bool) -> None:
        """One range behind the other into staging memory; `is_direct`: past the page cache."""

        def work(block: tuple[int, int, memoryview]) -> None:
            fd, at, view = block
            while view:
                got = os.preadv(fd, [view], at)
                assert got, "expected as many bytes as the range says, got the end of the file"
                view, at = view[got:], at + got

        with ExitStack() as stack:
            blocks, left = [], self._staged.data
            for path, offset, num_bytes in ranges:
                fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if is_direct else 0))
                stack.callback(os.close, fd)
                for start in range(0, num_bytes, BLOCK_BYTES):
                    size = min(BLOCK_BYTES, num_bytes - start)
                    blocks.append((fd, offset + start, left[:size]))
                    left = left[size:]
            run_all(work, blocks, threads=len(self._links), name="raw")

    def close(self) -> None:
        for link in self._links:
            link.close()

    def _starts(self) -> Sequence[int]:
        return range(0, len(self._staged), BLOCK_BYTES)


def _warm(num_bytes: int) -> np.ndarray:
    memory = np.ones(num_bytes + mmap.PAGESIZE, dtype=np.uint8)
    begin = -memory.ctypes.data % mmap.PAGESIZE
    return memory[begin : begin + num_bytes]
