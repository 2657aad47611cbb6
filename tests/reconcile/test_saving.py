"""Saves: when they are called, how they end, and what retention makes of them."""

from __future__ import annotations

from behemoth.base.ids import Attempt, NodeId, Step
from behemoth.state.config import Cadence
from behemoth.state.effect import Abort, Agree, Close, Commit, Save, Start
from behemoth.state.evidence import (
    Committed,
    GangFinished,
    NodeLost,
    SaveArmed,
    SaveFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
)
from reconcile.player import S, ref, training


def test_the_next_multiple_is_announced_as_soon_as_the_last_save_ended() -> None:
    player = training()
    assert (player.save.step, player.save.write_id) == (10, "a1-1")
    player.commit()
    assert player.one(Save).step == 20
    assert player.one(Save).write_id == "a1-2"


def test_each_stage_is_acted_on_once() -> None:
    player = training()
    write_id = player.save.write_id
    player.tell(SaveArmed(attempt=Attempt(1), write_id=write_id))
    assert not player.has(Agree)
    player.tell(SaveStaged(attempt=Attempt(1), write_id=write_id))
    player.tell(SaveWritten(attempt=Attempt(1), write_id=write_id))
    assert player.one(Commit).step == 10
    player.tell(SaveWritten(attempt=Attempt(1), write_id=write_id))
    assert player.effects == ()


def test_a_save_that_came_too_late_is_followed_by_a_later_one() -> None:
    player = training(cadence=Cadence(steps=1))
    player.reach(1)
    player.tell(SavePassed(attempt=Attempt(1), write_id=player.save.write_id, step=Step(4)))
    assert player.one(Abort)
    assert player.one(Save).step > 4
    assert player.obs.num_save_failures == 0


def test_a_committed_save_tells_how_far_a_fast_gang_is_before_the_next_tick_does() -> None:
    player = training()
    player.reach(1)
    for step in (10, 20, 30):
        write_id = player.save.write_id
        player.tell(SaveArmed(attempt=Attempt(1), write_id=write_id), after_us=1_000)
        player.tell(SaveStaged(attempt=Attempt(1), write_id=write_id), after_us=1_000)
        player.tell(SaveWritten(attempt=Attempt(1), write_id=write_id), after_us=1_000)
        player.tell(Committed(commit=ref(step, write_id)), after_us=1_000)
        assert player.one(Save).step == step + 10
    player.tell(SavePassed(attempt=Attempt(1), write_id=player.save.write_id, step=Step(43)))
    assert player.one(Save).step == 50


def test_words_of_steps_that_were_heard_at_once_do_not_make_the_gang_look_fast() -> None:
    player = training()
    player.reach(1)
    for step in (2, 3, 4):
        player.reach(step, after_us=200)
    player.commit()
    assert player.one(Save).step == 20
    player.rest(after_us=3 * S)
    assert player.obs.step_us >= S // 2


def test_words_of_many_steps_each_that_were_heard_at_once_do_not_make_the_gang_look_fast() -> None:
    player = training(total_steps=1_000)
    for step in (1, 51, 101):  # in a second each
        player.reach(step)
    pace_us = player.obs.step_us
    player.reach(151, after_us=3 * S)
    for step in range(201, 401, 50):
        player.reach(step, after_us=200)
    assert player.obs.step_us >= pace_us


def test_the_first_words_of_many_steps_do_not_make_the_gang_look_faster_than_its_slowest_step() -> None:
    player = training(total_steps=1_000)
    player.reach(1)
    player.reach(8, after_us=200)
    assert player.obs.step_us == player.obs.progress.slowest_step_us  # type: ignore[union-attr]


def test_a_failed_save_is_aborted_told_and_followed_by_the_next() -> None:
    player = training()
    player.reach(10)
    player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
    assert player.one(Abort).reason == "disk full"
    assert player.one(Save).step == 20
    assert player.phase == ("training", "SavesFailing")
    assert player.obs.num_save_failures == 1


def test_failures_of_saves_that_are_not_the_last_never_end_the_run() -> None:
    player = training()
    for step in (10, 20, 30, 40):
        assert player.save.step == step
        player.reach(step)
        player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
    assert not player.has(Close)
    assert player.obs.num_save_failures == 4


def test_a_save_over_its_limit_is_aborted() -> None:
    player = training()
    player.reach(10, promise_us=player.now_us + 1_000 * S)
    assert player.decision is not None
    assert player.decision.wake_at_us == player.now_us + 60 * S
    player.rest(60 * S)
    assert "no commit within 60 s" in player.one(Abort).reason
    assert player.obs.num_save_failures == 1


def test_a_save_announced_long_ahead_has_no_limit_before_its_step() -> None:
    player = training()
    player.reach(1, promise_us=player.now_us + 1_000 * S)
    player.rest(500 * S)
    assert player.effects == ()


def test_an_interval_saves_ahead_of_the_line() -> None:
    player = training(cadence=Cadence(interval_us=60 * S), total_steps=10_000)
    assert not player.has(Save)
    for step in (1, 3, 5):
        player.reach(step, promise_us=player.now_us + 200 * S)
    player.rest(57 * S - S)
    assert not player.has(Save)
    player.rest(S)
    assert 119 <= player.one(Save).step <= 125


