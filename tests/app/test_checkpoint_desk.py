"""What the leader makes of a store at the begin of its term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import Buffer

from behemoth.app.checkpoint_desk import CheckpointDesk, remove_rubbish
from behemoth.base.clock import ManualClock
from behemoth.base.errors import Conflict, Invalid, Unavailable
from behemoth.base.ids import Attempt, RunUid, Step, WriteId
from behemoth.checkpoint import commit as commit_module
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.commit_record import FormatVersion
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.paths import commit_key, marker_key, step_prefix
from behemoth.checkpoint.pins import pin, unpin
from behemoth.checkpoint.proof import Proof, prove
from behemoth.ports import SavesTo
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import Committed, Deleted, Evidence, Pinned, SaveFailed
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Fail, FaultyStore, When
from behemoth.testing.store import MemoryStore, read
from checkpoint.checkpoint_rig import logical_arrays, save, toy_layout, write_all_ranks
from checkpoint.company_rig import upload_all_ranks
from checkpoint.late_bucket import Late
from checkpoint.unread_store import BAD_PLACE, DENIED, Unread

LAYOUT = toy_layout()


def desk_of(store: SavesTo) -> CheckpointDesk:
    return CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=lambda _: None)


def test_a_cut_off_commit_is_told_and_its_step_can_be_committed_again() -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    store.create(commit_key(Step(2)), first.encode()[:40])
    desk = desk_of(store)
    intact, bad = desk.survey()
    assert ([one.step for one in intact], [one.step for one in bad]) == ([1], [2])
    assert save(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2).step == 2
    assert desk.survey()[1] == []
    desk.close()


def test_the_size_of_a_record_is_known_of_commits_that_were_found_and_of_those_that_were_made() -> None:
    store = MemoryStore()
    found = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    desk = desk_of(store)
    assert desk.record_bytes(found.ref) == 0
    desk.survey()
    receipts = write_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2, write_id="a1-2", attempt=1)
    desk.commit(
        step=Step(2),
        write_id=WriteId("a1-2"),
        attempt=Attempt(1),
        layout=LAYOUT.encode(),
        receipts=[receipt.encode() for receipt in receipts],
    )
    desk.close()
    sizes = {info.key: info.size_bytes for info in store.list("commits")}
    for one in commits(store):
        assert isinstance(one, CommitRef)
        assert desk.record_bytes(one) == sizes[commit_key(one.step)] > 0
    assert len(sizes) == 2


def test_a_save_is_proven_by_as_many_threads_as_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store, told, used = MemoryStore(), list[Evidence](), list[int]()

    def noting(*receipts: Any, threads: int, **options: Any) -> Proof:
        used.append(threads)
        return prove(*receipts, threads=threads, **options)

    monkeypatch.setattr(commit_module, "prove", noting)
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append, threads=3)
    receipts = write_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2, write_id="a1-2", attempt=1)
    desk.commit(
        step=Step(2),
        write_id=WriteId("a1-2"),
        attempt=Attempt(1),
        layout=LAYOUT.encode(),
        receipts=[receipt.encode() for receipt in receipts],
    )
    desk.close()
    assert used == [3]
    assert any(isinstance(one, Committed) for one in told)


def test_a_commit_of_a_newer_release_stops_the_run_and_is_left_alone() -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    newer = replace(first, step=Step(2), format=FormatVersion(major=2, minor=0))
    store.create(commit_key(Step(2)), newer.encode())
    desk = desk_of(store)
    with pytest.raises(Invalid, match="format"):
        desk.survey()
    assert commit_key(Step(2)) in {info.key for info in store.list("commits")}
    desk.close()


def test_what_the_journal_has_rejected_is_taken_back_though_the_process_died_before_the_store_knew() -> None:
    store = MemoryStore()
    for step in (1, 2):
        save(store, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}")
    desk = desk_of(store)
    intact, bad = desk.survey({WriteId("a1-2")})
    assert ([one.step for one in intact], bad) == ([1], [])
    assert save(store, LAYOUT, logical_arrays(LAYOUT, 3), step=2, write_id="a2-3").write_id == "a2-3"
    desk.close()


def test_a_rejection_that_the_store_did_not_take_is_made_up_for_before_the_step_is_committed_again() -> None:
    told: list[Evidence] = []
    inner = MemoryStore()
    damaged = save(inner, LAYOUT, logical_arrays(LAYOUT, 1), step=1, write_id="a1-1")
    store = Refusing(inner)
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    store.is_refusing = True
    desk.reject(damaged.ref, "it did not restore")
    desk.commit(step=Step(9), write_id=WriteId("a1-9"), attempt=Attempt(1), layout=None, receipts=())
    receipts = write_all_ranks(inner, LAYOUT, logical_arrays(LAYOUT, 2), step=1, write_id="a2-2", attempt=2)
    store.allow_after(desk)
    desk.commit(
        step=Step(1),
        write_id=WriteId("a2-2"),
        attempt=Attempt(2),
        layout=LAYOUT.encode(),
        receipts=[receipt.encode() for receipt in receipts],
    )
    desk.close()
    committed = [one.commit.write_id for one in told if isinstance(one, Committed)]
    assert committed == ["a2-2"]


def test_after_a_rejection_a_commit_is_held_against_the_one_before_it() -> None:
    told: list[Evidence] = []
    store = MemoryStore()
    for step in (1, 2):
        newest = save(store, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}")
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    desk.survey()
    desk.reject(newest.ref, "it did not restore")
    arrays = logical_arrays(LAYOUT, 3)
    arrays["model/dense"][:] = 0
    receipts = write_all_ranks(store, LAYOUT, arrays, step=3, write_id="a2-3", attempt=2)
    desk.commit(
        step=Step(3),
        write_id=WriteId("a2-3"),
        attempt=Attempt(2),
        layout=LAYOUT.encode(),
        receipts=[receipt.encode() for receipt in receipts],
    )
    desk.close()
    (failed,) = (one for one in told if isinstance(one, SaveFailed))
    assert failed.reason.startswith("commit: ")
    assert (
        "'model/dense', first byte from rank 0: expected elements other than zero, as at step 1, got all 60 zero"
        in failed.reason
    )
    assert not any(isinstance(one, Committed) for one in told)


class Refusing(FaultyStore):
    """Creates nothing while it refuses."""

    is_refusing = False

    def allow_after(self, desk: CheckpointDesk) -> None:
        """From when the desk has done what it was asked so far."""
        desk.clean(self._allowing)

    def _allowing(self) -> tuple[WriteId, ...]:
        self.is_refusing = False
        return (WriteId("a2-2"),)

    def create(self, key: str, data: Buffer) -> None:
        if self.is_refusing:
            raise Unavailable(f"create {key}: no space left on device", code="no-space")
        super().create(key, data)


def pins_told(told: list[Evidence]) -> list[tuple[WriteId, ...]]:
    return [one.write_ids for one in told if isinstance(one, Pinned)]


def test_retention_leaves_pinned_commits_alone_and_says_so() -> None:
    store, told = MemoryStore(), list[Evidence]()
    refs = [
        save(store, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}").ref for step in range(4)
    ]
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    desk.survey()
    pin(store, refs[1], reason="", at_us=0)
    desk.delete(refs[:2])
    desk.close()
    deleted = [one.write_ids for one in told if isinstance(one, Deleted)]
    assert (deleted, pins_told(told)) == ([("a1-0",)], [(), ("a1-1",)])
    assert [one.step for one in commits(store)] == [1, 2, 3]


def test_a_store_that_became_another_runs_is_neither_surveyed_nor_are_its_checkpoints_rejected_or_deleted() -> None:
    store, told = MemoryStore(), list[Evidence]()
    refs = [
        save(store, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}").ref for step in range(4)
    ]
    take(store, Owner.of_run(RunUid("theirs"), name="run", directory="/theirs"), url="s")
    before = [info.key for info in store.list("")]
    desk = CheckpointDesk(
        store, run_name="run", run_uid=RunUid("ours"), url="s", clock=ManualClock(now_us=1), tell=told.append
    )
    with pytest.raises(Conflict, match="/theirs"):
        desk.survey()
    desk.delete(refs[:2])
    desk.reject(refs[3], "damaged")
    desk.clean(lambda: ())
    desk.close()
    assert (told, [info.key for info in store.list("")]) == ([], before)


def test_a_deletion_that_failed_is_done_after_the_next_commit() -> None:
    inner, told = MemoryStore(), list[Evidence]()
    refs = [
        save(inner, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}").ref for step in range(4)
    ]
    store = FaultyStore(inner, Fail(write=0, when=When.BEFORE, error=Unavailable("try later", hint="wait")))
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    desk.survey()
    desk.delete(refs[:2])
    receipts = write_all_ranks(inner, LAYOUT, logical_arrays(LAYOUT, 9), step=9, write_id="a2-9", attempt=2)
    desk.commit(
        step=Step(9),
        write_id=WriteId("a2-9"),
        attempt=Attempt(2),
        layout=LAYOUT.encode(),
        receipts=[receipt.encode() for receipt in receipts],
    )
    desk.close()
    assert [type(one).__name__ for one in told if not isinstance(one, Pinned)] == ["Committed", "Deleted"]
    assert [one.step for one in commits(inner)] == [2, 3, 9]


def test_a_pin_that_was_taken_away_is_told_with_the_next_commit() -> None:
    store, told = MemoryStore(), list[Evidence]()
    first = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1, write_id="a1-1")
    pin(store, first.ref, reason="", at_us=0)
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    desk.survey()
    unpin(store, first.step, first.write_id)
    for step in (2, 3):
        arrays = logical_arrays(LAYOUT, step)
        receipts = write_all_ranks(store, LAYOUT, arrays, step=step, write_id=f"a1-{step}")
        desk.commit(
            step=Step(step),
            write_id=WriteId(f"a1-{step}"),
            attempt=Attempt(1),
            layout=LAYOUT.encode(),
            receipts=[receipt.encode() for receipt in receipts],
        )
    desk.close()
    assert pins_told(told) == [("a1-1",), ()]


def test_pins_that_cannot_be_read_stop_deletions_and_not_the_run() -> None:
    store, told = MemoryStore(), list[Evidence]()
    refs = [
        save(store, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}").ref for step in range(3)
    ]
    write_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 9), step=9, write_id="a1-9")
    store.create("pins/keep step 0 please", b"")
    before = {info.key for info in store.list("")}
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    assert [one.step for one in desk.survey()[0]] == [0, 1, 2]
    desk.delete(refs[:1])
    desk.close()
    remove_rubbish(store, ())
    assert told == []
    assert {info.key for info in store.list("")} == before


def test_a_store_that_was_exchanged_during_the_run_is_neither_committed_to_nor_cleaned() -> None:
    store, told = MemoryStore(), list[Evidence]()
    receipts = write_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1, write_id="a1-1")
    take(store, Owner.of_run(RunUid("theirs"), name="other", directory="/elsewhere"), url="/x")
    before = {info.key for info in store.list("")}
    desk = CheckpointDesk(
        store, run_name="run", run_uid=RunUid("mine"), url="/x", clock=ManualClock(now_us=1), tell=told.append
    )
    desk.clean(tuple)
    desk.commit(
        step=Step(1),
        write_id=WriteId("a1-1"),
        attempt=Attempt(1),
        layout=LAYOUT.encode(),
        receipts=[receipt.encode() for receipt in receipts],
    )
    desk.close()
    (failed,) = told
    assert isinstance(failed, SaveFailed)
    assert "got that of run/other in /elsewhere" in failed.reason
    assert {info.key for info in store.list("")} == before


class FakeDrains:
    """Holds what it is told to."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.holds: set[str] = set()

    def found(self, commits: Sequence[CommitRef]) -> None:
        self.steps += [one.step for one in commits]

    def committed(self, commit: CommitRef) -> None:
        self.steps.append(commit.step)

    def held(self) -> frozenset[WriteId]:
        return frozenset(WriteId(write_id) for write_id in self.holds)


