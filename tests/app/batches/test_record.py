"""What of a job is done survives every kind of end, and only that counts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import pytest

from behemoth.app.batches.driving import Sized, run_job
from behemoth.app.batches.record import RecordFile, Unrecorded, recorded
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.base.errors import Conflict, Denied, Unavailable
from behemoth.ports import Batch
from behemoth.testing.batch_program import SuiteWork
from behemoth.testing.executor import doubles

JOB = b"a job"


@contextmanager
def cut_off(folder: Path, *, job: bytes = JOB, note: str = "first", anew: bool = False) -> Iterator[RecordFile]:
    """A call that does what the block does and is cut off then."""
    with suppress(Unavailable), recorded(folder, verb="verify", job=job, note=note, anew=anew) as record:
        yield record
        raise Unavailable("cut off")


def kept(folder: Path, *, job: bytes = JOB, anew: bool = False) -> tuple[dict[int, bytes], str]:
    """What a call finds that is cut off at once."""
    with cut_off(folder, job=job, note="mine", anew=anew) as record:
        found = {number: result.data for number, result in record.done().items()}
    return found, record.note


def keep(folder: Path, *numbers: int) -> Path:
    """Results of a call that was cut off; its file."""
    with cut_off(folder) as record:
        for number in numbers:
            record.add(Batch(number=number, data=bytes([number, 0, 255])))
    return record.path


def test_results_of_a_call_that_was_cut_off_are_there_for_the_next_one(tmp_path: Path) -> None:
    keep(tmp_path / "a" / "b", 1, 7)
    assert kept(tmp_path / "a" / "b") == ({1: b"\x01\x00\xff", 7: b"\x07\x00\xff"}, "first")
    keep(tmp_path / "a" / "b", 3)
    assert kept(tmp_path / "a" / "b")[0].keys() == {1, 3, 7}


def test_a_job_that_ended_leaves_nothing_and_begins_anew(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    with recorded(tmp_path, verb="verify", job=JOB) as record:
        assert record.done().keys() == {1}
    assert list(tmp_path.iterdir()) == []
    assert kept(tmp_path) == ({}, "mine")


def test_another_job_and_a_call_that_wants_nothing_of_it_know_nothing(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    assert kept(tmp_path, job=b"another") == ({}, "mine")
    assert kept(tmp_path)[0].keys() == {1}
    assert kept(tmp_path, anew=True) == ({}, "mine")
    assert kept(tmp_path)[0] == {}


def test_results_of_another_release_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, 1)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99.0")
    assert kept(tmp_path) == ({}, "mine")


def test_a_record_that_was_cut_or_damaged_anywhere_counts_up_to_there(tmp_path: Path) -> None:
    path = keep(tmp_path, *range(4))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    ends = [len(b"".join(lines[:count])) for count in range(1, len(lines) + 1)]
    for size in {*range(0, len(whole), 9), *ends, *(end - 1 for end in ends)} - {len(whole)}:
        path.write_bytes(whole[:size])
        found, note = kept(tmp_path)
        assert len(found) == max(0, sum(end <= size for end in ends) - 1)
        assert note == ("first" if size >= ends[0] else "mine")
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found, _ = kept(tmp_path)
        assert len(found) == max(0, sum(end <= at for end in ends) - 1)
        assert path.read_bytes().count(b"\n") == len(found) + 1


def test_two_calls_do_not_do_the_same_job_at_once(tmp_path: Path) -> None:
    with recorded(tmp_path, verb="verify", job=JOB):
        with (
            pytest.raises(Conflict, match="expected to be the only process that does this job") as caught,
            recorded(tmp_path, verb="verify", job=JOB),
        ):
            pass
        assert caught.value.code == "job-busy"
        with recorded(tmp_path, verb="verify", job=b"another"):
            pass


def test_a_folder_that_cannot_be_is_denied_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Denied) as caught, recorded(tmp_path / "file" / "x", verb="verify", job=JOB):
        pass
    assert "--state" in caught.value.hint


class Telling(ThreadExecutor):
    """Says which batches it was given."""

    def __init__(self) -> None:
        super().__init__(threads=2, open_work=SuiteWork)
        self.given: list[int] = []

    def run(self, job: bytes, batches: Iterable[Batch]) -> Iterator[Batch]:
        listed = list(batches)
        self.given = [batch.number for batch in listed]
        return super().run(job, listed)


def test_what_is_recorded_is_not_done_again_and_progress_counts_it(tmp_path: Path) -> None:
    executor, told = Telling(), list[tuple[int, int]]()
    batches = [Sized(batch=batch, num_bytes=10) for batch in doubles(range(20))]
    job = str(tmp_path).encode()
    with cut_off(tmp_path / "state", job=job) as record:
        assert len(list(islice(run_job(executor, job, batches, record, progress=lambda *_: None), 4))) == 4
    with recorded(tmp_path / "state", verb="verify", job=job) as record:
        before = set(record.done())
        assert 4 <= len(before) < 20
        found = list(run_job(executor, job, batches, record, progress=lambda *both: told.append(both)))
    assert {result.number: result.data for result in found} == {n: str(2 * n).encode() for n in range(20)}
    assert set(executor.given) == set(range(20)) - before
    assert told == [(10 * number, 200) for number in range(len(before), 21)]


def test_without_a_record_all_is_done(tmp_path: Path) -> None:
    executor = Telling()
    batches = [Sized(batch=batch, num_bytes=1) for batch in doubles(range(3))]
    found = list(run_job(executor, str(tmp_path).encode(), batches, Unrecorded(), progress=lambda *_: None))
    assert (len(found), executor.given) == (3, [0, 1, 2])


KILLED = """
import json, os, signal, sys
from pathlib import Path
from behemoth.app.batches.driving import Sized, run_job
from behemoth.app.batches.record import recorded
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.testing.batch_program import SuiteWork
from behemoth.testing.executor import doubles
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
batches = [Sized(batch=batch, num_bytes=1) for batch in doubles(range(20))]
job = str(folder / "ran").encode()
found = []
with recorded(folder / "state", verb="x", job=job) as record:
    executor = ThreadExecutor(threads=1, open_work=SuiteWork)
    for result in run_job(executor, job, batches, record, progress=lambda *_: None):
        found.append(int(result.data))
        if len(found) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps(sorted(found)))
