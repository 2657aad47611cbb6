"""A commit takes another's place: at any moment the step has one of the two, whole, whoever is killed when."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Conflict, NotFound, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.gc import LATE_S, execute, plan_gc
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.pins import pin
from behemoth.checkpoint.replacing import PINNED, replace_commit
from behemoth.checkpoint.verify import verify
from behemoth.checkpoint.verify_store import verify_store
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, Fail, Fault, FaultyBucket, FaultyStore, When, every_death, lost_answer
from behemoth.testing.store import MemoryStore, contents
from checkpoint.between import Between
from checkpoint.saved_checkpoint import save, small_layout

KINDS = [MemoryStore, MemoryBucket]
NUM_WRITES = 2
"""A mark and the record."""


def prepared(kind: type[MemoryStore | MemoryBucket]) -> tuple[MemoryStore | MemoryBucket, CommitRef, CommitRecord]:
    """A store with two commits, of which the second is to be replaced, and the record of who does: not yet there."""
    store, aside = kind(), kind()
    save(store, small_layout(), step=1, write_id="a1-1")
    old = save(store, small_layout(), step=2, write_id="a1-2")
    new = save(aside, small_layout(), step=2, write_id="a2-2", seed=7)
    assert old is not None
    assert new is not None
    for key, data in contents(aside).items():
        if key != commit_key(Step(2)):
            store.create(key, data)
    return store, old.ref, new


def broken(store: MemoryStore | MemoryBucket, *plan: Fault) -> ObjectStore:
    return FaultyStore(store, *plan) if isinstance(store, MemoryStore) else FaultyBucket(store, *plan)


def writes_of(store: ObjectStore) -> list[WriteId]:
    found = [one for one in commits(store) if isinstance(one, CommitRef)]
    assert all(verify(store, one, threads=1, deep=True).is_intact for one in found)
    return [one.write_id for one in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("death", every_death(NUM_WRITES), ids=str)
def test_killed_anywhere_the_step_has_one_of_the_two_and_the_next_one_finishes(
    kind: type[MemoryStore | MemoryBucket], death: Die
) -> None:
    store, old, new = prepared(kind)
    with pytest.raises(Crash):
        replace_commit(broken(store, death), old, new, new.encode())
    assert writes_of(store) in (["a1-1", "a1-2"], ["a1-1", "a2-2"])
    if writes_of(store) == ["a1-1", "a1-2"]:
        replace_commit(store, old, new, new.encode())
    execute(store, plan_gc(store, in_flight=()))
    assert writes_of(store) == ["a1-1", "a2-2"]
    assert {info.key.split("/")[1] for info in store.list("steps")} == {"000000001-a1-1", "000000002-a2-2"}
    assert {info.key.split("/")[0] for info in store.list("")} == {"commits", "steps"}
    assert verify_store(store) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_the_exchange_a_clean_up_leaves_the_old_one_as_it_was(
    kind: type[MemoryStore | MemoryBucket],
) -> None:
    store, old, new = prepared(kind)
    before = {key for key in contents(store) if "a2-2" not in key}
    with pytest.raises(Crash):
        replace_commit(broken(store, Die(write=1, when=When.BEFORE)), old, new, new.encode())
    if isinstance(store, MemoryBucket):
        store.now_s += LATE_S
    execute(store, plan_gc(store, in_flight=()))
    assert set(contents(store)) == before


def test_a_pinned_one_stays_and_no_mark_of_the_try_is_left() -> None:
    store, old, new = prepared(MemoryStore)
    pin(store, old, reason="it is good", at_us=0)
    before = contents(store)
    with pytest.raises(Conflict) as caught:
        replace_commit(store, old, new, new.encode())
    assert caught.value.code == PINNED
    assert contents(store) == before


def test_an_answer_that_was_lost_leaves_the_new_one() -> None:
    store, old, new = prepared(MemoryStore)
    with pytest.raises(Unavailable):
        replace_commit(broken(store, lost_answer(1)), old, new, new.encode())
    assert writes_of(store) == ["a1-1", "a2-2"]


def test_an_error_of_the_store_leaves_the_old_one() -> None:
    store, old, new = prepared(MemoryStore)
    away = Fail(write=1, when=When.BEFORE, error=Unavailable("try later", hint="wait"))
    with pytest.raises(Unavailable):
        replace_commit(broken(store, away), old, new, new.encode())
    assert writes_of(store) == ["a1-1", "a1-2"]


def test_what_does_not_stand_there_any_more_is_not_replaced() -> None:
    store, old, new = prepared(MemoryStore)
    reject(store, old, "it did not restore")
    with pytest.raises(NotFound):
        replace_commit(store, old, new, new.encode())
    assert writes_of(store) == ["a1-1"]


def test_a_replacement_that_arrives_when_its_sender_is_dead_takes_no_later_commits_place() -> None:
    """The next one gave the step to another write meanwhile."""
    store, old, late = prepared(MemoryBucket)
    data = contents(store)[commit_key(old.step)]
    aside = MemoryBucket()
    later = save(aside, small_layout(), step=2, write_id="a3-2", seed=8)
    assert later is not None
    for key, one in contents(aside).items():
        if key != commit_key(old.step):
            store.create(key, one)
    replace_commit(store, old, later, later.encode())
    with pytest.raises(Conflict):
        store.replace(commit_key(old.step), old=data, new=late.encode())
    assert writes_of(store) == ["a1-1", "a3-2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clean_up_that_was_to_delete_the_old_one_leaves_the_new_one(kind: type[MemoryStore | MemoryBucket]) -> None:
    """In a store that no run owns, a program saves a step anew while somebody cleans up."""
    store, old, new = prepared(kind)
    for step in (3, 4):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    plan = plan_gc(store, drop=[old])
    replace_commit(store, old, new, new.encode())
    execute(store, plan)
    assert writes_of(store) == ["a1-1", "a2-2", "a1-3", "a1-4"]
    assert {info.key.split("/")[0] for info in store.list("")} == {"commits", "steps"}


def test_a_clean_up_leaves_the_new_one_also_when_it_comes_behind_its_mark() -> None:
    store, old, new = prepared(MemoryStore)
    assert isinstance(store, MemoryStore)
    for step in (3, 4):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    meanwhile = Between(store, 0, lambda: replace_commit(store, old, new, new.encode()), is_after=True)
    execute(meanwhile, plan_gc(store, drop=[old]))
    assert meanwhile.num_writes > 1
    assert writes_of(store) == ["a1-1", "a2-2", "a1-3", "a1-4"]
