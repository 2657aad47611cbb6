"""Batch workers as they ship, except that a test can count what they ran, and have one die or all wait at a known
moment: `python -m cli.counted_worker`. The neighbour `counted_command` has a command use them.

They meet the test in a folder of the target's name below the one that the environment names.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path
from threading import Event

import msgspec

from behemoth.app.batches.jobs import ExportJob, ImportJob, Job, VerifyJob, Work, decode_job, open_work
from behemoth.app.batches.worker import serve, take_settings

FOLDER_ENV = "BEHEMOTH_TEST_COUNTED"
DIES = "dies"
"""A file with one of VICTIMS: whichever worker removes it first has that killed, its batch written and not told."""
VICTIMS = ("program", "actor")
HELD = "held"
"""A file that a test locks: once a few batches have begun, every other one waits for the lock."""
BEGUN_BEFORE_HELD = 3


def counted_folder(above: Path, target: str) -> Path:
    """The place of a job that writes to `target`, a path or a URL."""
    return above / target.rstrip("/").rpartition("/")[2]


def begun(folder: Path) -> Counter[int]:
    """How often each batch was begun, by the first of its units, its file or its first part."""
    return Counter(int(path.name.partition(".")[0]) for path in folder.glob("*.begun"))


class CountedWork:
    """A `Work` in another's clothes."""

    def __init__(self, work: Work, job: Job, folder: Path) -> None:
        self._work = work
        self._job = job
        self._folder = folder

    def run(self, data: bytes) -> bytes:
        self._wait_while_held()
        os.close(tempfile.mkstemp(prefix=f"{_first(self._job, data)}.", suffix=".begun", dir=self._folder)[0])
        result = self._work.run(data)
        self._die_if_told()
        return result

    def stop(self) -> None:
        self._work.stop()

    def close(self) -> None:
        self._work.close()

    def _wait_while_held(self) -> None:
        held = self._folder / HELD
        if held.exists() and begun(self._folder).total() >= BEGUN_BEFORE_HELD:
            with held.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH)

    def _die_if_told(self) -> None:
        dies = self._folder / DIES
        try:
            victim = dies.read_text()
            dies.unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid() if victim == "program" else _parent(os.getppid()), signal.SIGKILL)
        Event().wait()  # for the keeper, which ends this program when the actor that started it is gone


def _first(job: Job, data: bytes) -> int:
    match job:
        case ExportJob():
            return int(data.decode().split("-")[1])
        case VerifyJob():
            return zlib.crc32(repr(msgspec.msgpack.decode(data)[0]).encode())
        case _:
            return first_unit(data)


def first_unit(data: bytes) -> int:
    """Of a batch that writes a checkpoint, as `writing` encodes it: the spans of its units are what it begins with."""
    return int(msgspec.msgpack.decode(data)[0][0][0])


def _parent(pid: int) -> int:
    """A worker's parent is its keeper, whose parent is the actor of the node."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return int(after_name.split()[1])


def _open(data: bytes) -> Work:
    job = decode_job(data)
    opened = open_work
    if isinstance(job, ImportJob) and job.kind == "dcp":
        from behemoth.dcp import batch_worker  # torch takes a second to load

        opened = batch_worker._open
    place = os.fsdecode(job.url if isinstance(job, VerifyJob) else job.to)
    return CountedWork(opened(data), job, counted_folder(Path(os.environ[FOLDER_ENV]), place))


def main() -> int:
    serve(take_settings(os.environ), open_work=_open)
    return 0


if __name__ == "__main__":
    sys.exit(main())
