"""Pins: what is pinned stays, and a pin that was reported as set is never one on nothing."""

import threading
from collections.abc import Callable, Iterator

import pytest
from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Conflict, Corrupt, NotFound
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.marker import Marker
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.pins import lost_pins, pin, pinned_writes, unpin
from behemoth.checkpoint.verify import verify
from behemoth.checkpoint.verify_store import verify_store
from behemoth.ports import ObjectInfo, ObjectStore, WritesRanges
from behemoth.state.effect import CommitRef
from behemoth.testing.faults import Crash, FaultyStore, every_death
from behemoth.testing.store import MemoryStore, read
from checkpoint.between import Between
from checkpoint.saved_checkpoint import save, small_layout
from checkpoint.unread_store import DENIED, Unread

WRITE = (Step(10), WriteId("a1-10"))
PIN = "pins/000000010-a1-10.json"


def three_commits() -> MemoryStore:
    store = MemoryStore()
    for step in (10, 20, 30):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    return store


def oldest(store: ObjectStore) -> CommitRef:
    first = commits(store)[0]
    assert isinstance(first, CommitRef)
    return first


def drop_oldest(store: ObjectStore) -> None:
    execute(store, plan_gc(store, drop=[CommitRef(step=WRITE[0], write_id=WRITE[1], size_bytes=0)], in_flight=()))


def stands(store: ObjectStore) -> bool:
    """Whether the pinned checkpoint is there, and every bit of it is."""
    found = [one for one in commits(store) if isinstance(one, CommitRef) and (one.step, one.write_id) == WRITE]
    return any(verify(store, one, threads=1, deep=True).is_intact for one in found)


def test_what_is_pinned_is_not_deleted_until_it_is_unpinned() -> None:
    store = three_commits()
    assert pin(store, oldest(store), reason="the paper's", at_us=7)
    assert pinned_writes(store) == {WRITE}
    drop_oldest(store)
    assert stands(store)
    assert pinned_writes(store) == {WRITE}
    unpin(store, *WRITE)
    drop_oldest(store)
    assert not stands(store)
    assert {info.key.split("/")[0] for info in store.list("")} == {"commits", "steps"}


def test_to_pin_and_unpin_twice_is_fine() -> None:
    store = three_commits()
    assert pin(store, oldest(store), reason="first", at_us=1)
    assert not pin(store, oldest(store), reason="second", at_us=2)
    unpin(store, *WRITE)
    unpin(store, *WRITE)
    assert pinned_writes(store) == frozenset()


def test_a_damaged_pin_keeps_its_checkpoint_and_is_named_by_verify() -> None:
    store = three_commits()
    pin(store, oldest(store), reason="the paper's", at_us=7)
    for data in (b"", b"rubbish", Marker.of(Step(20), WriteId("a1-20"), reason="").encode()):
        store.delete([PIN])
        store.create(PIN, data)
        drop_oldest(store)
        assert stands(store)
        (problem,) = verify_store(store)
        assert (problem.kind, problem.object_key) == ("marker", PIN)


def test_a_flipped_bit_anywhere_in_a_pin_is_found_by_verify() -> None:
    store = three_commits()
    pin(store, oldest(store), reason="the paper's", at_us=7)
    (info,) = store.list("pins")
    whole = read(store, PIN, info.size_bytes)
    for byte in range(len(whole)):
        flipped = bytearray(whole)
        flipped[byte] ^= 1
        store.delete([PIN])
        store.create(PIN, flipped)
        (problem,) = verify_store(store)
        assert (problem.kind, problem.object_key) == ("marker", PIN), byte


@pytest.mark.parametrize("key", ["pins/000000010.json", "pins/notes.txt", "pins/10-a1-10.json", "pins/a/b"])
def test_a_pin_whose_name_says_nothing_stops_every_deletion(key: str) -> None:
    store = three_commits()
    store.create(key, b"keep step 10, please")
    before = list(store.list(""))
    with pytest.raises(Corrupt, match=f"{key}: expected pins/<nine digits>-<write>.json"):
        drop_oldest(store)
    assert list(store.list("")) == before
    (problem,) = verify_store(store)
    assert (problem.kind, problem.object_key) == ("extra", key)


