"""One store, one run: who is first has it, everybody else is told whose it is and what to do."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from behemoth.base.errors import Conflict, Corrupt, Invalid, Unavailable
from behemoth.base.ids import RunUid
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.owner import (
    MAX_OWNER_BYTES,
    OWNED,
    Owner,
    read_owner,
    refuse_other,
    require_own,
    require_there,
    take,
)
from behemoth.checkpoint.paths import OWNER_KEY
from behemoth.checkpoint.verify import verify
from behemoth.checkpoint.verify_store import verify_store
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import Crash, Die, Fail, FaultyStore, When, every_death, lost_answer
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout

URL = "/shared/tiny"
OURS = Owner.of_run(RunUid("aaaa"), name="tiny", directory="/home/ann/runs/tiny")
THEIRS = Owner.of_run(RunUid("bbbb"), name="tiny", directory="/home/bob/runs/tiny")


def owned(owner: Owner = OURS) -> MemoryStore:
    store = MemoryStore()
    take(store, owner, url=URL)
    return store


def rewritten(data: bytes) -> MemoryStore:
    store = MemoryStore()
    store.create(OWNER_KEY, data)
    return store


def test_the_run_that_comes_first_has_the_store_and_may_come_back() -> None:
    store = owned()
    take(store, OURS, url=URL)
    refuse_other(store, OURS.run_uid, url=URL)
    assert read_owner(store) == OURS


def test_a_store_that_no_run_has_taken_is_away_for_who_restores_from_it_and_a_damaged_word_of_it_is_there() -> None:
    require_there(owned(), url=URL)
    require_there(rewritten(b"rubbish"), url=URL)
    with pytest.raises(Unavailable, match="/shared/tiny: expected the store of a run, got a place without") as caught:
        require_there(MemoryStore(), url=URL)
    assert (caught.value.code, "mount it" in caught.value.hint) == ("store-away", True)


def test_another_run_is_refused_with_the_directory_that_owns_it_and_the_object_to_remove_and_changes_nothing() -> None:
    store = owned()
    before = list(store.list(""))
    attempts: tuple[Callable[[], object], ...] = (
        lambda: take(store, THEIRS, url=URL),
        lambda: refuse_other(store, THEIRS.run_uid, url=URL),
    )
    for attempt in attempts:
        with pytest.raises(Conflict, match=r"/shared/tiny: expected .*, got that of run/tiny in /home/ann") as caught:
            attempt()
        assert caught.value.code == "store-owned"
        assert "--dir /home/ann/runs/tiny" in caught.value.hint
        assert f"remove {URL}/{OWNER_KEY}" in caught.value.hint
    assert list(store.list("")) == before


def test_the_object_to_remove_is_named_without_the_way_to_the_bucket() -> None:
    with pytest.raises(Conflict) as caught:
        take(owned(), THEIRS, url="s3://bucket/tiny?endpoint=http://host:9000&addressing=path")
    assert f"remove s3://bucket/tiny/{OWNER_KEY} and" in caught.value.hint


def test_a_run_that_has_yet_to_begin_is_refused_a_store_of_any_other() -> None:
    refuse_other(MemoryStore(), None, url=URL)
    with pytest.raises(Conflict, match="run/tiny"):
        refuse_other(owned(), None, url=URL)


def test_a_run_whose_directory_was_moved_still_has_its_store_and_says_where_it_is_now() -> None:
    store, moved = owned(), replace(OURS, directory="/elsewhere")
    take(store, moved, url=URL)
    assert read_owner(store) == moved


def test_a_death_while_a_moved_run_says_so_leaves_the_store_to_it_and_to_nobody_else() -> None:
    moved = replace(OURS, directory="/elsewhere")
    for death in every_death(1):
        store = owned()
        with pytest.raises(Crash):
            take(FaultyStore(store, death), moved, url=URL)
        with pytest.raises(Conflict):
            take(store, THEIRS, url=URL)
        take(store, moved, url=URL)
        assert read_owner(store) == moved


def test_a_store_of_an_older_release_and_one_taken_over_on_purpose_belong_to_the_run_that_comes_first() -> None:
    store = MemoryStore()
    save(store, small_layout(), step=10, write_id="a1-1")
    take(store, OURS, url=URL)
    store.delete([OWNER_KEY])
    take(store, THEIRS, url=URL)
    with pytest.raises(Conflict, match="/home/bob"):
        take(store, OURS, url=URL)
    assert [commit.step for commit in commits(store)] == [10]


def test_of_many_runs_that_start_at_once_exactly_one_has_the_store(tmp_path: Path) -> None:
    ready, winners = threading.Barrier(8), []

    def start(number: int) -> None:
        store = LocalStore(tmp_path)
        ready.wait(30)
        try:
            take(store, replace(OURS, run_uid=RunUid(f"{number}")), url=URL)
            winners.append(f"{number}")
        except Conflict:
            pass
        finally:
            store.close()

    threads = [threading.Thread(target=start, args=(number,), name=f"start-{number}") for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    owner = read_owner(LocalStore(tmp_path))
    assert owner is not None
    assert winners == [owner.run_uid]


def test_an_answer_that_was_lost_is_read_back() -> None:
    store = MemoryStore()
    take(FaultyStore(store, lost_answer(0)), OURS, url=URL)
    assert read_owner(store) == OURS


def test_an_answer_that_nothing_came_of_is_told_and_the_store_is_free() -> None:
    store = MemoryStore()
    failing = FaultyStore(store, Fail(write=0, when=When.BEFORE, error=Unavailable("throttled", code="throttled")))
    with pytest.raises(Unavailable, match="throttled"):
        take(failing, OURS, url=URL)
    assert read_owner(store) is None
    take(failing, OURS, url=URL)
    assert read_owner(store) == OURS


def test_a_store_that_says_nothing_any_more_is_no_longer_the_run_s() -> None:
    require_own(owned(), OURS.run_uid, url=URL)
    with pytest.raises(
        Conflict, match=r"/shared/tiny: expected it to be this run's, got one that names no owner"
    ) as gone:
        require_own(MemoryStore(), OURS.run_uid, url=URL)
    assert (gone.value.code, "put it back" in gone.value.hint) == (OWNED, True)
    with pytest.raises(Conflict, match="got that of run/tiny in /home/bob"):
        require_own(owned(THEIRS), OURS.run_uid, url=URL)


@pytest.mark.parametrize(("num_bytes", "is_read"), [(MAX_OWNER_BYTES, True), (MAX_OWNER_BYTES + 1, False)])
def test_an_object_that_is_too_large_is_not_read(num_bytes: int, is_read: bool) -> None:
    with pytest.raises(Corrupt) as caught:
        read_owner(rewritten(bytes(num_bytes)))
    assert ("expected at most" in caught.value.message) != is_read


@pytest.mark.parametrize("death", every_death(1), ids=str)
def test_a_crash_while_the_store_is_taken_leaves_it_free_or_ours(death: Die) -> None:
    store = MemoryStore()
    with pytest.raises(Crash):
        take(FaultyStore(store, death), OURS, url=URL)
    assert read_owner(store) in (None, OURS)
    take(store, OURS, url=URL)


def test_every_flipped_bit_and_every_cut_is_refused_and_named() -> None:
    whole = OURS.encode()
    broken = [whole[:size] for size in range(len(whole))] + [whole + b" "]
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        broken.append(bytes(data))
    for damaged in broken:
        store = rewritten(damaged)
        attempts: tuple[Callable[[], object], ...] = (
            partial(take, store, OURS, url=URL),
            partial(refuse_other, store, None, url=URL),
        )
        for attempt in attempts:
            with pytest.raises(Corrupt, match=OWNER_KEY) as caught:
                attempt()
            assert OWNER_KEY in caught.value.hint
        (problem,) = verify_store(store)
        assert (problem.kind, problem.object_key) == ("owner", OWNER_KEY)


def test_a_store_of_a_newer_release_is_left_alone() -> None:
    newer = replace(OURS, format=FormatVersion(major=2, minor=0))
    with pytest.raises(Invalid, match=r"expected format 1\.x, got 2\.0"):
        take(rewritten(newer.encode()), OURS, url=URL)
    take(rewritten(replace(OURS, format=FormatVersion(major=1, minor=7)).encode()), OURS, url=URL)


def test_what_lies_beside_the_owner_is_named() -> None:
    store = owned()
    assert verify_store(store) == ()
    assert verify_store(MemoryStore()) == ()
    store.create("owner/notes.txt", b"mine")
    (problem,) = verify_store(store)
    assert (problem.kind, problem.object_key) == ("extra", "owner/notes.txt")


@pytest.mark.parametrize("deep", [True, False])
def test_neither_gc_nor_a_check_of_a_checkpoint_takes_it_for_rubbish(deep: bool) -> None:
    store = owned()
    for step in (5, 10, 20):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    save(store, small_layout(), step=30, write_id="a1-30", publish=False)
    oldest = commits(store)[0]
    assert isinstance(oldest, CommitRef)
    plan = plan_gc(store, drop=[oldest], in_flight=())
    keys = [*(info.key for info in plan.objects), *plan.leftovers, *plan.stale_marks]
    assert not [key for key in keys if key.startswith("owner")]
    execute(store, plan)
    assert read_owner(store) == OURS
    assert [one.step for one in commits(store)] == [10, 20]
    assert all(verify(store, one, threads=1, deep=deep).is_intact for one in commits(store))
