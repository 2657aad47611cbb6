"""A record that nobody asked for ends no job; one that somebody asked for is told with the way out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from app.batches.full_disk import full_disk
from behemoth.app.batches.optional_record import recorded_if_possible
from behemoth.app.batches.record import recorded
from behemoth.base.errors import Conflict, Unavailable
from behemoth.ports import Batch

JOB = b"a job"


class Call:
    """One call of a command: what it found done, keeps, and tells."""

    def __init__(self, folder: Path, *, note: str = "first") -> None:
        self.told: list[str] = []
        self.record = recorded_if_possible(folder, verb="verify", job=JOB, note=note, anew=False, tell=self.told.append)


def batch(number: int) -> Batch:
    return Batch(number=number, data=b"result")


def test_a_record_that_was_asked_for_tells_of_a_full_disk_with_the_option(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match=r"expected to append .* got File too large") as caught,
        recorded(tmp_path, verb="verify", job=JOB) as record,
        full_disk(),
    ):
        record.add(batch(1))
    assert (caught.value.code, "--state" in caught.value.hint) == ("journal-write", True)


def test_a_disk_that_fills_up_is_told_once_and_what_was_kept_until_then_counts(tmp_path: Path) -> None:
    call = Call(tmp_path)
    with suppress(KeyboardInterrupt), call.record as record:
        record.add(batch(1))
        with full_disk():
            record.add(batch(2))
            record.add(batch(3))
        record.add(batch(4))
        assert not record.is_kept
        raise KeyboardInterrupt
    (line,) = call.told
    assert line.startswith(f"journal {tmp_path}/verify-")
    with Call(tmp_path, note="second").record as record:
        assert (record.done(), record.note) == ({1: batch(1)}, "first")
    assert list(tmp_path.iterdir()) == []


def test_on_a_full_disk_and_in_a_folder_that_cannot_be_a_job_goes_unrecorded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    of_file, of_disk = Call(tmp_path / "file"), Call(tmp_path / "state")
    with full_disk(), of_file.record as first, of_disk.record as second:
        assert [one.is_kept for one in (first, second)] == [False, False]
        first.add(batch(1))
        second.add(batch(1))
        assert first.note == second.note == "first"
    assert of_file.told == [f"state folder {tmp_path}/file: expected to write there, got File exists"]
    assert [line.partition(":")[2][:19] for line in of_disk.told] == [" expected to append"]


def test_a_job_that_begins_anew_on_a_full_disk_knows_its_new_note_alone(tmp_path: Path) -> None:
    call = Call(tmp_path)
    with call.record as record:
        record.add(batch(1))
        with full_disk():
            record.forget("fresh")
        assert (record.note, record.done(), record.is_kept, len(call.told)) == ("fresh", {}, False, 1)


def test_two_calls_do_not_do_the_same_job_at_once(tmp_path: Path) -> None:
    second = Call(tmp_path)
    with Call(tmp_path).record, pytest.raises(Conflict, match="expected to be the only process"), second.record:
        pass
    assert second.told == []
