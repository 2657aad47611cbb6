"""What gc deletes, in which order, and what a crash in the middle leaves."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Invalid, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import BadCommit, commits, reject
from behemoth.checkpoint.draining import copy_checkpoint
from behemoth.checkpoint.gc import LATE_S, ORPHAN_AGE_S, execute, plan_gc
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectInfo, ObjectStore
from behemoth.storage.keys import TEMP_PREFIX
from behemoth.storage.local import LocalStore
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, FaultyBucket, FaultyStore, When, every_death
from behemoth.testing.store import MemoryStore
from checkpoint.late_bucket import Late, LateDeletions
from checkpoint.others_first import OthersFirst
from checkpoint.saved_checkpoint import save, small_layout
from checkpoint.unread_store import BAD_PLACE, DENIED, Unread


@dataclass(frozen=True)
class Name:
    step: Step
    write_id: WriteId


def name(step: int, write_id: str) -> Name:
    return Name(Step(step), WriteId(write_id))


def three_commits_and_a_failed_save() -> MemoryStore:
    store = MemoryStore()
    for step in (10, 20, 30):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    save(store, small_layout(), step=40, write_id="a1-40", publish=False)
    return store


def steps_of(store: ObjectStore) -> list[int]:
    return [one.step for one in commits(store) if not isinstance(one, BadCommit)]


def prefixes_of(store: ObjectStore) -> set[str]:
    return {info.key.split("/")[1] for info in store.list("steps")}


def all_intact(store: ObjectStore) -> bool:
    return all(verify(store, one, threads=1, deep=True).is_intact for one in commits(store))


def test_a_dropped_commit_goes_with_its_data_and_nothing_else_does() -> None:
    store = three_commits_and_a_failed_save()
    execute(store, plan_gc(store, drop=[name(10, "a1-10")]))
    assert steps_of(store) == [20, 30]
    assert prefixes_of(store) == {"000000020-a1-20", "000000030-a1-30", "000000040-a1-40"}
    assert all_intact(store)


def test_commits_are_looked_at_once_more_several_at_a_time_before_they_go() -> None:
    inner = three_commits_and_a_failed_save()
    for step in (50, 60, 70):
        save(inner, small_layout(), step=step, write_id=f"a1-{step}")
    plan = plan_gc(inner, drop=[name(step, f"a1-{step}") for step in (10, 20, 30)])
    execute(OthersFirst(inner, commit_key(Step(10)), num_others=2), plan)
    assert steps_of(inner) == [50, 60, 70]


def test_cleaning_removes_what_is_neither_committed_nor_in_flight() -> None:
    store = three_commits_and_a_failed_save()
    save(store, small_layout(), step=20, write_id="a2-1", publish=False)
    execute(store, plan_gc(store, in_flight={WriteId("a1-40")}))
    assert prefixes_of(store) == {"000000010-a1-10", "000000020-a1-20", "000000030-a1-30", "000000040-a1-40"}
    execute(store, plan_gc(store, in_flight=()))
    assert prefixes_of(store) == {"000000010-a1-10", "000000020-a1-20", "000000030-a1-30"}
    assert all_intact(store)


def test_a_plan_tells_how_much_it_frees_and_changes_nothing() -> None:
    store = three_commits_and_a_failed_save()
    before = list(store.list(""))
    plan = plan_gc(store, in_flight=())
    assert list(store.list("")) == before
    assert plan.objects == tuple(store.list("steps/000000040-a1-40")) != ()
    assert plan.commits == ()


def test_a_write_that_begins_and_one_that_commits_while_gc_plans_are_kept() -> None:
    store = three_commits_and_a_failed_save()

    def ask() -> set[WriteId]:
        save(store, small_layout(), step=50, write_id="a1-50", publish=False)  # after the listing: not seen
        save(store, small_layout(), step=40, write_id="a1-40")  # seen without a commit, and committed by now
        return {WriteId("a1-50")}

    execute(store, plan_gc(store, in_flight=ask))
    assert steps_of(store) == [10, 20, 30, 40]
    assert "000000050-a1-50" in prefixes_of(store)
    assert all_intact(store)


class SaveBegins(FaultyStore):
    """A save begins just before the first listing of what writes have left."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self._memory = inner
        self.begun: set[WriteId] = set()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix == "steps" and not self.begun:
            self.begun.add(WriteId("a1-50"))
            save(self._memory, small_layout(), step=50, write_id="a1-50", publish=False)
        return super().list(prefix)


