"""One rank's log of one attempt: bounded, rotated, the newest output always kept.

Two files at most: `rank-00003.log` and, once that is half full, `rank-00003.log.1`. A disk that is full costs lines,
never the worker: what could not be written is counted and said as soon as there is room again. Used by one thread.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from behemoth.base.ids import Attempt, Rank

TAIL_BYTES = 16 << 10
"""How much of the newest output is also kept in memory, for the report of the worker's end."""
_TAIL_LINES = 30


def log_path(log_dir: str, attempt: Attempt, rank: Rank) -> Path:
    """Where the output of a rank lies."""
    return Path(log_dir) / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"


class RankLog:
    """Opens its file at the first byte. `max_bytes` bounds both files together."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._half_bytes = max(1, max_bytes // 2)
        self._fd = -1
        self._size_bytes = 0
        self._lost_bytes = 0
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.num_bytes = 0
        """Bytes of output seen so far."""

    def append(self, data: bytes) -> None:
        """Never raises for a disk that is full or gone."""
        self.num_bytes += len(data)
        self._remember(data)
        try:
            self._write(data)
        except OSError:
            self._lost_bytes += len(data)

    def last_lines(self) -> str:
        """The newest lines, at most `TAIL_BYTES`; a line that was cut in front is dropped unless it is the only one."""
        text = b"".join(self._tail)[-TAIL_BYTES:].decode(errors="replace")
        lines = text.splitlines()
        if self.num_bytes > TAIL_BYTES and len(lines) > 1:
            lines = lines[1:]
        return "\n".join(lines[-_TAIL_LINES:])

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _remember(self, data: bytes) -> None:
        self._tail.append(data[-TAIL_BYTES:])
        self._tail_bytes += len(self._tail[-1])
        while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            self._open()
        if self._lost_bytes:
            data = b"[behemoth: %d bytes of output are missing here]\n" % self._lost_bytes + data
        # One piece may be larger than what a file may hold: its newest bytes count.
        rest = memoryview(data)[-self._half_bytes :]
        if self._size_bytes and self._size_bytes + len(rest) > self._half_bytes:
            self._rotate()
        while rest:
            written = os.write(self._fd, rest)
            self._size_bytes += written
            rest = rest[written:]
        self._lost_bytes = 0

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size_bytes = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        """The old file keeps its name until the new one takes it, so that a reader always finds a log."""
        fresh = self._path.with_name(self._path.name + ".new")
        older = self._path.with_name(self._path.name + ".1")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            older.unlink(missing_ok=True)
            os.link(self._path, older)
            os.replace(fresh, self._path)
        except OSError:
            os.close(fd)
            raise
        self.close()
        self._fd, self._size_bytes = fd, 0