def test_what_is_held_for_a_drain_is_told_as_pinned_and_not_deleted_before_it_is_let_go() -> None:
    told: list[Evidence] = []
    store, drains = MemoryStore(), FakeDrains()
    refs = [save(store, LAYOUT, logical_arrays(LAYOUT, n), step=n, write_id=f"a1-{n}").ref for n in range(1, 5)]
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append, drains=drains)
    drains.holds = {"a1-1"}
    desk.survey()
    assert drains.steps == [1, 2, 3, 4]
    assert told == [Pinned(write_ids=(WriteId("a1-1"),))]
    desk.delete(refs[:2])
    desk.close()
    assert told[1:] == [Deleted(write_ids=(WriteId("a1-2"),)), Pinned(write_ids=(WriteId("a1-1"),))]
    assert [one.step for one in commits(store)] == [1, 3, 4]
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append, drains=drains)
    drains.holds.clear()
    desk.delete(refs[:1])
    desk.close()
    assert told[3:] == [Deleted(write_ids=(WriteId("a1-1"),))]
    assert [one.step for one in commits(store)] == [3, 4]


def test_a_commit_that_the_store_carries_out_after_its_save_was_given_up_is_none_in_this_term_nor_in_the_next() -> None:
    store, told, layout = Late(), list[Evidence](), toy_layout("box")
    former = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    for number in (1, 2):
        receipts = upload_all_ranks(store, layout, logical_arrays(layout, 1), step=1, write_id=f"a1-{number}")
        order = {"step": Step(1), "write_id": WriteId(f"a1-{number}"), "attempt": Attempt(1)}
        encoded = [receipt.encode() for receipt in receipts]
        former.commit(**order, layout=layout.encode(), receipts=encoded)  # type: ignore[arg-type]
        if number == 1:
            former.clean(lambda: [WriteId("a1-2")])
    former.close()
    assert [type(one) for one in told] == [SaveFailed, SaveFailed]
    assert {info.key.split("/")[1] for info in store.list("steps")} == {"000000001-a1-2"}
    remove_rubbish(store, {WriteId("a1-2")})  # as the next leader does, which has read of it in the journal
    store.arrive()
    assert commits(store) == []
    desk = desk_of(store)
    assert desk.survey() == ([], [])
    desk.close()


