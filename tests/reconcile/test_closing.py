"""Wishes and terms: suspend, stop, resume, and a coordinator that is lost."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from behemoth.base.ids import Attempt, Epoch
from behemoth.state.config import Cadence, WorkPhase
from behemoth.state.effect import Abort, Close, Commit, Evict, Place, Provision, Replace, Save, Start, Stop
from behemoth.state.evidence import Asked, GangFinished, SaveFailed, SaveStaged, SaveWritten, TermBegan
from reconcile.player import FLOORS, Player, S, ref, training


@pytest.mark.parametrize(
    ("request_", "outcome", "reason"), [("suspend", "suspended", "Suspended"), ("stop", "cancelled", "Cancelled")]
)
def test_a_wish_saves_at_a_near_step_and_then_closes(request_: str, outcome: str, reason: str) -> None:
    player = training(total_steps=1_000, cadence=Cadence(steps=500))
    player.reach(1)
    player.reach(3)
    player.tell(Asked(request=request_))  # type: ignore[arg-type]
    assert player.one(Abort)
    save = player.one(Save)
    assert save.is_last
    assert 3 < save.step < 10
    player.commit()
    player.tell(GangFinished(attempt=Attempt(1)))
    assert player.one(Close).outcome == outcome
    assert player.phase == ("suspended", reason)


def saved_the_end() -> Player:
    """All steps are committed, and the workers still live. Floors: 60 s for a save, 600 s for an evaluation."""
    player = training(total_steps=10, hang_floors=replace(FLOORS, eval_us=600 * S))
    player.commit()
    assert not player.has(Close)
    return player


def test_work_after_the_last_step_is_judged_by_the_phase_that_it_declares() -> None:
    player = saved_the_end()
    player.rest(50 * S)
    player.reach(10, phase="eval")
    player.rest(590 * S)
    assert not player.has(Close)
    player.reach(10, phase="eval")
    player.rest(590 * S)
    assert not player.has(Close)
    player.reach(10, phase="step")
    player.rest(50 * S)
    assert not player.has(Close)
    player.tell(GangFinished(attempt=Attempt(1)))
    assert player.one(Close).reason == "all 10 steps are done and committed"
    assert not player.has(Stop)


@pytest.mark.parametrize(("phase", "limit_s"), [("save", 60), ("step", 60), ("eval", 600)])
def test_workers_that_do_not_end_are_ended_and_the_run_says_so(phase: WorkPhase, limit_s: int) -> None:
    player = saved_the_end()
    player.reach(10, phase=phase)
    player.rest((limit_s - 1) * S)
    assert not player.has(Close)
    player.rest(S)
    cut = f"what the workers still did after step 10 was cut off: no sign of an end for {limit_s} s in phase {phase}"
    assert player.one(Close).outcome == "succeeded"
    assert player.one(Close).reason == f"all 10 steps are done and committed, but {cut}"
    assert player.one(Stop).reason == player.one(Close).reason
    assert player.one(Stop).dump_stacks


def test_workers_that_are_ended_because_one_of_them_failed_after_the_last_step_are_told_with_that() -> None:
    player = saved_the_end()
    player.fail(exit_code=1, lines="ValueError: no test set")
    assert player.one(Close).outcome == "succeeded"
    assert "was cut off: rank 0" in player.one(Close).reason
    assert "no test set" in player.one(Close).reason


def test_a_suspended_run_gives_its_workers_the_time_of_the_phase_that_they_declare() -> None:
    player = training()
    player.tell(Asked(request="suspend"))
    player.commit()
    player.reach(player.obs.commits[-1].step, phase="eval")
    player.rest(59 * S)
    assert not player.has(Close)
    player.rest(S)
    assert player.one(Close).outcome == "suspended"
    assert "in phase eval" in player.one(Close).reason


def test_workers_that_evaluate_outlive_a_coordinator() -> None:
    player = training(total_steps=10, rejoin_us=60 * S)
    player.commit()
    player.reach(10, phase="eval")
    player.begin(*player.obs.commits, epoch=2)
    assert not player.has(Close)
    player.join("abc", attempt=1)
    player.rest(50 * S)
    assert not player.has(Close)
    player.tell(GangFinished(attempt=Attempt(1)))
    assert player.one(Close).reason == "all 10 steps are done and committed"


def test_workers_that_evaluate_are_not_given_up_as_long_as_agents_may_rejoin() -> None:
    player = training(total_steps=10, rejoin_us=600 * S)
    player.commit()
    player.begin(*player.obs.commits, epoch=2)
    player.rest(500 * S)
    assert not player.has(Close)
    player.join("abc", attempt=1)
    assert not player.has(Close)
    player.rest(60 * S)
    assert player.one(Close).outcome == "succeeded"


def test_a_wish_without_a_training_gang_closes_directly() -> None:
    player = Player()
    player.begin()
    player.join("abc")
    player.tell(Asked(request="suspend"))
    assert [type(effect) for effect in player.effects] == [Stop, Close]
    assert player.one(Close).reason == "as asked, with nothing to save; no step is committed"
    later = Player()
    later.begin(ref(10, "a1-1"))
    later.join("abc")
    later.tell(Asked(request="suspend"))
    assert later.one(Close).reason == "as asked, with nothing to save; step 10 is the newest checkpoint"


def test_a_wish_is_granted_once_every_agent_has_been_heard_of() -> None:
    player = training(rejoin_us=60 * S)
    player.fail(signal=9)
    player.begin(epoch=2)
    player.tell(Asked(request="suspend"))
    assert not player.has(Close)
    player.join("ab", attempt=2)
    assert not player.has(Close)
    player.join("c", attempt=2)
    assert player.one(Close).outcome == "suspended"


def test_failures_of_the_last_save_before_a_wish_do_not_count_against_the_wish() -> None:
    player = training(total_steps=10)
    player.reach(10)
    for _ in range(2):
        player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
    player.tell(Asked(request="suspend"))
    for _ in range(2):
        player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
        assert not player.has(Close)
    player.tell(Asked(request="suspend"))
    player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
    assert player.one(Close).outcome == "suspended"


def test_a_wish_whose_save_fails_three_times_is_granted_without_it() -> None:
    player = training()
    player.tell(Asked(request="suspend"))
    for _ in range(3):
        player.reach(player.save.step)
        player.tell(SaveFailed(write_id=player.save.write_id, reason="disk full"))
    assert player.one(Close).outcome == "suspended"
    assert "disk full" in player.one(Close).reason


def test_a_wish_taken_back_in_time_changes_nothing() -> None:
    player = training()
    player.tell(Asked(request="suspend"))
    player.tell(Asked(request="resume"))
    assert player.one(Abort)
    assert not player.one(Save).is_last


def test_a_wish_taken_back_after_its_save_starts_the_workers_again_once_they_have_ended() -> None:
    player = training()
    player.tell(Asked(request="suspend"))
    player.commit()
    player.tell(Asked(request="resume"))
    assert player.effects == ()
    player.tell(GangFinished(attempt=Attempt(1)))
    step = player.obs.commits[-1].step
    assert player.one(Start).reason == f"ended at step {step} as asked, and was resumed; from step {step}"


@pytest.mark.parametrize("how", ["resume", "term"])
def test_a_suspended_run_goes_on_from_its_newest_commit(how: str) -> None:
    player = training()
    player.commit()
    player.tell(Asked(request="suspend"))
    player.commit()
    player.tell(GangFinished(attempt=Attempt(1)))
    step = player.obs.commits[-1].step
    if how == "resume":
        player.tell(Asked(request="resume"))
    else:
        player.begin(*player.obs.commits, epoch=2)
    provisioned = [effect.incarnation for effect in player.effects if isinstance(effect, Provision)]
    if how == "resume":
        assert provisioned == [2, 2, 2]
    player.join("abc", incarnation=2)
    assert player.one(Place).holders == ("a", "b", "c")[:2]
    start = player.one(Start)
    assert start.fence.attempt == 2
    assert start.restore is not None
    assert start.restore.step == step


def test_a_succeeded_run_stays_closed_and_a_failed_one_may_be_tried_again() -> None:
    player = training(max_failures=1)
    player.fail(signal=9)
    assert player.one(Close).outcome == "failed"
    player.tell(TermBegan(epoch=Epoch(2)))
    assert player.has(Provision)
    done = Player()
    done.begin(ref(100, "a1-1"))
    done.tell(TermBegan(epoch=Epoch(2)))
    assert done.effects == ()
    assert done.phase[0] == "succeeded"


def test_a_succeeded_run_goes_on_where_its_store_has_lost_the_last_step() -> None:
    done = Player()
    done.begin(ref(60, "a1-1"), ref(100, "a1-2"))
    assert done.one(Close).outcome == "succeeded"
    done.begin(ref(60, "a1-1"), epoch=2)
    assert done.has(Provision)
    done.join("abc")
    restored = done.one(Start).restore
    assert restored is not None
    assert restored.step == 60
    done.train(60)
    assert done.phase == ("training", "Recomputing")


def test_a_succeeded_run_whose_checkpoints_are_all_unusable_does_not_begin_anew() -> None:
    done = Player()
    done.begin(ref(60, "a1-1"), ref(100, "a1-2"))
    done.begin(epoch=2)
    assert not done.has(Provision)
    assert done.phase[0] == "succeeded"


def test_agents_that_rejoin_with_their_workers_train_on_without_a_restart() -> None:
    player = training(rejoin_us=60 * S)
    player.reach(5)
    player.begin(epoch=2)
    assert player.phase == ("training", "Rejoining")
    player.join("abc", attempt=1)
    assert player.obs.attempt == 1
    assert player.phase == ("training", "Training")
    player.reach(6)
    assert not player.has(Start)


def test_agents_that_do_not_rejoin_in_time_are_lost() -> None:
    player = training(rejoin_us=60 * S)
    player.begin(epoch=2)
    player.join("ac", attempt=1)
    player.rest(60 * S)
    assert player.one(Evict).node == "b"
    assert player.one(Replace).spare == "c"
    assert player.one(Start).fence.attempt == 2
    assert player.obs.tally.num_any == 0


def test_an_agent_that_rejoins_without_its_workers_needs_a_restart() -> None:
    player = training(rejoin_us=60 * S)
    player.begin(epoch=2)
    player.join("ab", attempt=1)
    player.join("c", attempt=0)
    assert not player.has(Start)
    other = training(rejoin_us=60 * S)
    other.begin(epoch=2)
    other.join("bc", attempt=1)
    other.join("a", attempt=0)
    assert other.one(Start).fence.attempt == 2


def test_a_restart_waits_until_every_agent_has_been_heard_of() -> None:
    player = training(rejoin_us=60 * S)
    player.begin(epoch=2)
    player.join("a", attempt=0)
    assert player.obs.incident is not None
    assert not player.has(Start)
    player.join("bc", attempt=1)
    assert player.one(Start).fence.attempt == 2


def test_without_time_to_rejoin_everything_is_ordered_anew_at_once() -> None:
    player = training()
    player.commit()
    player.tell(TermBegan(epoch=Epoch(2)))
    assert len([effect for effect in player.effects if isinstance(effect, Provision)]) == 3
    player.begin(ref(10, "a1-1"), epoch=3)
    for name in "cab":
        player.join(name, incarnation=3)
    assert player.obs.attempt == 2
    assert dict(player.obs.holders) == {0: "a", 1: "c"}


def test_nodes_that_are_all_ordered_anew_are_waited_for_as_long_as_a_start_may_take() -> None:
    player = training(node_wait_us=0)
    player.begin(epoch=2)
    player.rest(50 * S)
    assert not player.has(Close)
    player.join("abc", incarnation=2)
    assert player.one(Start).fence.attempt == 2


def test_nodes_that_come_back_after_all_were_lost_keep_their_slots_whoever_comes_first() -> None:
    player = training()
    player.commit()
    player.begin(ref(10, "a1-1"), epoch=2)
    for name in "cba":
        player.join(name, incarnation=2)
    assert dict(player.obs.holders) == {0: "c", 1: "b"}  # nobody waited for a
    player.begin(ref(10, "a1-1"), epoch=3)
    for name in "bac":
        player.join(name, incarnation=3)
    assert dict(player.obs.holders) == {0: "a", 1: "b"}
    player.begin(ref(10, "a1-1"), epoch=4)
    player.join("abc", incarnation=4)
    assert dict(player.obs.holders) == {0: "a", 1: "b"}


def test_a_commit_in_flight_is_asked_for_again_by_the_next_term() -> None:
    player = training()
    player.tell(SaveWritten(attempt=Attempt(1), write_id=player.save.write_id))
    player.tell(TermBegan(epoch=Epoch(2)))
    assert player.one(Commit).fence.epoch == 2


def test_workers_that_ended_before_their_last_save_was_committed_are_started_again_by_the_next_term() -> None:
    player = training(total_steps=10, rejoin_us=60 * S)
    player.reach(10)
    player.tell(SaveStaged(attempt=Attempt(1), write_id=player.save.write_id))
    player.tell(GangFinished(attempt=Attempt(1)))
    player.begin(epoch=2)
    player.join("abc", attempt=1)
    assert player.one(Start).reason == "the coordinator was lost after the workers ended; from the beginning"


def test_an_older_term_is_not_heard() -> None:
    player = training()
    before = player.obs
    player.tell(TermBegan(epoch=Epoch(1)), after_us=0)
    assert player.obs == before
