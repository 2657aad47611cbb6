"""Which batches of a job are done: an append-only file, so that the same command resumes after it was killed.

The first line names the job, every other one holds the result of a batch; each has a CRC. What follows a line that is
not whole, after a crash or a power cut, counts as not done: batches are idempotent. The file is locked while a job
runs, and goes when it is done. Neighbours: `driving`, `optional_record` (where nobody asked for it).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from behemoth.app.journal_file import JournalFile
from behemoth.base.decoding import UNDECODABLE, decode_json
from behemoth.base.errors import BehemothError, Conflict, Denied
from behemoth.base.release import installed
from behemoth.checkpoint.framing import framed, unframed
from behemoth.ports import Batch

SYNC_S = 1.0
"""Results of the last second may be lost with the machine, never with the process."""
FORMAT = 2
_HINT = "free space on its disk, or name another folder with --state; the same command goes on where it stopped"


class Record(Protocol):
    """Where results are kept. A job that ends within moments needs no file: see `Unrecorded`."""

    @property
    def note(self) -> str:
        """A string that the first call chose and later calls need: the write id."""
        ...

    @property
    def is_kept(self) -> bool:
        """Whether a later call will know what was done."""
        ...

    def done(self) -> dict[int, Batch]:
        """Results of earlier calls of this very job."""
        ...

    def add(self, result: Batch) -> None:
        """Keep one more."""
        ...

    def forget(self, note: str) -> None:
        """Start over with another note: drop all results."""
        ...


class Unrecorded:
    """Keeps nothing but the note."""

    is_kept = False

    def __init__(self, note: str = "") -> None:
        self.note = note

    def done(self) -> dict[int, Batch]:
        return {}

    def add(self, result: Batch) -> None:
        """Nothing to keep."""

    def forget(self, note: str) -> None:
        self.note = note


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """Another release may cut the same job into other batches, of which the numbers of results say nothing."""

    format: int
    release: str
    job: str
    note: str


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    data: bytes


_Entry = TypeVar("_Entry", _Head, _Line)


class RecordFile:
    """The record of one job in a folder. Made by `recorded`."""

    is_kept = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._job = ""
        self._file = JournalFile(path, hint=_HINT)
        self._synced_s = time.monotonic()
        self._done: dict[int, Batch] = {}
        self.note = ""

    def open(self, job: str, note: str) -> None:
        """Read what is there, and begin anew where it is of another job, format or release."""
        self._job = job
        lines = self._file.open().splitlines(keepends=True)
        head = None if not lines else _decoded(lines[0], _Head)
        if head is None or (head.format, head.release, head.job) != (FORMAT, _release(), job):
            self.forget(note)
            return
        self.note = head.note
        whole_bytes = len(lines[0])
        for line in lines[1:]:
            entry = _decoded(line, _Line)
            if entry is None:
                os.truncate(self.path, whole_bytes)
                break
            self._done[entry.number] = Batch(number=entry.number, data=entry.data)
            whole_bytes += len(line)

    def done(self) -> dict[int, Batch]:
        return dict(self._done)

    def add(self, result: Batch) -> None:
        self._append(_Line(number=result.number, data=result.data))
        if time.monotonic() - self._synced_s >= SYNC_S:
            self._file.sync()
            self._synced_s = time.monotonic()

    def forget(self, note: str) -> None:
        os.truncate(self.path, 0)
        self._done.clear()
        self.note = note
        self._append(_Head(format=FORMAT, release=_release(), job=self._job, note=note))
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _append(self, entry: _Head | _Line) -> None:
        self._file.append(framed(msgspec.json.encode(entry)))


@contextmanager
def recorded(
    folder: Path,
    *,
    verb: str,
    job: bytes,
    note: str = "",
    anew: bool = False,
) -> Iterator[RecordFile]:
    """The record of a job below `folder`, which is made; it is removed when the block ends without an error.

    `note` is kept by the first call and told by `RecordFile.note` to all. With `anew` nothing of earlier calls counts.
    Raises Conflict while another process does the same job, Denied where the folder cannot be written, Unavailable
    where its disk is full.
    """
    key = hashlib.sha256(job).hexdigest()
    path = _path(folder, verb, key)
    lock_fd = _locked(path, verb)
    try:
        if anew:
            os.truncate(path, 0)
        record = RecordFile(path)
        try:
            record.open(key, note)
            yield record
        finally:
            record.close()
        path.unlink(missing_ok=True)
    finally:
        os.close(lock_fd)


def drop_record(folder: Path, *, verb: str, job: bytes) -> None:
    """Remove what a call left of a job that is done. One that cannot be removed, or is still in use, stays: nothing but
    this very job would ever read it."""
    if _path(folder, verb, hashlib.sha256(job).hexdigest()).exists():
        with suppress(BehemothError), recorded(folder, verb=verb, job=job):
            pass


def _path(folder: Path, verb: str, key: str) -> Path:
    return folder / f"{verb}-{key[:16]}.jsonl"


def _locked(path: Path, verb: str) -> int:
    """A descriptor that holds the lock of the file that stands there: whoever ended a job has removed its file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), path.stat()):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
    except BlockingIOError as error:
        raise Conflict(
            f"{verb}: expected to be the only process that does this job, got another one (record {path})",
            hint="wait for it, or end it; this command goes on where it stopped",
            code="job-busy",
        ) from error
    except OSError as error:
        raise Denied(
            f"state folder {path.parent}: expected to write there, got {error.strerror}",
            hint="name another one with --state",
            code="state-folder",
        ) from error


def _decoded(line: bytes, kind: type[_Entry]) -> _Entry | None:
    try:
        return decode_json(unframed(line, name="job"), kind)
    except (BehemothError, *UNDECODABLE):
        return None


def _release() -> str:
    """Empty where nobody has installed it."""
    return installed("behemoth") or ""
