"""What the drain process does with the second store: copies, rejections, retention."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest
from msgspec import structs

from behemoth.app.batches.messages import Failed
from behemoth.app.drains.messages import FROM_DRAIN, Drain, Drained, GiveWay, Settings, encoded, received, send
from behemoth.app.drains.process import drain_one, retain, serve_drains
from behemoth.base.errors import Conflict, Corrupt, NotFound, Unavailable
from behemoth.base.ids import RunUid, WriteId
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.owner import OWNED, Owner, take
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.pins import pin, unpin
from behemoth.checkpoint.verify import verify
from behemoth.policy.retention import Retention
from behemoth.ports import SavesTo
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store
from behemoth.testing.faults import Crash, Die, FaultyStore, When
from behemoth.testing.store import MemoryStore, read
from checkpoint.between import Between
from checkpoint.late_bucket import Late
from checkpoint.listed_store import ListedStore
from checkpoint.saved_checkpoint import save, small_layout

SETTINGS = Settings(
    source="above", target="below", run_uid=RunUid("mine"), threads=1, rate=None, retention=Retention(keep_last=2)
)


def own(store: SavesTo, run_uid: str = "mine") -> None:
    take(store, Owner.of_run(RunUid(run_uid), name="run", directory="/run"), url="below")


def saved(store: SavesTo, step: int, write_id: str = "") -> CommitRef:
    record = save(store, small_layout(), step=step, write_id=write_id or f"a1-{step}")
    assert record is not None
    return record.ref


def steps_of(store: SavesTo) -> list[int]:
    return [int(one.step) for one in commits(store) if isinstance(one, CommitRef)]


def test_retention_that_gives_nothing_up_lists_the_commits_and_pins_of_the_tier_once() -> None:
    above, below = MemoryStore(), ListedStore()
    for store in (above, below):
        saved(store, 1)
    below.prefixes.clear()
    retain(above, below, SETTINGS.retention)
    assert (below.prefixes.count("commits"), below.prefixes.count("pins")) == (1, 1)


def test_the_tiers_retention_keeps_its_last_two_and_what_is_pinned_in_either_store() -> None:
    above, below = MemoryStore(), MemoryStore()
    own(below)
    for step in range(1, 6):
        ref = saved(above, step)
        drain_one(SETTINGS, above, below, ref)
        if step == 1:
            pin(above, ref, reason="it is good", at_us=0)
        if step == 2:
            pin(below, ref, reason="it is good", at_us=0)
    assert steps_of(below) == [1, 2, 4, 5]
    assert {info.key.split("/")[1] for info in below.list("steps")} == {f"{s:09d}-a1-{s}" for s in (1, 2, 4, 5)}


def test_what_was_rejected_above_is_rejected_below_and_its_step_is_drained_again() -> None:
    above, below = MemoryStore(), MemoryStore()
    own(below)
    drain_one(SETTINGS, above, below, saved(above, 1))
    bad = saved(above, 2)
    drain_one(SETTINGS, above, below, bad)
    reject(above, bad, "it did not restore")
    drain_one(SETTINGS, above, below, saved(above, 2, "a2-2"))
    assert [one.write_id for one in commits(below) if isinstance(one, CommitRef)] == ["a1-1", "a2-2"]


ALL_KEPT = structs.replace(SETTINGS, retention=Retention(keep_last=9))


def gone_back_behind(step: int) -> tuple[MemoryStore, MemoryStore, CommitRef]:
    """A run has drained `step` and later ones; above, retention gave that up, and the later ones did not restore. Also
    the commit of the same step that it has come to again."""
    above, below = MemoryStore(), MemoryStore()
    own(below)
    refs = [saved(above, number) for number in range(1, step + 3)]
    for ref in refs:
        drain_one(ALL_KEPT, above, below, ref)
    execute(above, plan_gc(above, drop=[refs[step - 1]]))
    for ref in refs[step:]:
        reject(above, ref, "it did not restore")
    return above, below, saved(above, step, f"a2-{step}")


def writes_of(store: SavesTo) -> list[str]:
    return [one.write_id for one in commits(store) if isinstance(one, CommitRef)]


def test_a_step_that_the_run_has_come_to_again_takes_the_place_of_what_retention_had_given_up_above() -> None:
    above, before, again = gone_back_behind(3)
    assert writes_of(before) == ["a1-1", "a1-2", "a1-3", "a1-4", "a1-5"]
    for write in range(1000):
        for when in When:
            below = before.copy()
            try:
                drain_one(ALL_KEPT, above, FaultyStore(below, Die(write=write, when=when)), again)
                assert write > 12  # two rejections above, the copy, a mark, a record, what the old one leaves
                assert writes_of(below) == ["a1-1", "a1-2", "a2-3"]
                return
            except Crash:
                after = below.after_power_loss(seed=write) if write % 2 else below
            found = commits(after)
            assert all(verify(after, one, threads=1, deep=True).is_intact for one in found)
            assert len({"a1-3", "a2-3"}.intersection(writes_of(after))) == 1
            drain_one(ALL_KEPT, above, after, again)
            assert writes_of(after) == ["a1-1", "a1-2", "a2-3"]
            assert {info.key.split("/")[1] for info in after.list("steps/000000003-a1-3")} == set()
            assert list(after.list("deleting")) == []


@pytest.mark.parametrize("is_after", [False, True])
def test_a_pin_at_any_moment_while_its_place_is_taken_succeeds_on_what_stays_or_fails(is_after: bool) -> None:
    above, before, again = gone_back_behind(3)
    old = next(one for one in commits(before) if isinstance(one, CommitRef) and one.write_id == "a1-3")
    outcomes: list[tuple[bool, bool]] = []

    def pin_old(store: SavesTo) -> None:
        try:
            pin(store, old, reason="it is good", at_us=0)
            succeeded.append(True)
        except (Conflict, NotFound):
            succeeded.append(False)

    for number in range(1000):
        below, succeeded = before.copy(), list[bool]()
        meanwhile = Between(below, number, partial(pin_old, below), is_after=is_after)
        with suppress(Conflict):
            drain_one(ALL_KEPT, above, meanwhile, again)
        if not succeeded:
            break
        stays = "a1-3" in writes_of(below)
        assert stays or not succeeded[0], f"at write {number}"
        assert len({"a1-3", "a2-3"}.intersection(writes_of(below))) == 1
        outcomes.append((succeeded[0], stays))
    assert {(True, True), (False, False)} <= set(outcomes)


def test_a_pin_that_comes_once_the_copy_was_begun_keeps_the_place_and_can_be_set_again() -> None:
    above, below, again = gone_back_behind(3)
    old = next(one for one in commits(below) if isinstance(one, CommitRef) and one.write_id == "a1-3")
    meanwhile = Between(below, 5, lambda: pin(below, old, reason="it is good", at_us=0), is_after=True)
    with pytest.raises(Conflict) as caught:
        drain_one(ALL_KEPT, above, meanwhile, again)
    assert caught.value.code == "commit-pinned"
    assert pin(below, old, reason="", at_us=0) is False
    unpin(below, old.step, old.write_id)
    drain_one(ALL_KEPT, above, below, again)
    assert writes_of(below) == ["a1-1", "a1-2", "a2-3"]


def test_a_step_that_is_pinned_below_keeps_its_place() -> None:
    above, below, again = gone_back_behind(3)
    pin(below, CommitRef(step=again.step, write_id=WriteId("a1-3"), size_bytes=0), reason="it is good", at_us=0)
    with pytest.raises(Conflict, match="expected one that may be replaced, got write a1-3, which is pinned"):
        drain_one(ALL_KEPT, above, below, again)
    assert "a1-3" in writes_of(below)


def test_pins_that_cannot_be_read_below_put_a_drain_off_and_do_not_give_it_up() -> None:
    above, below, again = gone_back_behind(3)
    below.create("pins/README", b"what is this?")
    with pytest.raises(Conflict, match="got a name that pins no checkpoint"):
        drain_one(ALL_KEPT, above, below, again)
    assert "a1-3" in writes_of(below)
    below.delete(["pins/README"])
    drain_one(ALL_KEPT, above, below, again)
    assert writes_of(below) == ["a1-1", "a1-2", "a2-3"]


def test_a_damaged_copy_takes_nobodys_place() -> None:
    above, below, again = gone_back_behind(3)
    info = next(info for info in above.list("steps/000000003-a2-3") if "/c/" in info.key)
    data = read(above, info.key, info.size_bytes)
    above.delete([info.key])
    above.create(info.key, bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(Corrupt):
        drain_one(ALL_KEPT, above, below, again)
    assert "a1-3" in writes_of(below)


def test_what_a_copy_that_was_cut_off_left_goes_with_the_next_one() -> None:
    above, below = MemoryStore(), MemoryStore()
    own(below)
    save(below, small_layout(), step=1, write_id="a1-1", publish=False)
    drain_one(SETTINGS, above, below, saved(above, 2))
    assert {info.key.split("/")[1] for info in below.list("steps")} == {"000000002-a1-2"}


def test_killed_at_any_write_of_copies_and_retention_the_tier_keeps_two_whole_checkpoints_and_goes_on() -> None:
    above, before = MemoryStore(), MemoryStore()
    own(before)
    refs = [saved(above, step) for step in (1, 2, 3)]
    for ref in refs[:2]:
        drain_one(SETTINGS, above, before, ref)
    for write in range(1000):
        for when in When:
            below = before.copy()
            try:
                drain_one(SETTINGS, above, FaultyStore(below, Die(write=write, when=when)), refs[2])
                assert write > 12  # a copy, a mark, a record, its objects
                return
            except Crash:
                after = below.after_power_loss(seed=write) if write % 2 else below
            found = commits(after)
            assert len(found) >= 2
            assert all(verify(after, one, threads=1, deep=True).is_intact for one in found)
            drain_one(SETTINGS, above, after, refs[2])
            assert steps_of(after) == [2, 3]
            assert {info.key.split("/")[1] for info in after.list("steps")} == {"000000002-a1-2", "000000003-a1-3"}
            assert list(after.list("deleting")) == []


def test_a_record_that_arrives_when_its_copy_was_given_up_for_a_newer_one_counts_for_nobody() -> None:
    above, below = MemoryStore(), Late()
    own(below)
    first, second, third = (saved(above, step) for step in (1, 2, 3))
    with pytest.raises(Unavailable):
        drain_one(SETTINGS, above, below, first)
    below.is_late = False
    drain_one(SETTINGS, above, below, second)
    below.arrive()
    drain_one(SETTINGS, above, below, third)
    assert steps_of(below) == [2, 3]
    assert all(verify(below, one, threads=1, deep=True).is_intact for one in commits(below))
    with pytest.raises(Conflict) as caught:
        drain_one(SETTINGS, above, below, first)
    assert "rejected/000000001-a1-1.json there tells why" in caught.value.hint


def test_a_store_that_has_become_another_runs_gets_nothing() -> None:
    above, below = MemoryStore(), MemoryStore()
    own(below, "theirs")
    with pytest.raises(Conflict) as caught:
        drain_one(SETTINGS, above, below, saved(above, 1))
    assert caught.value.code == OWNED
    assert steps_of(below) == []


def test_what_cannot_be_tidied_up_below_makes_no_copy_a_failed_one() -> None:
    above, below = MemoryStore(), MemoryStore()
    own(below)
    refs = [saved(above, step) for step in (1, 2, 3)]
    below.create("pins/somebody's", b"")
    told = [drain_one(SETTINGS, above, below, ref) for ref in refs]
    assert [one.untidy[:14] for one in told] == ["pins/somebody'"] * 3
    assert "remove it, or move it out of the store" in told[0].untidy
    assert steps_of(below) == [1, 2, 3]
    below.delete(["pins/somebody's"])
    assert drain_one(SETTINGS, above, below, refs[2]).untidy == ""
    assert steps_of(below) == [2, 3]


def test_a_first_store_that_goes_away_behind_a_copy_takes_no_pin_of_its_own_along() -> None:
    above, below = MemoryStore(), MemoryStore()
    own(below)
    refs = [saved(above, step) for step in (1, 2, 3)]
    pin(above, refs[0], reason="it is good", at_us=0)
    for ref in refs[:2]:
        drain_one(SETTINGS, above, below, ref)

    def unmount() -> None:
        above.delete([info.key for info in above.list("")])

    last = next(
        number for number in range(1000) if commit_key(refs[2].step) in contents_after(above, below, refs[2], number)
    )
    drained = drain_one(SETTINGS, above, Between(below, last, unmount, is_after=True), refs[2])
    assert drained.untidy.startswith("first store: expected the commit that was drained, got none any more")
    assert steps_of(below) == [1, 2, 3]


def contents_after(above: MemoryStore, below: MemoryStore, ref: CommitRef, write: int) -> set[str]:
    """Names of what is in the second store when a drain dies behind its write of this number."""
    after = below.copy()
    with suppress(Crash):
        drain_one(SETTINGS, above, FaultyStore(after, Die(write=write, when=When.AFTER)), ref)
    return {info.key for info in after.list("")}


def test_it_answers_each_order_and_ends_with_its_leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.nice", lambda _more: 0)  # it is this process that serves here
    with closing(open_store(str(tmp_path / "above"))) as above, closing(open_store(str(tmp_path / "below"))) as below:
        own(below)
        ref = saved(above, 1)
    settings = Settings(
        source=str(tmp_path / "above"),
        target=str(tmp_path / "below"),
        run_uid=RunUid("mine"),
        threads=1,
        rate=1 << 30,
        retention=Retention(keep_last=2),
    )
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=serve_drains, args=(theirs, open_store), name="drain")
    serving.start()
    with closing(ours):
        send(ours, settings)
        answers = received(ours, FROM_DRAIN)
        send(ours, Drain(commit=ref))
        first = next(answers)
        assert isinstance(first, Drained)
        assert first.num_bytes > 0
        send(ours, Drain(commit=CommitRef(step=ref.step, write_id=ref.write_id, size_bytes=0)))
        assert next(answers) == Drained(num_bytes=0, seconds=pytest.approx(0.0, abs=60))  # type: ignore[arg-type]
        missing = CommitRef(step=ref.step, write_id=type(ref.write_id)("a9-9"), size_bytes=0)
        send(ours, Drain(commit=missing))
        failed = next(answers)
        assert isinstance(failed, Failed)
        assert failed.code == "commit-gone"
        answers.close()  # type: ignore[attr-defined]  # it holds the socket's file
    serving.join(30)
    assert not serving.is_alive()
    theirs.close()


def test_what_a_killed_leader_has_begun_to_say_ends_the_process_and_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.nice", lambda _more: 0)
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=serve_drains, args=(theirs, lambda url: open_store(str(tmp_path / url))))
    serving.start()
    with closing(ours):
        send(ours, SETTINGS)
        ours.sendall(encoded(GiveWay(is_saving=True))[:-1])
    serving.join(30)
    assert not serving.is_alive()
    theirs.close()


def test_an_answer_that_was_cut_off_is_none() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        send(theirs, Drained(num_bytes=1, seconds=0.5))
        theirs.sendall(encoded(Drained(num_bytes=2, seconds=0.5))[:-3])
        theirs.shutdown(socket.SHUT_WR)
        assert list(received(ours, FROM_DRAIN)) == [Drained(num_bytes=1, seconds=0.5)]
