"""Whom the end of an attempt is blamed on: nodes whose workers fail again, and programs that get no further."""

from __future__ import annotations

from behemoth.base.ids import Attempt, NodeId, Slot
from behemoth.reconcile.incidents import open_incident, plain_incident
from behemoth.state.effect import Close, Evict, Replace, Start
from behemoth.state.evidence import GangFinished, NodeJoined
from reconcile.player import Player, S, training


def test_a_node_whose_workers_fail_twice_makes_room_for_a_spare() -> None:
    player = training()
    player.fail("a", signal=9)
    assert not player.has(Replace)
    player.train()
    player.reach(3)
    player.fail("a", signal=11)
    replaced = player.one(Replace)
    assert (replaced.node, replaced.spare) == ("a", "c")
    assert not player.has(Evict)


def test_two_strikes_more_than_a_week_apart_leave_the_node_in_place() -> None:
    player = training()
    player.fail("a", signal=9)
    player.train()
    player.reach(3, promise_us=player.now_us + 8 * 86_400 * S)
    player.rest(8 * 86_400 * S)
    player.fail("a", signal=9)
    assert player.one(Start)
    assert not player.has(Replace)


def test_without_a_spare_a_struck_out_node_stays() -> None:
    player = training(nodes=("a", "b"))
    for step in (3, 5):
        player.fail("a", signal=9)
        player.train()
        player.reach(step)
    player.fail("a", signal=9)
    assert player.one(Start).fence.attempt == 4
    assert not player.has(Replace)


def test_a_struck_out_node_does_not_make_room_for_a_spare_that_is_struck_out_as_well() -> None:
    player = training()
    for node in "aacc":
        player.fail(node, signal=9)
        player.train()
        player.reach(player.obs.best_step + 1)
    assert dict(player.obs.holders) == {0: "c", 1: "b"}


def test_the_same_stack_on_two_nodes_is_the_programs_fault() -> None:
    player = training(settle_us=0)
    for step, node in ((3, "a"), (5, "b"), (7, "a")):
        player.fail(node, exit_code=1, lines="Traceback\nValueError: bad batch\n")
        assert not player.has(Replace)
        player.train()
        player.reach(step)
    assert player.obs.nodes[NodeId("b")].strikes_micro == 0


def test_three_failures_without_progress_end_the_run_with_the_reason() -> None:
    player = training(settle_us=0)
    player.reach(4)
    for _ in range(2):
        player.fail("b", rank=1, exit_code=3, lines="ValueError: no such file")
        player.train()
        player.reach(4)
    player.fail("a", rank=1, exit_code=3, lines="ValueError: no such file")
    close = player.one(Close)
    assert close.outcome == "failed"
    assert "rank 1 on node a ended with exit code 3: ValueError: no such file" in close.reason
    assert player.phase == ("failed", "Failed")


def test_failures_with_progress_between_them_never_end_the_run() -> None:
    player = training()
    for step in range(1, 9):
        player.reach(step)
        player.fail(player.obs.holders[Slot(step % 2)], signal=6, lines=f"{step}")
        assert player.one(Start)
        player.train()


def test_lost_nodes_never_count_as_failures_of_the_program() -> None:
    player = training()
    for _ in range(6):
        player.lose(player.obs.holders[Slot(0)])
        assert player.one(Start)
        lost = next(name for name, node in player.obs.nodes.items() if node.state == "coming")
        player.tell(NodeJoined(node=lost, incarnation=player.obs.nodes[lost].incarnation, attempt=Attempt(0)))
    assert player.obs.tally.num_any == 0


def test_independent_failures_before_the_lost_steps_are_regained_are_not_one_failure() -> None:
    player = training()
    for rank, step in enumerate((8, 6, 4, 2)):
        player.reach(step)
        player.fail(player.obs.holders[Slot(rank % 2)], rank=rank, signal=9)
        assert player.has(Start)
        player.train()
    assert (player.obs.tally.num_same, player.obs.tally.num_any) == (1, 4)


def test_even_different_failures_end_a_run_that_never_gets_further() -> None:
    player = training()
    for rank in range(9):
        assert not player.has(Close)
        player.reach(20 - rank)
        player.fail(player.obs.holders[Slot(rank % 2)], rank=rank, signal=9)
        player.train()
    assert player.phase[0] == "failed"


def test_a_program_that_completes_no_step_fails_the_same_way_whichever_rank_dies() -> None:
    player = training()
    player.reach(8)
    for rank in range(3):
        assert not player.has(Close)
        player.train()
        player.fail(player.obs.holders[Slot(rank % 2)], rank=rank, signal=9)
    assert "3 failures without progress beyond step 8" in player.one(Close).reason


def test_of_two_explanations_that_are_as_good_the_first_one_told_stays() -> None:
    player = training(settle_us=2 * S)
    player.fail("a", exit_code=1, lines="ValueError: bad batch")
    player.fail("b", rank=2, exit_code=1, lines="RuntimeError: connection reset by peer")
    player.rest(2 * S)
    assert "bad batch" in player.one(Start).reason


def test_a_silent_node_is_missed_since_its_last_sign_of_life() -> None:
    player = training(nodes=("a", "b"))
    since_us = player.now_us
    player.rest(S, late="b", since_us=since_us)
    player.rest(2 * S, late="b", since_us=since_us)
    assert player.obs.incident is not None
    assert (player.obs.incident.node, player.obs.incident.at_us) == ("b", since_us)


def test_nothing_ends_an_attempt_that_is_not_under_way_nor_hangs_in_one_that_is_over() -> None:
    waiting = Player()
    waiting.begin()
    assert open_incident(waiting.obs, plain_incident(waiting.obs, "node", "lost")) == waiting.obs
    over = training(total_steps=10)
    over.reach(10)
    over.tell(GangFinished(attempt=Attempt(1)))
    assert over.obs.gang == "finished"
    assert open_incident(over.obs, plain_incident(over.obs, "hang", "no step")) == over.obs