def test_a_step_that_was_not_committed_cannot_be_pinned() -> None:
    store = three_commits()
    with pytest.raises(NotFound, match="commit of step 40"):
        pin(store, CommitRef(step=Step(40), write_id=WriteId("a1-40"), size_bytes=0), reason="", at_us=0)
    assert pinned_writes(store) == frozenset()


def test_the_data_of_a_pinned_commit_that_was_rejected_stay_for_who_wants_to_save_something() -> None:
    store = three_commits()
    pin(store, oldest(store), reason="", at_us=0)
    reject(store, oldest(store), "a chunk is damaged")
    execute(store, plan_gc(store, in_flight=()))
    assert list(store.list("steps/000000010-a1-10"))
    unpin(store, *WRITE)
    execute(store, plan_gc(store, in_flight=()))
    assert not list(store.list("steps/000000010-a1-10"))


def test_to_pin_again_what_is_rejected_at_that_moment_leaves_the_first_pin() -> None:
    store = three_commits()
    first = oldest(store)
    pin(store, first, reason="", at_us=0)
    again = Between(store, 0, lambda: reject(store, first, "a chunk is damaged"), is_after=False)
    with pytest.raises(NotFound):
        pin(again, first, reason="", at_us=0)
    assert pinned_writes(store) == {WRITE}


def test_a_pin_on_what_is_there_is_not_lost_not_while_its_record_cannot_be_read_nor_once_it_is_rejected() -> None:
    store = three_commits()
    assert lost_pins(store) == frozenset()
    pin(store, oldest(store), reason="", at_us=0)
    assert lost_pins(store) == frozenset()
    assert lost_pins(Unread(store, {commit_key(WRITE[0]): DENIED})) == frozenset()
    reject(store, oldest(store), "a chunk is damaged")
    assert lost_pins(store) == frozenset()
    assert verify_store(store) == ()


@pytest.mark.parametrize("is_rejected", [False, True])
def test_a_pin_whose_checkpoint_was_lost_is_a_problem_of_the_store_until_it_is_unpinned(is_rejected: bool) -> None:
    store = three_commits()
    pin(store, oldest(store), reason="", at_us=0)
    if is_rejected:
        reject(store, oldest(store), "a chunk is damaged")
        store.delete([info.key for info in store.list("steps/000000010-a1-10")])
    else:
        store.delete([commit_key(WRITE[0])])
    assert lost_pins(store) == {WRITE}
    (problem,) = verify_store(store)
    assert (problem.kind, problem.object_key) == ("missing", PIN)
    assert problem.message.startswith("expected the checkpoint of step 10, write a1-10, which is pinned, got no commit")
    unpin(store, *WRITE)
    assert lost_pins(store) == frozenset()
    assert verify_store(store) == ()


def test_a_pin_on_an_earlier_write_of_a_step_is_lost_though_another_has_the_step() -> None:
    store = three_commits()
    pin(store, oldest(store), reason="", at_us=0)
    store.delete([commit_key(WRITE[0])])
    save(store, small_layout(), step=10, write_id="a2-10")
    assert lost_pins(store) == {WRITE}


class UnpinsAtOnce(FaultyStore):
    """Somebody unpins what another is looking for, once the pins were listed, and deletes it."""

    is_first = True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = super().list(prefix)
        if prefix == "pins" and self.is_first:
            self.is_first = False
            listed = list(found)
            unpin(self._inner, *WRITE)
            drop_oldest(self._inner)
            return iter(listed)
        return found


def test_a_pin_that_is_taken_away_while_somebody_looks_is_not_lost() -> None:
    store = three_commits()
    pin(store, oldest(store), reason="", at_us=0)
    assert lost_pins(UnpinsAtOnce(store)) == frozenset()
    assert not stands(store)