def test_a_record_that_cannot_be_read_is_neither_rejected_nor_deleted_and_is_told() -> None:
    """By no way that leads to a deletion: not at the begin of a term, not by retention, not as what did not restore."""
    inner = MemoryStore()
    refs = [
        save(inner, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}").ref for step in (1, 2, 3, 4)
    ]
    store = Unread(inner, {commit_key(Step(1)): DENIED, commit_key(Step(4)): BAD_PLACE})
    before = [info.key for info in inner.list("")]
    news: list[Evidence] = []
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=news.append)
    intact, bad = desk.survey()
    assert ([one.step for one in intact], [one.step for one in bad]) == ([2, 3], [1, 4])
    desk.delete(refs[:1])
    desk.reject(refs[3], "it does not restore")
    desk.clean(lambda: ())
    desk.close()
    assert [one for one in news if isinstance(one, Deleted)] == [Deleted(write_ids=(), kept=(WriteId("a1-1"),))]
    assert isinstance(news[-1], Deleted), "what is pinned has not changed"
    after = {info.key for info in inner.list("")}
    assert after == {*before, "rejected/000000004-a1-4.json"}
    store.errors = {}
    assert [one.step for one in commits(store)] == [1, 2, 3]


@pytest.mark.parametrize("num_failures", [1, 3])
def test_what_was_owed_is_left_to_the_brain_when_a_commit_is_taken_back_which_it_was_given_up_for(
    num_failures: int,
) -> None:
    """The deletion fails, and perhaps both rejections behind it: nothing goes before they have come about."""
    inner, told = MemoryStore(), list[Evidence]()
    refs = [
        save(inner, LAYOUT, logical_arrays(LAYOUT, step), step=step, write_id=f"a1-{step}").ref for step in range(4)
    ]
    away = [Fail(write=write, when=When.BEFORE, error=Unavailable("try later")) for write in range(num_failures)]
    desk = CheckpointDesk(FaultyStore(inner, *away), run_name="run", clock=ManualClock(now_us=1), tell=told.append)
    desk.survey()
    desk.delete(refs[:2])
    for ref in refs[2:]:
        desk.reject(ref, "it does not restore")
    desk.delete([])
    desk.close()
    assert [one for one in told if isinstance(one, Deleted)] == [
        Deleted(write_ids=(), kept=(WriteId("a1-0"), WriteId("a1-1")))
    ]
    assert [one.step for one in commits(inner)] == [0, 1]


def test_every_write_of_which_a_store_has_anything_is_told() -> None:
    """Committed, without a commit, rejected without data, pinned, and one of which only an upload has begun."""
    store = MemoryBucket(min_part_bytes=1)
    objects = MemoryStore()
    for number in (1, 2, 3):
        save(objects, LAYOUT, logical_arrays(LAYOUT, number), step=number, write_id=f"a1-{number}")
    for info in objects.list(""):
        if "000000003" not in info.key and info.key != commit_key(Step(2)):
            store.create(info.key, read(objects, info.key, info.size_bytes))
    for kind, number in (("rejected", 3), ("pins", 4), ("deleting", 5)):
        store.create(marker_key(kind, Step(3), WriteId(f"a1-{number}")), b"")
    store.begin_upload(f"{step_prefix(Step(3), WriteId('a1-6'))}/w/c/0")
    desk = desk_of(store)
    assert desk.all_writes() == tuple(f"a1-{number}" for number in range(1, 7))
    desk.close()
