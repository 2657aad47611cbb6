"""What each fault leads to: restart in place, a spare, a wait, or the end with the reason."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from behemoth.base.ids import Attempt, NodeId, Step, WriteId
from behemoth.state.effect import Abort, Close, Commit, Evict, Provision, Reject, Replace, Start, Stop
from behemoth.state.evidence import (
    GangFinished,
    GangGone,
    GangMismatched,
    GangRestored,
    GangUp,
    Late,
    NodeJoined,
    NodeLost,
    RestoreFailed,
    SaveArmed,
    SaveStaged,
    SaveWritten,
    Tick,
)
from reconcile.player import Player, S, ref, training


def test_a_killed_worker_restarts_the_gang_in_place_at_once_from_the_newest_commit() -> None:
    player = training()
    player.commit()
    player.fail(signal=9)
    start = player.one(Start)
    assert (start.fence.attempt, start.restore) == (2, ref(10, "a1-1"))
    assert not player.has(Replace)
    assert player.phase == ("starting", "Restarting")


def test_a_plain_exit_waits_for_a_better_explanation() -> None:
    player = training()
    player.fail("a", exit_code=1, lines="RuntimeError: connection reset by peer")
    assert not player.has(Start)
    assert player.phase == ("recovering", "WorkerFailed")
    player.lose("b")
    assert player.one(Replace).spare == "c"
    assert player.obs.tally.num_any == 0


def test_a_plain_exit_that_nothing_explains_is_acted_on_when_it_has_settled() -> None:
    player = training()
    player.fail(exit_code=1)
    assert player.decision is not None
    assert player.decision.wake_at_us == player.now_us + S // 2
    player.rest(S // 2)
    assert player.one(Start).fence.attempt == 2
    assert player.obs.tally.num_any == 1


def test_a_plain_exit_waits_while_a_holder_is_late() -> None:
    player = training()
    silent_us = player.now_us
    player.fail("a", exit_code=1)
    player.rest(S, late="b", since_us=silent_us)
    assert not player.has(Start)
    player.rest(S // 2, late="b", since_us=silent_us)
    assert player.one(Evict).node == "b"
    assert player.one(Start).fence.attempt == 2
    assert player.obs.tally.num_any == 0


def test_sympathetic_failures_count_once() -> None:
    player = training()
    player.fail("a", exit_code=1)
    player.fail("b", rank=2, exit_code=1)
    player.rest(S)
    player.fail("b", rank=3, exit_code=1, attempt=1)
    player.tell(GangUp(attempt=Attempt(1)))
    assert player.obs.attempt == 2
    assert player.obs.tally.num_any == 1


def test_a_lost_holder_is_evicted_replaced_and_ordered_again() -> None:
    player = training()
    player.lose("b")
    kinds = [type(effect) for effect in player.effects]
    assert kinds == [Evict, Abort, Provision, Replace, Start]
    assert player.one(Provision).incarnation == 2
    assert player.one(Replace).slot == 1
    player.tell(NodeJoined(node=NodeId("b"), incarnation=2, attempt=Attempt(0)))
    assert set(player.obs.spares) == {"b"}


def test_a_silent_holder_is_evicted_when_its_limit_is_over() -> None:
    player = training()
    since_us = player.now_us
    player.rest(S, late="a", since_us=since_us)
    assert player.decision is not None
    assert player.decision.wake_at_us == since_us + 2_500_000
    player.rest(1_500_000, late="a", since_us=since_us)
    assert player.one(Evict).node == "a"
    assert player.one(Replace).spare == "c"


def test_a_node_that_beats_again_is_forgiven() -> None:
    player = training()
    player.rest(S, late="a", since_us=player.now_us)
    player.rest(S)
    player.rest(3 * S)
    assert player.effects == ()


def test_nodes_lost_together_are_replaced_by_one_start() -> None:
    player = training(nodes=("a", "b", "c", "d"))
    player.lose("a", "b")
    replaced = {effect.node: effect.spare for effect in player.effects if isinstance(effect, Replace)}
    assert replaced == {"a": "c", "b": "d"}
    assert player.one(Start).fence.attempt == 2


def test_a_node_that_comes_back_as_another_agent_has_lost_its_workers() -> None:
    player = training()
    player.join("b", incarnation=2)
    assert player.one(Start).reason == "node b came back as another agent; from the beginning"
    assert not player.has(Replace)
    assert not player.has(Evict)


def test_a_spare_that_was_lost_and_came_back_goes_in_after_one_that_was_not() -> None:
    player = training(nodes=("a", "b", "c", "d"))
    player.lose("c")
    player.join("c", incarnation=2)
    player.lose("a")
    assert player.one(Replace).spare == "d"


def test_the_silence_of_nodes_that_are_not_there_is_no_news() -> None:
    player = training()
    player.lose("c")
    player.rest(S, late="cx", since_us=player.now_us)
    player.rest(3 * S, late="cx", since_us=player.now_us)
    assert player.effects == ()


def test_a_lost_spare_changes_the_spares_only() -> None:
    player = training()
    player.lose("c")
    assert [type(effect) for effect in player.effects] == [Evict, Provision]
    assert player.phase[0] == "training"


def test_without_a_spare_the_gang_waits_for_the_node_to_return() -> None:
    player = training(nodes=("a", "b"))
    player.lose("b")
    assert not player.has(Start)
    assert player.phase == ("recovering", "WaitingForNode")
    player.tell(NodeJoined(node=NodeId("b"), incarnation=2, attempt=Attempt(0)))
    assert not player.has(Replace)
    assert player.one(Start).fence.attempt == 2


def test_a_node_that_does_not_return_in_time_ends_the_run() -> None:
    player = training(nodes=("a", "b"))
    player.lose("b")
    player.rest(600 * S)
    assert player.has(Stop)
    assert player.one(Close).outcome == "failed"
    assert player.one(Close).reason == "waited 600 s for nodes: 1 missing, 0 there"


def test_an_agent_that_was_given_up_is_never_listened_to_again() -> None:
    player = training(nodes=("a", "b"))
    player.lose("b")
    player.tell(NodeJoined(node=NodeId("b"), incarnation=1, attempt=Attempt(1)))
    assert player.effects == ()
    assert player.phase == ("recovering", "WaitingForNode")


def test_a_holder_lost_during_the_recovery_leads_to_one_more_start() -> None:
    player = training(nodes=("a", "b", "c", "d"))
    player.lose("a")
    player.lose("c")
    assert (player.one(Replace).node, player.one(Replace).spare) == ("c", "d")
    assert player.one(Start).fence.attempt == 3


@pytest.mark.parametrize(
    ("up", "limit_us", "phase"), [(False, 60 * S, "starting"), (True, 60 * S, "restoring")], ids=["start", "restore"]
)
def test_a_gang_that_does_not_come_up_is_a_hang(up: bool, limit_us: int, phase: str) -> None:
    player = Player()
    player.begin()
    player.join("abc")
    if up:
        player.tell(GangUp(attempt=Attempt(1)))
    assert player.decision is not None
    assert player.decision.wake_at_us == player.now_us + limit_us
    player.rest(limit_us)
    assert player.one(Start).dump_stacks
    assert phase in player.one(Start).reason


def test_no_step_within_the_limit_is_a_hang() -> None:
    player = training()
    player.reach(1)
    player.reach(2)
    player.rest(10 * S - 1)
    assert player.effects == ()
    player.rest(1)
    assert player.one(Start).dump_stacks
    assert player.obs.tally.num_any == 1


def test_a_clock_that_runs_ahead_does_not_put_a_hang_off() -> None:
    player = training()
    player.reach(5)
    told = player.obs.progress
    assert told is not None
    ahead_us = player.now_us + 3_600 * S
    player.tell(
        Tick(progress=replace(told, step=Step(6), furthest_step=Step(6), at_us=ahead_us, phase_since_us=ahead_us))
    )
    player.rest(10 * S)
    assert player.one(Start).dump_stacks


def test_a_promised_report_puts_the_limit_off() -> None:
    player = training()
    player.reach(1, promise_us=player.now_us + 1_000 * S)
    player.rest(1_000 * S)
    assert player.effects == ()
    player.rest(10 * S)
    assert player.has(Start)


def test_three_times_the_slow_steps_seen_outweigh_the_floor() -> None:
    player = training()
    for step in range(1, 10):
        player.reach(step, after_us=5 * S)
    slow = player.obs.step_times.with_sample(8 * S)
    assert slow.p99_us >= 8 * S
    player.rest(10 * S)
    assert player.has(Start)


def test_workers_that_vanish_without_a_word_are_a_failure() -> None:
    player = training()
    player.tell(GangGone(attempt=Attempt(1)))
    assert not player.has(Start)
    player.rest(S)
    assert player.has(Start)
    assert player.obs.tally.num_any == 1


def test_a_program_that_ends_early_is_a_failure() -> None:
    player = training()
    player.reach(5)
    player.tell(GangFinished(attempt=Attempt(1)))
    assert "ended at step 5 of 100" in player.one(Start).reason
    assert player.obs.tally.num_any == 1


def test_a_program_that_ends_before_it_was_restored_is_a_failure() -> None:
    player = Player()
    player.begin()
    player.join("abc")
    player.tell(GangFinished(attempt=Attempt(1)))
    assert "ended at step 0 of 100" in player.one(Start).reason


def test_a_gang_that_has_lost_a_worker_is_not_restored_any_more() -> None:
    player = Player()
    player.begin()
    player.join("abc")
    player.tell(GangUp(attempt=Attempt(1)))
    player.fail(exit_code=1)
    player.tell(GangRestored(attempt=Attempt(1), step=Step(0), num_from_memory=0), after_us=S // 4)
    assert player.obs.gang == "restoring"


def test_a_corrupt_commit_is_rejected_and_an_older_one_restored() -> None:
    player = Player()
    player.begin(ref(10, "a1-1"), ref(20, "a1-2"))
    player.join("abc")
    bad = RestoreFailed(attempt=Attempt(1), node=NodeId("a"), write_id=WriteId("a1-2"), reason="crc", is_corrupt=True)
    player.tell(bad)
    assert player.one(Reject).commit == ref(20, "a1-2")
    assert player.one(Start).restore == ref(10, "a1-1")
    assert "step 20 did not restore" in player.one(Start).reason
    assert player.obs.tally.num_any == 0
    player.tell(bad)
    assert player.effects == ()


def test_a_failed_restore_counts_only_of_what_is_being_restored() -> None:
    player = Player()
    player.begin(ref(10, "a1-1"))
    player.join("abc")
    assert player.obs.restore == ref(10, "a1-1")
    player.tell(failed_restore("a1-2"))
    assert player.effects == ()
    player.train(10)
    player.tell(failed_restore("a1-1"))
    assert player.obs.incident is None
    fresh = Player()
    fresh.begin()
    fresh.join("abc")
    fresh.tell(failed_restore("a1-1"))
    assert fresh.obs.incident is None


def failed_restore(write_id: str) -> RestoreFailed:
    return RestoreFailed(
        attempt=Attempt(1), node=NodeId("a"), write_id=WriteId(write_id), reason="crc", is_corrupt=True
    )


def test_when_no_commit_is_left_the_run_begins_anew_and_that_counts() -> None:
    player = Player()
    player.begin(ref(10, "a1-1"))
    player.join("abc")
    player.tell(
        RestoreFailed(attempt=Attempt(1), node=NodeId("a"), write_id=WriteId("a1-1"), reason="crc", is_corrupt=True)
    )
    assert player.one(Start).restore is None
    assert player.obs.tally.num_any == 1


def test_a_store_that_does_not_answer_is_tried_again_and_counts() -> None:
    player = Player()
    player.begin(ref(10, "a1-1"))
    player.join("abc")
    for attempt in (1, 2, 3):
        player.tell(
            RestoreFailed(
                attempt=Attempt(attempt), node=NodeId("a"), write_id=WriteId("a1-1"), reason="io", is_corrupt=False
            )
        )
    assert "3 failures without progress" in player.one(Close).reason


def test_a_staged_save_outlives_a_killed_worker_and_commits() -> None:
    player = training()
    save = player.save
    player.tell(SaveArmed(attempt=Attempt(1), write_id=save.write_id))
    player.tell(SaveStaged(attempt=Attempt(1), write_id=save.write_id))
    player.fail(signal=9)
    assert player.one(Start).restore is None
    assert not player.has(Abort)
    player.tell(SaveWritten(attempt=Attempt(1), write_id=save.write_id))
    assert player.one(Commit).write_id == save.write_id


def test_a_staged_save_dies_with_a_node_and_a_written_one_does_not() -> None:
    for is_written in (False, True):
        player = training()
        write_id = player.save.write_id
        player.tell(SaveStaged(attempt=Attempt(1), write_id=write_id))
        if is_written:
            player.tell(SaveWritten(attempt=Attempt(1), write_id=write_id))
        player.lose("b")
        assert player.has(Abort) is not is_written


def test_a_node_lost_twice_in_the_evidence_is_lost_once() -> None:
    player = training()
    lost = NodeLost(node=NodeId("b"), incarnation=1, reason="x")
    player.tell(lost)
    player.tell(lost)
    assert player.effects == ()
    assert player.obs.attempt == 2


def test_steps_speak_for_a_gang_whose_restore_was_not_told() -> None:
    player = training()
    player.fail(signal=9)
    player.reach(2)
    assert player.phase[0] == "training"
    assert player.obs.best_step == 2
    player.tell(GangUp(attempt=Attempt(2)))
    assert player.phase[0] == "training"


def test_an_ordered_agent_that_never_joins_is_ended_and_ordered_again() -> None:
    player = Player()
    player.begin()
    player.join("a")
    assert player.decision is not None
    assert player.decision.wake_at_us == player.now_us - S + 60 * S
    player.rest(59 * S)
    assert [(effect.node, effect.incarnation) for effect in player.effects if isinstance(effect, Evict)] == [
        ("b", 1),
        ("c", 1),
    ]
    player.rest(S)
    assert [(effect.node, effect.incarnation) for effect in player.effects if isinstance(effect, Provision)] == [
        ("b", 2),
        ("c", 2),
    ]


def test_the_stacks_of_a_hang_that_ends_the_run_are_wanted_too() -> None:
    player = training(max_failures=1)
    player.rest(60 * S)
    assert player.has(Close)
    assert player.one(Stop).dump_stacks


def test_silence_while_the_coordinator_itself_was_away_is_neither_a_lost_node_nor_a_hang() -> None:
    player = training(nodes=("a", "b"))
    heard_us = player.now_us
    away_us = player.obs.config.hang_floors.step_us + player.obs.config.heartbeat_limit_us + 60 * S
    late = tuple(Late(node=NodeId(name), since_us=heard_us) for name in "ab")
    effects = player.tell(Tick(late=late, awake_us=heard_us + away_us), after_us=away_us)
    assert not [effect for effect in effects if isinstance(effect, Evict | Start)]
    assert player.obs.incident is None
    effects = player.tell(Tick(late=late), after_us=player.obs.config.heartbeat_limit_us)
    assert {effect.node for effect in effects if isinstance(effect, Evict)} == {"a", "b"}


@pytest.mark.parametrize("is_new", [True, False])
def test_a_program_that_no_attempt_can_restore_ends_the_run_at_once(is_new: bool) -> None:
    player = Player()
    player.begin(*(() if is_new else (ref(10, "a0-1"),)))
    player.join("ab")
    player.tell(GangUp(attempt=Attempt(1)))
    told = (
        GangMismatched(attempt=Attempt(1), node=NodeId("b"), reason="other arrays")
        if is_new
        else RestoreFailed(
            attempt=Attempt(1),
            node=NodeId("b"),
            write_id=WriteId("a0-1"),
            reason="other arrays",
            is_corrupt=False,
            is_unfit=True,
        )
    )
    effects = player.tell(told)
    (close,) = (effect for effect in effects if isinstance(effect, Close))
    assert close.outcome == "failed"
    assert "other arrays" in close.reason
    assert not [effect for effect in effects if isinstance(effect, Start)]


def test_an_evaluation_that_began_before_the_last_rank_finished_its_step_is_heard_of() -> None:
    """The step was told with the phase of the rank that finished it last; the floors are 10 and 60 s."""
    player = training()
    player.reach(5)
    told = player.obs.progress
    assert told is not None
    evaluating = replace(told, at_us=told.at_us + S, phase="eval", phase_since_us=told.phase_since_us - S // 10)
    player.tell(Tick(progress=evaluating))
    player.rest(50 * S)
    assert not player.has(Start)
    player.rest(10 * S)
    assert "(eval)" in player.one(Start).reason