"""


def test_after_a_kill_the_same_command_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    (tmp_path / "ran").mkdir()
    argv = [sys.executable, "-c", KILLED, str(tmp_path)]
    for limit in ("7", "12"):
        killed = subprocess.run([*argv, limit], capture_output=True, timeout=60, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    ended = subprocess.run([*argv, "-1"], capture_output=True, timeout=60, check=True)
    assert json.loads(ended.stdout) == [2 * number for number in range(20)]
    again = [path.name for path in (tmp_path / "ran").glob("double-*.1")]
    assert len(again) <= 2 * 2  # what a killed call had under way and not recorded: two a thread
    assert list((tmp_path / "state").iterdir()) == []


INTERRUPTED = """
import sys
from pathlib import Path
from behemoth.app.batches.driving import Sized, run_job
from behemoth.app.batches.record import recorded
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.app.batches.workers import WorkerExecutor
from behemoth.base.ids import NodeId
from behemoth.ports import Batch
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.testing.batch_program import SuiteWork
from behemoth.testing.executor import doubles
folder, place = Path(sys.argv[1]), sys.argv[2]
job = str(folder / "ran").encode()
if place == "threads":
    executor = ThreadExecutor(threads=3, open_work=SuiteWork)
else:
    argv = (sys.executable, "-m", "behemoth.testing.batch_program")
    runtime = SubprocessRuntime([NodeId("n0")])
    executor = WorkerExecutor(runtime, threads=3, host="127.0.0.1", address="127.0.0.1", argv=argv)
batches = [Sized(batch=one, num_bytes=1) for one in [Batch(number=2, data=b"hold "), *doubles(range(2))]]
try:
    with recorded(folder / "state", verb="x", job=job) as record:
        for _ in run_job(executor, job, batches, record, progress=lambda *_: None):
            print("a result", flush=True)
finally:
    executor.close()
"""


@pytest.mark.parametrize("place", ["threads", "workers"])
def test_an_interrupt_ends_soon_and_what_was_complete_is_recorded(tmp_path: Path, place: str) -> None:
    (tmp_path / "ran").mkdir()
    argv = [sys.executable, "-c", INTERRUPTED, str(tmp_path), place]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert [program.stdout.readline() for _ in range(2)] == ["a result\n"] * 2
        program.send_signal(signal.SIGINT)
        _, told = program.communicate(timeout=60)
    assert told.endswith("KeyboardInterrupt\n"), told
    assert (tmp_path / "ran" / "hold-gave-up").exists()
    with recorded(tmp_path / "state", verb="x", job=str(tmp_path / "ran").encode()) as record:
        assert record.done().keys() == {0, 1}


def test_what_is_complete_when_the_caller_is_interrupted_is_recorded_too(tmp_path: Path) -> None:
    executor = ThreadExecutor(threads=2, open_work=SuiteWork)
    batches = [Sized(batch=batch, num_bytes=1) for batch in doubles(range(2))]
    job = str(tmp_path).encode()

    def interrupted(_done_bytes: int, _total_bytes: int) -> None:
        while not all((tmp_path / f"double-{number}.0").exists() for number in range(2)):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), recorded(tmp_path / "state", verb="x", job=job) as record:
        list(run_job(executor, job, batches, record, progress=interrupted))
    with recorded(tmp_path / "state", verb="x", job=job) as record:
        assert record.done().keys() == {0, 1}
