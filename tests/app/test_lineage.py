"""A run whose journal knows checkpoints never begins anew because its store is away; whatever a crash left is fine."""

from __future__ import annotations

import pytest

from behemoth.app.checkpoint_desk import CheckpointDesk
from behemoth.app.history import read_history
from behemoth.app.lineage import require_lineage
from behemoth.base.clock import ManualClock
from behemoth.base.errors import NotFound
from behemoth.base.ids import Epoch, NodeId
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.paths import commit_key
from behemoth.state.effect import CommitRef, Delete, Reject
from behemoth.state.evidence import Deleted, RestoreFailed, TermBegan
from behemoth.testing.store import MemoryStore
from checkpoint.saved_checkpoint import save, small_layout
from reconcile.player import Player, ref, training

URL = "/mnt/shared/tiny"


def play(num_commits: int) -> Player:
    """A run that has committed steps 10, 20, ... and, as the journal tells it, deleted what retention gave up."""
    player = training()
    for _ in range(num_commits):
        player.commit()
        if player.has(Delete):
            player.tell(Deleted(write_ids=tuple(commit.write_id for commit in player.one(Delete).commits)))
    return player


def stored(*known: CommitRef) -> MemoryStore:
    store = MemoryStore()
    for commit in known:
        save(store, small_layout(), step=commit.step, write_id=commit.write_id)
    return store


def damage(store: MemoryStore, commit: CommitRef) -> None:
    store.delete([commit_key(commit.step)])
    store.create(commit_key(commit.step), b'{"crc32c":"00000000"')


def survey(store: MemoryStore) -> list[CommitRef]:
    desk = CheckpointDesk(store, run_name="run", clock=ManualClock(now_us=1), tell=lambda _: None)
    intact, _ = desk.survey()
    desk.close()
    return intact


def check(player: Player, store: MemoryStore) -> None:
    """As a start does it: with what the journal says once it is read again."""
    observation = read_history(player.journal).observation
    assert observation == player.obs
    require_lineage(store, observation, url=URL)


def expect_refusal(player: Player, store: MemoryStore) -> str:
    """Returns the hint."""
    with pytest.raises(NotFound) as caught:
        check(player, store)
    newest = player.obs.commits[-1]
    assert f"{URL}: expected the checkpoint of step {newest.step}" in caught.value.message
    assert caught.value.code == "checkpoints-gone"
    assert "mount the store" in caught.value.hint
    assert "--dir" in caught.value.hint
    return caught.value.hint


def test_a_store_with_nothing_in_it_is_refused_and_left_untouched() -> None:
    store = MemoryStore()
    assert "remove owner" not in expect_refusal(play(3), store)
    assert list(store.list("")) == []


def test_a_store_with_the_checkpoints_of_another_history_is_refused() -> None:
    expect_refusal(play(2), stored(ref(10, "a7-40"), ref(20, "a7-41"), ref(500, "a1-1")))


def test_a_store_that_was_put_back_from_an_older_backup_is_refused_with_a_way_to_go_on_from_it() -> None:
    """Retention has given up since what the backup has."""
    player = play(4)
    assert [commit.step for commit in player.obs.commits] == [30, 40]
    hint = expect_refusal(player, stored(ref(10, "a1-1"), ref(20, "a1-2")))
    assert "to go on from its checkpoint of step 20 (a backup's?), remove owner/run.json from it" in hint


def test_a_store_that_is_owned_and_empty_is_refused() -> None:
    store = MemoryStore()
    player = play(1)
    take(store, Owner.of_run(player.obs.config.run_uid, name="tiny", directory="/x"), url=URL)
    expect_refusal(player, store)


def test_a_run_that_has_committed_nothing_may_begin_with_nothing() -> None:
    check(play(0), MemoryStore())
    require_lineage(MemoryStore(), None, url=URL)


def test_a_commit_that_was_not_journalled_before_the_crash_does_no_harm() -> None:
    player = play(1)
    check(player, stored(*player.obs.commits, ref(20, "a1-2")))
    check(play(0), stored(ref(10, "a1-1")))


def test_one_known_checkpoint_is_enough() -> None:
    player = play(3)
    for commit in player.obs.commits:
        check(player, stored(commit))


def test_deletions_may_be_done_told_or_neither_when_the_process_dies() -> None:
    player = training()
    for _ in range(3):
        player.commit()
    assert player.one(Delete).commits == (ref(10, "a1-1"),)
    whole = stored(ref(10, "a1-1"), ref(20, "a1-2"), ref(30, "a1-3"))
    check(player, whole)
    execute(whole, plan_gc(whole, drop=[ref(10, "a1-1")]))
    check(player, whole)
    player.tell(TermBegan(epoch=Epoch(2)))  # forgets what the former term was deleting
    check(player, whole)
    expect_refusal(player, MemoryStore())


def test_damaged_checkpoints_are_traces_before_and_after_the_survey_that_rejects_them() -> None:
    player = play(2)
    store = stored(*player.obs.commits)
    for commit in player.obs.commits:
        damage(store, commit)
    check(player, store)
    assert survey(store) == []
    assert commits(store) == []
    check(player, store)  # the process died before it told what it had found


def test_what_did_not_restore_and_was_rejected_is_not_missed() -> None:
    player = play(1)
    (commit,) = player.obs.commits
    player.fail(signal=9)
    assert player.obs.restore == commit
    failed = RestoreFailed(
        attempt=player.obs.attempt, node=NodeId("a"), write_id=commit.write_id, reason="bad chunk", is_corrupt=True
    )
    player.tell(failed)
    assert player.one(Reject).commit == commit
    store = stored(commit)
    check(player, store)  # decided and journalled, not applied
    reject(store, commit, "bad chunk")
    check(player, store)
    check(player, MemoryStore())


def test_a_marker_that_was_set_before_its_line_was_written_is_a_trace() -> None:
    player = play(1)
    store = stored(*player.obs.commits)
    reject(store, player.obs.commits[0], "chunk 3 is damaged")
    check(player, store)