def test_writes_in_flight_are_asked_for_once_what_is_there_has_been_listed() -> None:
    inner = three_commits_and_a_failed_save()
    store = SaveBegins(inner)
    execute(inner, plan_gc(store, in_flight=lambda: store.begun))
    assert prefixes_of(inner) == {"000000010-a1-10", "000000020-a1-20", "000000030-a1-30", "000000050-a1-50"}


@pytest.mark.parametrize("step", [20, 30])
def test_one_of_the_newest_two_commits_is_never_dropped(step: int) -> None:
    store = three_commits_and_a_failed_save()
    with pytest.raises(Invalid, match=f"expected commits older than the newest 2, got that of step {step}"):
        plan_gc(store, drop=[name(10, "a1-10"), name(step, f"a1-{step}")])


def test_a_damaged_commit_does_not_count_among_the_newest_two() -> None:
    store = three_commits_and_a_failed_save()
    store.delete(["commits/000000030.json"])
    store.create("commits/000000030.json", b"rubbish")
    with pytest.raises(Invalid, match="got that of step 10"):
        plan_gc(store, drop=[name(10, "a1-10")])


def test_a_name_of_another_write_of_the_step_does_not_drop_the_commit() -> None:
    store = three_commits_and_a_failed_save()
    execute(store, plan_gc(store, drop=[name(10, "a1-9")]))
    assert steps_of(store) == [10, 20, 30]
    assert all_intact(store)


def test_data_of_a_commit_record_that_cannot_be_read_is_kept() -> None:
    store = three_commits_and_a_failed_save()
    store.delete(["commits/000000020.json"])
    store.create("commits/000000020.json", b'{"crc32c":"00000000"')
    execute(store, plan_gc(store, in_flight=()))
    assert "000000020-a1-20" in prefixes_of(store)
    assert "000000040-a1-40" not in prefixes_of(store)


@pytest.mark.parametrize("error", [None, DENIED, BAD_PLACE], ids=str)
def test_a_commit_that_is_to_go_and_whose_record_cannot_be_read_stays_whole(error: BehemothError | None) -> None:
    inner = three_commits_and_a_failed_save()
    store = Unread(inner, {} if error is None else {"commits/000000010.json": error})
    spared = execute(store, plan_gc(store, drop=[name(10, "a1-10")], in_flight=()))
    store.errors = {}
    assert steps_of(store) == ([20, 30] if error is None else [10, 20, 30])
    assert spared == (set() if error is None else {(10, "a1-10")})
    assert all_intact(store)


def test_data_of_a_rejected_commit_is_removed() -> None:
    store = three_commits_and_a_failed_save()
    (newest,) = [one for one in commits(store) if one.step == 30]
    reject(store, newest, "chunk 3 of model/w is damaged")
    execute(store, plan_gc(store, in_flight=()))
    assert prefixes_of(store) == {"000000010-a1-10", "000000020-a1-20"}
    assert [info.key for info in store.list("rejected")] == ["rejected/000000030-a1-30.json"]


def test_what_gc_does_not_recognise_it_leaves_alone() -> None:
    store = three_commits_and_a_failed_save()
    foreign = [
        "notes.txt",
        "steps/readme",
        "steps/00001-a1/x",
        "steps/000000040-.x/y",
        "commits/readme",
        "deleting/notes.txt",
    ]
    for key in foreign:
        store.create(key, b"mine")
    execute(store, plan_gc(store, in_flight=()))
    assert {info.key for info in store.list("")} >= set(foreign)