def test_the_last_save_is_announced_as_such_and_agreed_on() -> None:
    player = training(total_steps=Step(10))
    assert player.one(Save).is_last
    player.tell(SaveArmed(attempt=Attempt(1), write_id=player.save.write_id))
    assert player.one(Agree).write_id == player.save.write_id
    player.commit()
    assert not player.has(Close)
    player.tell(GangFinished(attempt=Attempt(1)))
    assert player.one(Close).outcome == "succeeded"
    assert player.phase == ("succeeded", "Completed")


def test_an_interval_run_announces_its_last_save_before_the_end() -> None:
    player = training(cadence=Cadence(interval_us=3_600 * S), total_steps=Step(10))
    for step in (1, 3, 5):
        player.reach(step)
    player.reach(8)
    assert (player.one(Save).step, player.one(Save).is_last) == (10, True)


def test_ranks_that_stand_at_the_last_step_are_asked_again_and_the_third_failure_ends_the_run() -> None:
    player = training(total_steps=Step(10))
    player.reach(10)
    for _ in range(2):
        player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
        assert (player.one(Save).step, player.one(Save).is_last) == (10, True)
    player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
    assert player.one(Close).outcome == "failed"
    assert "disk full" in player.one(Close).reason


def test_a_program_that_ended_without_its_last_save_is_started_again_long_before_the_limit_of_a_save() -> None:
    player = training(total_steps=Step(10))
    player.reach(10)
    player.tell(GangFinished(attempt=Attempt(1)))
    assert not player.has(Abort)
    player.rest(player.obs.config.heartbeat_limit_us)
    assert player.one(Abort).reason == "the program ended without saving for it"
    assert "without its last checkpoint" in player.one(Start).reason


def test_workers_that_die_after_the_last_save_is_in_memory_are_not_missed() -> None:
    player = training(total_steps=Step(10))
    write_id = player.save.write_id
    player.reach(10)
    player.tell(SaveStaged(attempt=Attempt(1), write_id=write_id))
    player.fail(signal=9)
    assert not player.has(Start)
    player.tell(SaveWritten(attempt=Attempt(1), write_id=write_id))
    player.tell(Committed(commit=ref(10, write_id)))
    assert player.one(Close).outcome == "succeeded"


def test_a_last_save_that_storage_takes_its_time_for_is_no_hang_before_its_own_limit() -> None:
    """The limit of a save is 600 s here, that of ranks without progress 60 s."""
    player = training(total_steps=Step(10), save_limit_us=600 * S)
    player.reach(10, phase="save")
    player.tell(SaveStaged(attempt=Attempt(1), write_id=player.save.write_id))
    player.rest(590 * S)
    assert player.obs.incident is None
    player.rest(10 * S)
    assert "no commit within 600 s" in player.one(Abort).reason
    assert player.one(Save).is_last
    player.rest(59 * S)
    assert player.obs.incident is None
    player.commit()
    player.tell(GangFinished(attempt=Attempt(1)))
    assert player.one(Close).outcome == "succeeded"


def test_ranks_that_do_not_stage_a_last_save_hang_as_in_any_phase() -> None:
    player = training(total_steps=Step(10), save_limit_us=600 * S)
    player.reach(10, phase="save")
    player.rest(60 * S)
    assert player.one(Start).dump_stacks


def test_a_last_save_lost_after_the_workers_ended_is_made_again() -> None:
    player = training(total_steps=Step(10))
    write_id = player.save.write_id
    player.reach(10)
    player.tell(SaveStaged(attempt=Attempt(1), write_id=write_id))
    player.tell(GangFinished(attempt=Attempt(1)))
    player.lose("b")
    assert player.one(Abort).write_id == write_id
    assert player.one(Start).fence.attempt == 2


def test_steps_that_are_committed_are_skipped_when_they_are_passed_again() -> None:
    player = training()
    write_id = player.save.write_id
    player.reach(12)
    player.tell(SaveStaged(attempt=Attempt(1), write_id=write_id))
    player.fail(signal=9)
    player.train()
    player.tell(Committed(commit=ref(10, write_id)))
    assert player.one(Save).step == 20


def test_a_commit_of_a_save_that_was_given_up_still_counts() -> None:
    player = training()
    write_id = player.save.write_id
    player.reach(10)
    player.tell(SaveFailed(write_id=write_id, reason="ambiguous answer"))
    player.tell(Committed(commit=ref(10, write_id)))
    assert player.obs.newest_commit == ref(10, write_id)
    assert (player.save.step, player.save.write_id) == (20, "a1-2")


def test_a_save_of_a_step_that_others_are_beyond_does_not_set_them_back() -> None:
    player = training()
    player.reach(12)
    player.tell(SaveStaged(attempt=Attempt(1), write_id=player.save.write_id))
    assert player.obs.progress is not None
    assert player.obs.progress.furthest_step == 12


def test_a_save_that_failed_is_told_with_its_own_reason_whatever_comes_next() -> None:
    player = training()
    player.tell(
        SaveFailed(write_id=player.save.write_id, reason="disk full"),
        NodeLost(node=NodeId("a"), incarnation=1, reason="socket closed"),
    )
    assert player.one(Abort).reason == "disk full"
