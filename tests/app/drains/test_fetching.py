"""A first store that has lost its checkpoints gets the newest one back from the second."""

from __future__ import annotations

import pytest

from behemoth.app.drains.fetching import Fetched, fetch_newest
from behemoth.base.errors import Corrupt, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.draining import copy_checkpoint
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.verify import verify
from behemoth.ports import SavesTo
from behemoth.state.effect import CommitRef
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, Fail, FaultyStore, When
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout


def saved(store: SavesTo, step: int) -> CommitRef:
    record = save(store, small_layout(), step=step, write_id=f"a1-{step}")
    assert record is not None
    return record.ref


def fetch(below: SavesTo, store: SavesTo, *rejected: str) -> Fetched:
    return fetch_newest(
        below,
        store,
        url="below",
        rejected=[WriteId(write_id) for write_id in rejected],
        threads=1,
        progress=lambda _commit, _done, _total: None,
    )


def steps_of(store: SavesTo) -> list[int]:
    found = [one for one in commits(store) if isinstance(one, CommitRef)]
    assert all(verify(store, one, threads=1, deep=True).is_intact for one in found)
    return [int(one.step) for one in found]


def damage(store: MemoryStore | MemoryBucket, step: int) -> None:
    key = next(info.key for info in store.list("steps") if f"/{step:09d}-" in info.key and "model/w/c" in info.key)
    size_bytes = next(info.size_bytes for info in store.list("steps") if info.key == key)
    store.delete([key])
    store.create(key, bytes(size_bytes))


@pytest.mark.parametrize("kind", [MemoryStore, MemoryBucket])
def test_an_empty_store_gets_the_newest_checkpoint(kind: type[MemoryStore | MemoryBucket]) -> None:
    below, store = kind(), MemoryStore()
    saved(below, 10)
    newest = saved(below, 20)
    assert fetch(below, store) == Fetched(commit=newest)
    assert steps_of(store) == [20]


def test_a_store_that_is_as_new_gets_nothing() -> None:
    below, store = MemoryStore(), MemoryStore()
    copy_checkpoint(store, below, saved(store, 10), threads=1)
    saved(store, 20)
    assert fetch(below, store) == Fetched(commit=None)
    assert steps_of(store) == [10, 20]


def test_a_store_that_has_only_an_older_one_gets_the_newer_one() -> None:
    below, store = MemoryStore(), MemoryStore()
    saved(store, 10)
    saved(below, 20)
    fetch(below, store)
    assert steps_of(store) == [10, 20]


def test_what_did_not_restore_does_not_come_back() -> None:
    below, store = MemoryStore(), MemoryStore()
    for step in (10, 20, 30):
        saved(below, step)
    reject(store, CommitRef(step=Step(20), write_id=WriteId("a1-20"), size_bytes=1), "it did not restore")
    found = fetch(below, store, "a1-30")
    assert found.commit is not None
    assert steps_of(store) == [10]


def test_a_damaged_record_in_the_way_is_taken_back() -> None:
    below, store = MemoryStore(), MemoryStore()
    newest = saved(below, 20)
    store.create(commit_key(newest.step), b"rubbish")
    fetch(below, store)
    assert steps_of(store) == [20]


def test_a_damaged_one_below_is_told_and_the_one_before_it_comes() -> None:
    below, store = MemoryStore(), MemoryStore()
    older = saved(below, 10)
    saved(below, 20)
    damage(below, 20)
    found = fetch(below, store)
    assert found.commit == older
    assert len(found.damaged) == 1
    assert steps_of(store) == [10]


def test_nothing_but_damage_below_stops_the_run_rather_than_begin_anew() -> None:
    below, store = MemoryStore(), MemoryStore()
    saved(below, 10)
    damage(below, 10)
    with pytest.raises(Corrupt):
        fetch(below, store)


def test_a_store_that_cannot_take_it_says_what_was_to_come_from_where() -> None:
    below = MemoryStore()
    saved(below, 10)
    full = Unavailable("write: no space left", hint="free space", code="no-space")
    store = FaultyStore(MemoryStore(), Fail(write=0, when=When.BEFORE, error=full))
    with pytest.raises(Unavailable, match=r"step 10: expected to fetch it from below, got: .*no space") as caught:
        fetch(below, store)
    assert (caught.value.code, caught.value.hint) == ("no-space", "free space")


def test_killed_at_any_write_the_same_command_fetches_it() -> None:
    below = MemoryStore()
    saved(below, 10)
    for write in range(1000):
        store = MemoryStore()
        try:
            fetch(below, FaultyStore(store, Die(write=write, when=When.MIDDLE)))
            assert write > 5
            return
        except Crash:
            fetch(below, store)
        assert steps_of(store) == [10]
