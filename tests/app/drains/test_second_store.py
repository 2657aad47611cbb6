"""What the leader tells of its second store, and what it leaves for those who only look."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.app.drains.drainer import DrainNews
from behemoth.app.drains.messages import Drained, Settings
from behemoth.app.drains.second_store import SecondStore, last_commit
from behemoth.app.run_directory import DrainState, RunDirectory
from behemoth.base.clock import ManualClock
from behemoth.base.errors import Conflict, Unavailable
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.owner import OWNED, Owner, take
from behemoth.policy.retention import Retention
from behemoth.ports import ObjectInfo
from behemoth.spec.stores import Drain
from behemoth.state.effect import CommitRef
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout

COMMIT = CommitRef(step=Step(20), write_id=WriteId("a1-20"), size_bytes=1)
SETTINGS = Settings(
    source="above", target="below", run_uid=RunUid("mine"), threads=1, rate=None, retention=Retention(keep_last=2)
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory(tmp_path / "run")
    directory.open()
    yield directory
    directory.close()


def second_of(directory: RunDirectory, told: list[tuple[str, str, bool]], below: MemoryStore) -> SecondStore:
    return SecondStore(
        Drain(to="below"),
        SETTINGS,
        store=MemoryStore(),
        below=below,
        directory=directory,
        clock=ManualClock(now_us=7),
        tell=lambda reason, message, is_warning: told.append((reason, message, is_warning)),
    )


def test_a_drain_is_an_event_with_its_seconds_and_rate_and_is_noted(directory: RunDirectory) -> None:
    told: list[tuple[str, str, bool]] = []
    second_of(directory, told, MemoryStore()).heard(
        DrainNews(commit=COMMIT, drained=Drained(num_bytes=8 << 20, seconds=2.0))
    )
    assert told == [("Drained", "checkpoint of step 20 drained to below: 8.0 MiB in 2.0 s, 4.0 MiB/s", False)]
    assert directory.drain() == DrainState(url="below", step=Step(20), at_us=7, num_bytes=8 << 20, seconds=2.0)


def test_what_stays_there_against_retention_is_told_once_and_noted(directory: RunDirectory) -> None:
    told: list[tuple[str, str, bool]] = []
    second = second_of(directory, told, MemoryStore())
    for untidy in ("a strange pin", "a strange pin", ""):
        second.heard(DrainNews(commit=COMMIT, drained=Drained(num_bytes=1, seconds=1.0, untidy=untidy)))
        noted = directory.drain()
        assert noted is not None
        assert (noted.step, noted.trouble) == (20, untidy)
    assert [(reason, message) for reason, message, is_warning in told if is_warning] == [
        ("DrainFailed", "what retention gives up in below stays there: a strange pin")
    ]
    assert [reason for reason, _, _ in told] == ["Drained", "DrainFailed", "Drained", "Drained"]


def test_the_same_failure_again_and_again_is_one_event(directory: RunDirectory) -> None:
    told: list[tuple[str, str, bool]] = []
    second = second_of(directory, told, MemoryStore())
    for reason in ("away", "away", "full"):
        second.heard(DrainNews(commit=COMMIT, error=Unavailable(reason, hint="put it back")))
    assert [message for _, message, _ in told] == [
        "checkpoint of step 20 is not drained, tried again: away",
        "checkpoint of step 20 is not drained, tried again: full",
    ]
    noted = directory.drain()
    assert noted is not None
    assert (noted.step, noted.trouble) == (None, "step 20: full; put it back")


class Away(MemoryStore):
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise Unavailable(f"list {prefix}: no whole answer from the store")


def test_what_a_run_must_not_end_without_is_known_also_when_its_first_store_is_away() -> None:
    store = MemoryStore()
    record = save(store, small_layout(), step=30, write_id="a1-30")
    assert record is not None
    for first in (MemoryStore(), Away()):
        assert last_commit(first, (COMMIT,)) == COMMIT
    assert last_commit(store, (COMMIT,)) == record.ref
    assert last_commit(MemoryStore(), ()) is None
    assert last_commit(Away(), ()) is None


def test_nothing_is_fetched_from_the_store_of_another_run(directory: RunDirectory) -> None:
    below = MemoryStore()
    take(below, Owner.of_run(RunUid("theirs"), name="other", directory="/other"), url="below")
    with pytest.raises(Conflict) as caught:
        second_of(directory, [], below).fetch((), lambda _commit, _done, _total: None)
    assert caught.value.code == OWNED


def test_a_copy_of_a_run_directory_is_kept_out_of_the_second_store_which_was_not_copied(
    directory: RunDirectory, tmp_path: Path
) -> None:
    """Its first store may lie within the directory, and is then one of its own."""
    identity = directory.found("big", None, drain="below", run_uid=SETTINGS.run_uid)
    below = MemoryStore()
    save(below, small_layout(), step=20, write_id="a1-20")
    take(below, Owner.of_run(identity.run_uid, name="big", directory=str(directory.path)), url="below")
    shutil.copytree(directory.path, tmp_path / "copy")
    with pytest.raises(Conflict) as caught:
        second_of(RunDirectory(tmp_path / "copy"), [], below).fetch((), lambda _commit, _done, _total: None)
    assert caught.value.code == "run-copied"
    told: list[tuple[str, str, bool]] = []
    second_of(directory, told, below).fetch((), lambda _commit, _done, _total: None)
    assert [reason for reason, _, _ in told] == ["Fetched"]