def _outcome(work: Callable[[], object]) -> BehemothError | None:
    try:
        work()
    except BehemothError as error:
        return error
    return None


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("number", range(5))
def test_a_pin_at_any_moment_of_a_deletion_succeeds_on_a_checkpoint_that_stays_or_fails(
    number: int, is_after: bool
) -> None:
    store, outcomes = three_commits(), []
    ref = oldest(store)
    meanwhile = Between(
        store,
        number,
        lambda: outcomes.append(_outcome(lambda: pin(store, ref, reason="", at_us=0))),
        is_after=is_after,
    )
    drop_oldest(meanwhile)
    if not outcomes:  # the deletion has fewer writes
        assert meanwhile.num_writes <= number
        return
    assert isinstance(outcomes[0], Conflict | NotFound | None)
    assert stands(store) or outcomes[0] is not None
    assert WRITE in pinned_writes(store) or not stands(store)
    assert not list(store.list("deleting"))


@pytest.mark.parametrize("is_after", [False, True])
def test_a_deletion_at_any_moment_of_a_pin_leaves_no_success_on_nothing(is_after: bool) -> None:
    store = three_commits()
    ref = oldest(store)
    meanwhile = Between(store, 0, lambda: drop_oldest(store), is_after=is_after)
    failed = _outcome(lambda: pin(meanwhile, ref, reason="", at_us=0))
    assert stands(store) == (failed is None)
    assert (WRITE in pinned_writes(store)) == (failed is None)


def test_a_deletion_that_read_the_pins_before_this_one_was_there_is_seen_by_whoever_pins() -> None:
    store = three_commits()
    has_read, may_delete = threading.Event(), threading.Event()

    def hold() -> None:
        has_read.set()
        assert may_delete.wait(30)

    deletion = threading.Thread(target=lambda: drop_oldest(Between(store, 1, hold, is_after=False)))

    def begin() -> None:
        deletion.start()
        assert has_read.wait(30)  # it stands before the commit, which is the next to go

    meanwhile = Between(store, 0, begin, is_after=False)
    failed = _outcome(lambda: pin(meanwhile, oldest(store), reason="", at_us=0))
    may_delete.set()
    deletion.join(30)
    assert not stands(store)
    assert isinstance(failed, Conflict)
    assert failed.code == "commit-going"


class Racing(FaultyStore):
    """Has somebody else create something before the first listing of a folder."""

    def __init__(self, inner: WritesRanges, folder: str, key: str, data: Buffer) -> None:
        super().__init__(inner)
        self._folder, self._key, self._data = folder, key, data

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix == self._folder and not list(self._inner.list(self._key.split("/")[0])):
            self._inner.create(self._key, self._data)
        return super().list(prefix)


def test_a_pin_that_meets_a_mark_of_a_deletion_reports_no_success_but_holds() -> None:
    store = three_commits()
    mark = "deleting/000000010-a1-10.json"
    racing = Racing(store, "deleting", mark, Marker.of(*WRITE, reason="").encode())
    with pytest.raises(Conflict, match="got one that is marked as such") as caught:
        pin(racing, oldest(store), reason="", at_us=0)
    assert mark in caught.value.hint
    execute(store, plan_gc(store, drop=[oldest(store)]))  # the next leader, after that deletion was cut off
    assert stands(store)
    assert not list(store.list("deleting"))
    assert not pin(store, oldest(store), reason="", at_us=0)


def _deaths() -> list[object]:
    store = FaultyStore(three_commits())
    pin(store, oldest(store), reason="", at_us=0)
    return list(every_death(store.num_writes))


@pytest.mark.parametrize("death", _deaths(), ids=str)
def test_a_crash_while_pinning_leaves_a_pin_or_none_and_the_checkpoint(death: object) -> None:
    store = three_commits()
    dying = FaultyStore(store, death)  # type: ignore[arg-type]
    with pytest.raises(Crash):
        pin(dying, oldest(store), reason="", at_us=0)
    assert pinned_writes(store) in (frozenset(), {WRITE})
    assert stands(store)
    pin(store, oldest(store), reason="", at_us=0)
    drop_oldest(store)
    assert stands(store)
