"""The journal on disk: `evidence.jsonl`, append-only, one line per piece of evidence.

A line that was cut off by a crash is the last one and was never acted upon, so it is dropped when the file is opened
again. What a line says is `behemoth.reconcile.journal`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from behemoth.base.errors import Unavailable

_RUN_HINT = "free space on the disk of the run directory and run the same file again: it resumes"


class JournalFile:
    """The only writer of one journal, which the run directory's lock ensures. Call `open` first, `close` last.

    `hint` goes into the error when the journal cannot be written; the default is that of a run."""

    def __init__(self, path: Path, *, hint: str = _RUN_HINT) -> None:
        self._path = path
        self._hint = hint
        self._fd = -1

    def open(self) -> bytes:
        """Opens for appending; returns the complete lines that are there, and cuts an incomplete last one off."""
        self.open_for_append()
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.ftruncate(self._fd, len(whole))
        return whole

    def open_for_append(self) -> None:
        """Opens for appending without reading what is there."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, line: bytes) -> None:
        """The line is in the page cache when it returns, so it survives this process, but not the machine before
        `sync`. Raises Unavailable when the disk is full."""
        with self._written(f"append {len(line)} bytes"):
            _write_all(self._fd, line)

    def sync(self) -> None:
        """Makes what was appended durable. Blocks. Raises Unavailable: some file systems report only here that they are
        full."""
        with self._written("make it durable"):
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def _written(self, expected: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(
                f"journal {self._path}: expected to {expected}, got {error.strerror}",
                hint=self._hint,
                code="journal-write",
            ) from error


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
