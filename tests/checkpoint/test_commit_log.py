"""Finding commits: by a word from elsewhere, by their traces, and when they go while somebody looks."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, NotFound, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import (
    BadCommit,
    at_step,
    commit_of,
    commits,
    has_trace,
    latest,
    publish,
    read_record,
    read_stored,
    read_told,
    record_sizes,
    records,
    reject,
)
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.framing import framed, unframed
from behemoth.checkpoint.marker import put_up
from behemoth.checkpoint.paths import REJECTED, commit_key
from behemoth.checkpoint.small_objects import NUM_AT_A_TIME
from behemoth.ports import Into, ObjectInfo, ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import Fail, FaultyStore, When
from behemoth.testing.store import MemoryStore, contents, read
from checkpoint.others_first import OthersFirst
from checkpoint.saved_checkpoint import save, small_layout
from checkpoint.unread_store import BAD_PLACE, DENIED, REFUSED, Unread


class Listings(FaultyStore):
    """Counts them."""

    num = 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.num += 1
        return super().list(prefix)


class TakenForAMoment(FaultyStore):
    """Refuses the first create for an object that has gone when somebody looks."""

    is_taken = True

    def create(self, key: str, data: Buffer) -> None:
        if self.is_taken:
            self.is_taken = False
            raise Conflict(f"create {key}: expected no such object, got one", code="exists")
        super().create(key, data)


def two_commits() -> tuple[MemoryStore, CommitRef, CommitRef]:
    store = MemoryStore()
    for step in (10, 20):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    first, second = (one for one in commits(store) if not isinstance(one, BadCommit))
    return store, first, second


def many_commits(*, steps: int) -> MemoryStore:
    """From step 10 on; all but the first two have no data."""
    store, first, _ = two_commits()
    record = read_record(store, first)
    for step in {*range(10, 10 + steps)} - {10, 20}:
        publish(store, replace(record, step=Step(step), write_id=WriteId(f"a1-{step}")))
    return store


def of_another_write(ref: CommitRef) -> CommitRef:
    return msgspec.structs.replace(ref, write_id=WriteId("a9-9"))


def test_a_record_of_a_told_size_is_read_without_a_listing() -> None:
    inner, first, _ = two_commits()
    store = Listings(inner)
    size_bytes = record_sizes(inner)[first.step]
    assert read_told(store, first, record_bytes=size_bytes).ref == first
    assert store.num == 0


@pytest.mark.parametrize("by_bytes", [-10_000, -1, 1])
def test_a_record_that_has_not_the_told_size_is_found_as_ever(by_bytes: int) -> None:
    store, first, _ = two_commits()
    size_bytes = max(0, record_sizes(store)[first.step] + by_bytes)
    assert read_told(store, first, record_bytes=size_bytes).ref == first


@pytest.mark.parametrize("is_size_known", [True, False])
def test_a_record_that_is_not_there_or_anothers_is_gone(is_size_known: bool) -> None:
    store, first, _ = two_commits()
    size_bytes = record_sizes(store)[first.step] if is_size_known else 0
    with pytest.raises(NotFound, match="write 'a9-9': expected it in the store"):
        read_told(store, of_another_write(first), record_bytes=size_bytes)
    store.delete([commit_key(first.step)])
    with pytest.raises(NotFound, match="write 'a1-10': expected it in the store"):
        read_told(store, first, record_bytes=size_bytes)


def test_a_store_shows_a_commit_whole_damaged_or_rejected_and_no_other() -> None:
    store, first, second = two_commits()
    assert not has_trace(MemoryStore(), [first])
    assert has_trace(store, [first])
    assert not has_trace(store, [of_another_write(first)])
    store.create("commits/notes.txt", b"mine")
    assert not has_trace(store, [of_another_write(first)])
    reject(store, first, "chunk 3 is damaged")
    assert has_trace(store, [first])
    assert not has_trace(store, [of_another_write(first)])
    store.delete([commit_key(second.step)])
    assert not has_trace(store, [second])
    store.create(commit_key(second.step), b"rubbish")
    assert has_trace(store, [second])


def test_what_a_later_release_wrote_into_a_record_stays_where_it_is_published_again() -> None:
    store, first, _ = two_commits()
    _, data = read_stored(store, first)
    newer = framed(unframed(data, name="commit")[:-1] + b',"weather":"fine"}')
    copy = MemoryStore()
    record = publish(copy, CommitRecord.decode(newer), newer)
    assert read_stored(copy, first) == (record, newer)


def test_a_commit_takes_a_step_that_somebody_had_for_a_moment() -> None:
    store, first, _ = two_commits()
    record, _ = read_stored(store, first)
    later = replace(record, step=Step(30))
    assert publish(TakenForAMoment(store), later) == later
    assert latest(store) == later.ref


@pytest.mark.parametrize("is_step_taken", [False, True], ids=["a free step", "the step of a rejected commit"])
def test_an_answer_that_was_lost_is_read_back(is_step_taken: bool) -> None:
    store, first, _ = two_commits()
    record, _ = read_stored(store, first)
    again = replace(record, write_id=WriteId("a2-1"))
    create = 0
    if is_step_taken:
        put_up(store, REJECTED, (first.step, first.write_id), reason="a loss that rose")
        create = 2  # after one that finds the step taken, and the removal of what was rejected
    else:
        reject(store, first, reason="a loss that rose")
    faulty = FaultyStore(store, Fail(write=create, when=When.AFTER, error=Unavailable("no answer")))
    assert publish(faulty, again) == again
    assert faulty.num_writes == create + 1
    assert read_record(store, again.ref) == again


def test_a_record_on_a_disk_that_fails_is_not_told_as_committed() -> None:
    """It can be read back from memory, as after a folder that could not be synced."""
    store, first, _ = two_commits()
    record, _ = read_stored(store, first)
    faulty = FaultyStore(store, Fail(write=0, when=When.AFTER, error=BAD_PLACE))
    with pytest.raises(Unavailable, match="input/output error"):
        publish(faulty, replace(record, step=Step(30)))


@pytest.mark.parametrize("error", [DENIED, BAD_PLACE, REFUSED], ids=str)
def test_a_record_that_cannot_be_read_is_one_bad_commit_and_the_newest_other_one_is_the_latest(
    error: BehemothError,
) -> None:
    inner, first, second = two_commits()
    store = Unread(inner, {commit_key(second.step): error})
    good, bad = commits(store)
    assert good == first
    assert isinstance(bad, BadCommit)
    assert (bad.step, bad.error, bad.is_damaged, bad.is_unread) == (20, error, False, True)
    assert latest(store) == first
    assert has_trace(store, [second])
    with pytest.raises(Conflict, match="got a record that is not readable"):
        save(store, small_layout(), step=20, write_id="a2-1")


def test_the_commit_of_a_step_is_what_all_commits_have_of_it() -> None:
    store, first, second = two_commits()
    store.create(commit_key(Step(30)), b"rubbish")
    put_up(store, REJECTED, (second.step, second.write_id), reason="a loss that rose")
    for step in (0, 10, 20, 30):
        expected = next((one for one in commits(store) if one.step == step), None)
        found = commit_of(store, Step(step))
        assert type(found) is type(expected)
        assert isinstance(found, BadCommit) or found == expected
    assert commit_of(store, first.step) == first


def test_the_commit_of_a_step_is_found_without_a_read_of_others() -> None:
    """There may be a thousand, of megabytes each, and every rank of a load may ask."""
    inner, first, second = two_commits()
    store = Unread(inner, {commit_key(second.step): Unavailable("no answer")})
    assert commit_of(store, first.step) == first


@pytest.mark.parametrize("error", [DENIED, BAD_PLACE, REFUSED], ids=str)
def test_where_no_record_can_be_read_nobody_begins_anew(error: BehemothError) -> None:
    inner, first, second = two_commits()
    store = Unread(inner, {commit_key(one.step): error for one in (first, second)})
    with pytest.raises(type(error)):
        latest(store)
    assert [type(one) for one in commits(store)] == [BadCommit, BadCommit]


def test_of_a_store_that_is_away_no_record_is_bad() -> None:
    inner, _, second = two_commits()
    store = Unread(inner, {commit_key(second.step): Unavailable("no answer")})
    for look in (commits, latest):
        with pytest.raises(Unavailable, match="no answer"):
            look(store)


def refs_of(store: ObjectStore) -> list[CommitRef | BadCommit]:
    return [one if isinstance(one, BadCommit) else one.ref for one in records(store)]


@pytest.mark.parametrize("look", [commits, refs_of])
def test_records_are_read_several_at_a_time_and_told_in_order_with_the_errors_of_their_own(
    look: Callable[[ObjectStore], list[CommitRef | BadCommit]],
) -> None:
    """The oldest one is read last of those that are under way."""
    inner, oldest = many_commits(steps=2 * NUM_AT_A_TIME), commit_key(Step(10))
    store = OthersFirst(inner, oldest, num_others=NUM_AT_A_TIME - 1, errors={commit_key(Step(12)): DENIED})
    found = look(store)
    assert [one.step for one in found] == [*range(10, 10 + 2 * NUM_AT_A_TIME)]
    assert [one.error for one in found if isinstance(one, BadCommit)] == [DENIED]


def test_of_a_store_that_is_away_no_more_records_are_asked_for_than_were_under_way() -> None:
    inner = many_commits(steps=3 * NUM_AT_A_TIME)
    away = {info.key: Unavailable("no answer") for info in inner.list("commits")}
    store = OthersFirst(inner, commit_key(Step(10)), num_others=NUM_AT_A_TIME - 1, errors=away)
    with pytest.raises(Unavailable, match="no answer"):
        commits(store)
    assert store.num_begun == NUM_AT_A_TIME


def test_a_rejection_leaves_a_record_that_cannot_be_read_which_then_counts_for_nobody() -> None:
    inner, _, second = two_commits()
    store = Unread(inner, {commit_key(second.step): DENIED})
    reject(store, second, "chunk 3 is damaged")
    assert commit_key(second.step) in {info.key for info in inner.list("commits")}
    store.errors = {}
    assert [one.step for one in commits(store)] == [10]


def test_a_link_and_a_socket_among_the_records_are_told_with_their_steps_and_hide_no_other(tmp_path: Path) -> None:
    saved, first, second = two_commits()
    store = LocalStore(tmp_path / "store")
    for info in saved.list(""):
        store.create(info.key, read(saved, info.key, info.size_bytes))
    record = tmp_path / "store" / commit_key(second.step)
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    os.mknod(tmp_path / "store" / "commits" / "000000030.json", stat.S_IFSOCK | 0o600)  # bind() takes short paths only
    good, link, other = commits(store)
    assert good == first
    assert isinstance(link, BadCommit)
    assert isinstance(other, BadCommit)
    assert (link.step, type(link.error), link.is_unread) == (20, Denied, True)
    assert (other.step, type(other.error), other.is_damaged) == (30, Corrupt, True)
    assert latest(store) == first
    store.close()


class ExchangedInBetween(FaultyStore):
    """Has the record of a step replaced by another between its listing and the first read of it."""

    def __init__(self, inner: MemoryStore, key: str, new: bytes) -> None:
        super().__init__(inner)
        self._key, self._new = key, new

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        if key == self._key and self._new:
            self._inner.replace(key, old=contents(self._files)[key], new=self._new)
            self._new = b""
        super().read_into(key, offset_bytes=offset_bytes, into=into)


@pytest.mark.parametrize("write_id", ["b", "a2-10-of-a-longer-name", "a2-10"])
def test_a_record_that_is_exchanged_while_somebody_looks_is_the_new_one_and_no_damage(write_id: str) -> None:
    inner, first, _ = two_commits()
    old = read_record(inner, first)
    new = replace(old, write_id=WriteId(write_id))
    looks: tuple[Callable[[ObjectStore], object], ...] = (
        lambda store: at_step(store, first.step),
        lambda store: next(iter(records(store))),
        lambda store: read_stored(store, new.ref)[0],
    )
    for look in looks:
        store = ExchangedInBetween(inner.copy(), commit_key(first.step), new.encode())
        assert look(store) == new
