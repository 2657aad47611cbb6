"""The commits that a run knows of, and what retention makes of them."""

from __future__ import annotations

import pytest
from msgspec import structs

from behemoth.base.ids import Attempt, Epoch, NodeId, WriteId
from behemoth.policy.retention import HOUR_US
from behemoth.state.effect import Delete, Start
from behemoth.state.evidence import (
    CommitsFound,
    Committed,
    Deleted,
    GangUp,
    Pinned,
    RestoreFailed,
    SaveFailed,
    SaveStaged,
    SaveWritten,
    TermBegan,
)
from reconcile.player import Player, ref, training


def test_retention_deletes_what_it_no_longer_wants_once() -> None:
    player = training()
    for _ in range(3):
        player.commit()
    assert [commit.step for commit in player.one(Delete).commits] == [10]
    player.tell(Deleted(write_ids=(WriteId("a1-1"),)))
    assert [commit.step for commit in player.obs.commits] == [20, 30]
    assert player.effects == ()


def test_a_pinned_commit_is_left_alone_and_deleted_once_it_is_unpinned() -> None:
    player = training()
    player.tell(Pinned(write_ids=(WriteId("a1-1"),)))
    for _ in range(4):
        player.commit()
    assert [commit.step for commit in player.obs.commits if commit.write_id not in player.obs.deleting] == [10, 30, 40]
    player.tell(Pinned(write_ids=()))
    assert [commit.step for commit in player.one(Delete).commits] == [10]


def test_a_commit_that_proved_to_be_pinned_when_it_was_to_be_deleted_counts_as_kept() -> None:
    player = training()
    for _ in range(3):
        player.commit()
    assert [commit.step for commit in player.one(Delete).commits] == [10]
    player.tell(Deleted(write_ids=()), Pinned(write_ids=(WriteId("a1-1"),)))
    assert player.effects == ()
    assert player.obs.deleting == frozenset()
    assert [commit.step for commit in player.obs.commits] == [10, 20, 30]


def test_what_could_not_go_is_asked_for_again_with_the_next_commit_and_not_before() -> None:
    player = training()
    for _ in range(3):
        player.commit()
    assert [commit.step for commit in player.one(Delete).commits] == [10]
    for newest in (20, 30, 40):
        player.tell(Deleted(write_ids=tuple(ref.write_id for ref in player.obs.commits[1:-2]), kept=(WriteId("a1-1"),)))
        assert player.effects == ()
        player.commit()
        assert [commit.step for commit in player.one(Delete).commits] == [10, newest]
    player.tell(Deleted(write_ids=(WriteId("a1-1"),)))
    player.commit()
    assert 10 not in [commit.step for commit in player.one(Delete).commits]


def test_pins_that_are_told_before_the_store_was_listed_delete_nothing() -> None:
    player = training()
    for _ in range(3):
        player.commit()
    player.tell(TermBegan(epoch=Epoch(2)), Pinned(write_ids=()))
    assert not player.has(Delete)


def test_hours_and_days_are_those_in_the_commits() -> None:
    player = Player(keep_hourly=2, keep_daily=2)
    hours = {10: 1, 20: 2, 30: 30, 40: 30.5, 50: 31, 60: 31.2, 70: 31.4}
    commits = [
        structs.replace(ref(step, f"a1-{step}"), committed_us=int(hour * HOUR_US)) for step, hour in hours.items()
    ]
    player.begin(*commits)
    assert [commit.step for commit in player.one(Delete).commits] == [10, 30, 50]


def test_only_the_newest_commits_and_milestones_are_kept() -> None:
    player = Player(keep_every_steps=20)
    player.begin(*(ref(step, f"a1-{step}") for step in (10, 20, 30, 40, 50)))
    assert [commit.step for commit in player.one(Delete).commits] == [10, 30]


def test_what_is_being_restored_is_not_deleted_before_it_is_restored() -> None:
    player = training()
    player.commit()
    given_up = player.save.write_id
    player.reach(20)
    player.tell(SaveFailed(write_id=given_up, reason="ambiguous answer"))
    staged = player.save.write_id
    player.reach(30)
    player.tell(SaveStaged(attempt=Attempt(1), write_id=staged))
    player.fail(signal=9)
    assert player.one(Start).restore == ref(10, "a1-1")
    player.tell(Committed(commit=ref(20, given_up)), Committed(commit=ref(30, staged)))
    assert [commit.step for commit in player.obs.expired] == [10]
    assert not player.has(Delete)
    player.tell(GangUp(attempt=Attempt(2)))
    assert not player.has(Delete)
    player.train(10)
    assert player.one(Delete).commits == (ref(10, "a1-1"),)


def test_what_was_restored_long_ago_is_deleted_like_any_other() -> None:
    player = Player()
    player.begin(ref(10, "a1-1"))
    player.join("abc")
    player.train(10)
    player.commit()
    player.commit()
    assert player.one(Delete).commits == (ref(10, "a1-1"),)


def test_the_store_is_listed_once_a_term() -> None:
    player = Player()
    player.begin(ref(10, "a1-1"))
    player.tell(CommitsFound(commits=()))
    assert player.obs.commits == (ref(10, "a1-1"),)


def test_a_commit_that_was_found_bad_is_not_taken_up_from_a_later_listing() -> None:
    player = Player()
    commits = ref(10, "a1-1"), ref(20, "a1-2")
    player.begin(*commits)
    player.join("abc")
    bad = RestoreFailed(attempt=Attempt(1), node=NodeId("a"), write_id=WriteId("a1-2"), reason="crc", is_corrupt=True)
    player.tell(bad)
    player.begin(*commits, epoch=2)
    assert player.obs.commits == commits[:1]


def test_a_commit_that_came_while_the_store_was_listed_is_known() -> None:
    player = training()
    save = player.save
    player.tell(SaveWritten(attempt=Attempt(1), write_id=save.write_id))
    player.tell(TermBegan(epoch=Epoch(2)))
    player.tell(Committed(commit=ref(save.step, save.write_id)))
    player.tell(CommitsFound(commits=()))
    assert player.obs.commits == (ref(10, "a1-1"),)


def test_a_commit_that_was_listed_and_told_is_one() -> None:
    player = training()
    save = player.save
    player.tell(SaveWritten(attempt=Attempt(1), write_id=save.write_id))
    player.begin(ref(save.step, save.write_id), epoch=2)
    player.tell(Committed(commit=ref(save.step, save.write_id)))
    assert player.obs.commits == (ref(10, "a1-1"),)


@pytest.mark.parametrize("write_id", ["imported", "a1-x", "a1-", "a1-\u00b2", "a1-\u0663"])
def test_commits_of_writes_that_no_run_numbered_say_nothing_of_the_next_number(write_id: str) -> None:
    player = Player()
    player.begin(ref(10, "a1-4"), ref(20, write_id))
    player.join("abc")
    player.train(20)
    assert player.save.write_id == "a1-5"


def test_a_run_that_begins_in_the_store_of_another_uses_the_id_of_none_of_its_writes() -> None:
    """It saves steps again of which checkpoints were rejected there, or are still being deleted."""
    player = Player()
    others = WriteId("a1-5"), WriteId("imported"), WriteId("a1-3")
    player.tell(TermBegan(epoch=Epoch(1)), CommitsFound(commits=(ref(10, "a1-4"),), others=others))
    player.join("abc")
    player.train(10)
    assert player.save.write_id == "a1-6"