def test_leftovers_of_the_store_go_too_but_only_when_cleaning(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for step in (5, 10, 20):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    (tmp_path / "commits" / f"{TEMP_PREFIX}12").write_bytes(b"half a record")
    (tmp_path / "steps" / "000000030-a1-30" / "w" / "c").mkdir(parents=True)
    (tmp_path / "lost+found").mkdir()
    assert plan_gc(store, drop=[name(5, "a1-5")]).leftovers == ()
    execute(store, plan_gc(store, in_flight=()))
    assert sorted(path.name for path in (tmp_path / "commits").iterdir()) == [
        f"{step:09d}.json" for step in (5, 10, 20)
    ]
    assert not (tmp_path / "steps" / "000000030-a1-30").exists()
    assert (tmp_path / "lost+found").exists()
    assert all_intact(store)
    store.close()


def test_an_empty_store_has_nothing_to_collect() -> None:
    plan = plan_gc(MemoryStore(), in_flight=())
    assert (plan.commits, plan.objects, plan.leftovers, plan.stale_marks) == ((), (), (), ())


def _deaths() -> tuple[Die, ...]:
    store = FaultyStore(three_commits_and_a_failed_save())
    execute(store, plan_gc(store, drop=[name(10, "a1-10")], in_flight=()))
    assert store.num_writes >= 2
    return every_death(store.num_writes)


@pytest.mark.parametrize("death", _deaths(), ids=str)
def test_a_crash_anywhere_keeps_every_commit_whole_and_the_next_gc_finishes(death: Die) -> None:
    inner = three_commits_and_a_failed_save()
    dying = FaultyStore(inner, death)
    with pytest.raises(Crash):
        execute(dying, plan_gc(dying, drop=[name(10, "a1-10")], in_flight=()))
    assert steps_of(inner) in ([10, 20, 30], [20, 30])
    assert all_intact(inner)
    execute(inner, plan_gc(inner, drop=[name(10, "a1-10")], in_flight=()))
    assert steps_of(inner) == [20, 30]
    assert prefixes_of(inner) == {"000000020-a1-20", "000000030-a1-30"}
    assert all_intact(inner)


class Full(MemoryStore):
    """A disk on which nothing can be created: neither marks nor pins."""

    code = "no-space"

    def create(self, key: str, data: Buffer) -> None:
        raise Unavailable(f"create {key} of {memoryview(data).nbytes} bytes: no space left on device", code=self.code)


def test_checkpoints_go_from_a_full_disk_whose_marks_find_no_place() -> None:
    store = three_commits_and_a_failed_save()
    full = Full()
    full._objects = store._objects
    plan = plan_gc(full, drop=[name(10, "a1-10")], in_flight=())
    full.code = "io-error"
    with pytest.raises(Unavailable, match="deleting/000000010-a1-10"):
        execute(full, plan)
    assert steps_of(store) == [10, 20, 30]
    full.code = "no-space"
    assert execute(full, plan) == frozenset()
    assert steps_of(store) == [20, 30]
    assert prefixes_of(store) == {"000000020-a1-20", "000000030-a1-30"}
    assert all_intact(store)


def test_an_upload_that_is_a_day_old_is_nobodys_and_a_younger_one_may_be_somebodys() -> None:
    store = MemoryBucket()
    old = store.begin_upload("steps/000000001-a1-1/w/c/0")
    store.now_s = ORPHAN_AGE_S / 2
    young = store.begin_upload("steps/000000001-a1-1/w/c/0")
    foreign = store.begin_upload("elsewhere/w")
    store.now_s = ORPHAN_AGE_S
    assert [one.upload_id for one in plan_gc(store).uploads] == [old]
    execute(store, plan_gc(store))
    assert [one.upload_id for one in store.list_uploads("")] == [foreign, young]


def test_cleaning_ends_all_uploads_but_those_of_writes_in_flight_and_those_that_are_no_writes() -> None:
    store = MemoryBucket()
    flying = store.begin_upload("steps/000000001-a2-1/w/c/0")
    store.begin_upload("steps/000000001-a1-1/w/c/0")
    unnamed = store.begin_upload("steps/notes/w")
    execute(store, plan_gc(store, in_flight=[WriteId("a2-1")]))
    assert {one.upload_id for one in store.list_uploads("")} == {flying, unnamed}


def late_commit() -> Late:
    """One commit, and another write of which all is there, and whose commit is on its way."""
    store = Late()
    store.is_late = False
    save(store, small_layout(), step=10, write_id="a1-10")
    store.is_late = True
    with pytest.raises(Unavailable):
        save(store, small_layout(), step=20, write_id="a1-20")
    return store


def test_a_commit_that_arrives_when_its_data_are_gone_counts_for_nobody_and_gives_its_step_free() -> None:
    store = late_commit()
    execute(store, plan_gc(store, in_flight=(), unsure={"a1-20"}.__contains__))
    assert prefixes_of(store) == {"000000010-a1-10"}
    store.arrive()
    assert steps_of(store) == [10]
    save(store, small_layout(), step=20, write_id="a2-20")
    assert steps_of(store) == [10, 20]
    assert all_intact(store)


def test_on_a_full_disk_a_write_whose_rejection_finds_no_place_keeps_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the rest goes: of two writes that were given up one is sure to have sent no commit."""
    store = late_commit()
    save(store, small_layout(), step=30, write_id="a1-30", publish=False)
    plan = plan_gc(store, in_flight=(), unsure={"a1-20"}.__contains__)
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", Full().create)
        execute(store, plan)
    assert prefixes_of(store) == {"000000010-a1-10", "000000020-a1-20"}
    store.arrive()
    assert steps_of(store) == [10, 20]
    assert all_intact(store)


@pytest.mark.parametrize("when", When)
def test_that_commit_counts_for_nobody_wherever_the_deletion_is_cut_off(when: When) -> None:
    for write in range(100):
        store = late_commit()
        try:
            dying = FaultyBucket(store, Die(write=write, when=when))
            execute(dying, plan_gc(dying, in_flight=(), unsure={"a1-20"}.__contains__))
            assert write > 1
            return
        except Crash:
            store.arrive()
        assert all_intact(store)


def late_copy(*deaths: Die) -> Late:
    """One commit, and a copy of another checkpoint that is killed, or hears nothing of the commit that it has sent."""
    above, store = MemoryStore(), Late()
    store.is_late = False
    save(store, small_layout(), step=10, write_id="a1-10")
    store.is_late = True
    record = save(above, small_layout(), step=20, write_id="a1-20")
    assert record is not None
    with pytest.raises((Crash, Unavailable)):
        copy_checkpoint(above, FaultyBucket(store, *deaths), record.ref, threads=1)
    return store


def test_what_a_copy_left_is_there_when_its_commit_arrives_and_goes_once_that_cannot_be_any_more() -> None:
    store = late_copy()
    execute(store, plan_gc(store, in_flight=()))
    assert not list(store.list("rejected"))
    store.arrive()
    assert steps_of(store) == [10, 20]
    assert all_intact(store)
    store = late_copy()
    store.now_s += LATE_S
    execute(store, plan_gc(store, in_flight=()))
    assert prefixes_of(store) == {"000000010-a1-10"}


@pytest.mark.parametrize("when", When)
def test_the_commit_of_a_copy_is_whole_wherever_that_and_the_deletion_are_cut_off(when: When) -> None:
    for write in range(100):
        store = late_copy(Die(write=write, when=when))
        for death in every_death(3):
            left = store.copied()
            with suppress(Crash):
                dying = FaultyBucket(left, death)
                execute(dying, plan_gc(dying, in_flight=()))
            left.arrive()
            assert all_intact(left)
        if store.sent:
            assert write > 10
            return
    raise AssertionError("no commit was sent")


def killed_while_it_deletes(kill: Callable[[LateDeletions], object]) -> LateDeletions:
    """Three commits, of which somebody deletes one."""
    store = LateDeletions()
    for step in (10, 20, 30):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    store.is_late = True
    with pytest.raises(Crash):
        kill(store)
    store.is_late = False
    assert store.sent
    return store


def test_a_deletion_of_a_dead_leader_takes_no_later_commit_of_the_step() -> None:
    store = killed_while_it_deletes(lambda store: execute(store, plan_gc(store, drop=[name(10, "a1-10")])))
    execute(store, plan_gc(store, drop=[name(10, "a1-10")], in_flight=()))
    save(store, small_layout(), step=10, write_id="a2-10")
    store.arrive()
    assert steps_of(store) == [10, 20, 30]
    assert all_intact(store)


def test_the_end_of_a_rejection_by_a_dead_leader_takes_no_later_commit_of_the_step() -> None:
    store = killed_while_it_deletes(lambda store: reject(store, commits(store)[2], "it did not restore"))
    assert steps_of(store) == [10, 20]
    save(store, small_layout(), step=30, write_id="a2-30")
    store.arrive()
    assert steps_of(store) == [10, 20, 30]
    assert all_intact(store)


def test_who_is_killed_while_it_takes_the_place_of_a_rejected_commit_takes_no_later_one_away() -> None:
    store = killed_while_it_deletes(lambda store: reject(store, commits(store)[2], "it did not restore"))
    store.is_late = True
    with pytest.raises(Crash):
        save(store, small_layout(), step=30, write_id="a2-30")
    store.is_late = False
    save(store, small_layout(), step=30, write_id="a3-30")
    store.arrive()
    assert [one.write_id for one in commits(store) if not isinstance(one, BadCommit)] == ["a1-10", "a1-20", "a3-30"]


def test_a_write_that_had_its_commit_is_not_rejected_when_its_deletion_is_cut_off_or_its_record_is_gone() -> None:
    """It would be rejected where it was drained to as well, and there it may be whole."""
    store = MemoryBucket()
    for step in (10, 20, 30):
        save(store, small_layout(), step=step, write_id=f"a1-{step}")
    dying = FaultyBucket(store, Die(write=2, when=When.BEFORE))  # marked, and without its record
    with pytest.raises(Crash):
        execute(dying, plan_gc(dying, drop=[name(10, "a1-10")]))
    store.delete([commit_key(Step(20))])
    assert prefixes_of(store) == {"000000010-a1-10", "000000020-a1-20", "000000030-a1-30"}
    store.now_s += LATE_S
    execute(store, plan_gc(store, in_flight=(), unsure={"a1-10"}.__contains__))
    assert prefixes_of(store) == {"000000030-a1-30"}
    assert list(store.list("rejected")) == []
