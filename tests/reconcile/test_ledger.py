"""Every microsecond of every rank, by what it went into. `Player` checks after each turn that the sum is exact."""

from __future__ import annotations

import pytest

from behemoth.base.ids import Attempt, Epoch, NodeId, Step
from behemoth.reconcile import ledger as module
from behemoth.reconcile.ledger import Buckets, books
from behemoth.state.effect import Evict, Start
from behemoth.state.evidence import (
    Asked,
    CommitsFound,
    GangFinished,
    GangUp,
    NodeJoined,
    Progress,
    TermBegan,
    Tick,
)
from reconcile.player import Player, S, training

RANKS = 4


def _booked(player: Player) -> dict[str, float]:
    assert player.ledger is not None
    buckets = books(player.ledger, player.now_us)
    return {name: getattr(buckets, name) / RANKS / S for name in Buckets.__struct_fields__ if getattr(buckets, name)}


def test_before_the_first_gang_is_up_all_time_is_idle() -> None:
    player = training()
    assert _booked(player) == {"idle": 5.0, "restore": 1.0}


def test_steps_are_useful_and_what_saves_took_from_them_is_stall() -> None:
    player = training()
    player.reach(2, after_us=2 * S)
    player.reach(4, after_us=2 * S, stall_us=RANKS * S // 2)
    assert _booked(player) == {"idle": 5.0, "restore": 1.0, "useful": 3.5, "checkpoint_stall": 0.5}


def test_a_kill_costs_detection_restart_restore_and_the_steps_to_repeat() -> None:
    player = training()
    player.reach(6, after_us=6 * S)
    player.fail(signal=9)
    player.train()
    player.reach(3, after_us=3 * S)
    player.reach(9, after_us=6 * S)
    assert _booked(player) == {
        "idle": 5.0,
        "detect": 1.0,
        "restart": 1.0,
        "restore": 2.0,
        "useful": 9.0,
        "recomputed": 6.0,
    }
    assert player.ledger is not None
    (row,) = player.ledger.faults
    began_us = 13 * S
    assert (row.cause, row.node, row.rank) == ("signal", "a", 0)
    assert (row.at_us, row.detected_us, row.started_us) == (began_us, began_us + S, began_us + S)
    assert (row.restarted_us, row.restored_us) == (began_us + 2 * S, began_us + 3 * S)
    assert (row.first_step_us, row.regained_us) == (began_us + 6 * S, began_us + 9 * S)


def test_work_that_nobody_reported_before_the_fault_is_lost_and_not_detection() -> None:
    player = training()
    player.reach(6, after_us=6 * S)
    player.rest(2 * S)
    player.fail(signal=9, quiet_us=S // 4)
    player.train()
    booked = _booked(player)
    assert (booked["useful"], booked["recomputed"], booked["detect"]) == (6.0, 2.75, 0.25)
    assert player.ledger is not None
    (row,) = player.ledger.faults
    assert row.detected_us - row.at_us == S // 4


def test_waiting_for_a_node_is_idle_after_it_was_lost() -> None:
    player = training(nodes=("a", "b"))
    idle_s = _booked(player)["idle"]
    player.lose("b")
    player.rest(20 * S)
    player.tell(NodeJoined(node=NodeId("b"), incarnation=2, attempt=Attempt(0)))
    player.train()
    booked = _booked(player)
    assert "detect" not in booked
    assert booked["recomputed"] == 1.0
    assert booked["idle"] == idle_s + 21.0
    assert player.ledger is not None
    (row,) = player.ledger.faults
    assert (row.cause, row.started_us) == ("node", row.detected_us + 21 * S)


def test_a_fault_during_a_restart_is_a_row_of_its_own() -> None:
    player = training(nodes=("a", "b", "c", "d"))
    player.lose("a")
    player.lose("b")
    assert player.ledger is not None
    assert [row.node for row in player.ledger.faults] == ["a", "b"]
    assert player.ledger.faults[0].restarted_us is None


def test_the_wait_for_the_last_save_is_a_stall_and_a_closed_run_is_idle() -> None:
    player = training(total_steps=10)
    player.commit()
    player.tell(GangFinished(attempt=Attempt(1)))
    booked = _booked(player)
    assert booked["checkpoint_stall"] == 5.0
    player.rest(7 * S)
    assert _booked(player)["idle"] == booked["idle"] + 7.0


def test_the_time_between_two_terms_is_idle_and_what_was_not_reported_before_it_is_done_again() -> None:
    player = training()
    player.reach(6, after_us=6 * S)
    idle_s = _booked(player)["idle"]
    player.rest(2 * S)
    player.tell(TermBegan(epoch=Epoch(2)), after_us=100 * S)
    player.begin(epoch=2)
    for name in player.obs.config.nodes:
        player.tell(NodeJoined(node=name, incarnation=player.obs.nodes[name].incarnation, attempt=Attempt(0)))
    player.train()
    booked = _booked(player)
    assert booked["useful"] == 6.0
    assert booked["recomputed"] == 2.0
    assert booked["idle"] >= idle_s + 100.0
    assert booked.get("detect", 0.0) < 10.0


def test_what_is_not_reported_yet_counts_as_what_it_would_be_if_a_step_were_completed_now() -> None:
    player = training()
    player.rest(2 * S)
    assert _booked(player)["useful"] == 2.0
    player.reach(6)
    player.fail(signal=9)
    player.train()
    player.rest(2 * S)
    booked = _booked(player)
    assert (booked["useful"], booked["recomputed"]) == (3.0, 2.0)


def test_the_former_best_step_itself_is_regained() -> None:
    player = training()
    player.reach(6, after_us=6 * S)
    player.fail(signal=9)
    player.train()
    player.reach(3, after_us=3 * S)
    player.reach(5, after_us=2 * S)
    booked = _booked(player)
    assert (booked["useful"], booked["recomputed"]) == (6.0, 5.0)
    assert player.ledger is not None
    assert player.ledger.faults[-1].regained_us is None
    player.reach(6)
    assert player.ledger.faults[-1].regained_us == player.now_us


@pytest.mark.parametrize(("step", "is_regained"), [(5, False), (6, True), (8, True)])
def test_steps_that_are_told_before_the_word_of_the_restore_are_its_end(step: int, is_regained: bool) -> None:
    player = training()
    player.reach(6, after_us=6 * S)
    player.fail(signal=9)
    player.tell(GangUp(attempt=player.obs.attempt))
    player.reach(step, after_us=6 * S)
    assert _booked(player)["restore"] == 1.0 + 6.0
    assert player.ledger is not None
    (row,) = player.ledger.faults
    assert row.restored_us == row.first_step_us == player.now_us
    assert row.regained_us == (player.now_us if is_regained else None)


def test_from_a_fault_during_a_restore_on_it_is_detection_until_something_is_decided() -> None:
    player = training()
    player.reach(6, after_us=6 * S)
    player.fail(signal=9)
    player.tell(GangUp(attempt=player.obs.attempt))
    player.fail("b", rank=2, exit_code=1)
    assert player.effects == ()
    player.rest(2 * S)
    player.train()
    booked = _booked(player)
    assert (booked["detect"], booked["restart"], booked["restore"]) == (1.0 + 2.0, 1.0 + 1.0, 1.0 + 1.0 + 1.0)


def test_the_loss_of_a_spare_interrupts_neither_the_work_nor_the_detection_of_a_fault() -> None:
    player = training(settle_us=3 * S)
    player.reach(6, after_us=6 * S)
    player.lose("c")
    assert player.has(Evict)
    player.rest(3 * S)
    player.reach(12)
    booked = _booked(player)
    assert (booked["useful"], booked["idle"]) == (11.0, 5.0)
    player.tell(NodeJoined(node=NodeId("c"), incarnation=2, attempt=Attempt(0)))
    player.fail(exit_code=1)
    player.lose("c")
    assert player.has(Evict)
    assert not player.has(Start)
    player.rest(4 * S)
    assert player.has(Start)
    booked = _booked(player)
    assert (booked["detect"], booked["idle"]) == (1.0 + 1.0 + 1.0 + 4.0, 5.0)


def test_a_run_that_fails_has_a_row_and_lost_what_nobody_had_reported() -> None:
    player = training(max_failures=1)
    player.reach(6)
    player.rest(2 * S)
    player.fail(exit_code=1, quiet_us=S // 4)
    player.rest(2 * S)
    assert player.obs.outcome == "failed"
    booked = _booked(player)
    assert (booked["useful"], booked["recomputed"], booked["detect"]) == (1.0, 2.75, 2.25)
    assert "checkpoint_stall" not in booked
    assert player.ledger is not None
    (row,) = player.ledger.faults
    assert (row.cause, row.started_us, row.best_step) == ("exit", None, 6)


def test_a_run_that_is_stopped_while_a_fault_is_open_has_no_row() -> None:
    player = training()
    player.reach(6)
    player.fail(exit_code=1)
    player.tell(Asked(request="stop"))
    assert player.obs.outcome == "cancelled"
    assert player.ledger is not None
    assert player.ledger.faults == ()


def test_the_oldest_rows_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    player = training(nodes=("a", "b", "c", "d", "e"))
    for name in "abc":
        player.lose(name)
    assert player.ledger is not None
    assert [row.node for row in player.ledger.faults] == ["b", "c"]
    assert player.ledger.num_faults == 3


@pytest.mark.parametrize("quiet_s", [0, 2])
def test_the_time_between_two_terms_is_idle_when_an_agent_outlived_it_but_not_the_gang(quiet_s: int) -> None:
    """What comes between the begin of the term and the end of the wait for its agents changes nothing of that, nor
    does the term told twice."""
    player = training(rejoin_us=10 * S)
    player.reach(6, after_us=6 * S)
    if quiet_s:
        player.rest(quiet_s * S)
    booked = _booked(player)
    player.tell(TermBegan(epoch=Epoch(2)), CommitsFound(commits=()), after_us=100 * S)
    player.tell(TermBegan(epoch=Epoch(2)))
    player.tell(NodeJoined(node=NodeId("b"), incarnation=1, attempt=Attempt(1)))
    player.tell(NodeJoined(node=NodeId("c"), incarnation=1, attempt=Attempt(0)))
    player.rest(9 * S)
    assert player.has(Start)
    after = _booked(player)
    assert after["idle"] == booked["idle"] + 100.0
    assert after["useful"] == 6.0
    assert after["recomputed"] == quiet_s + 12.0


def test_a_gang_that_went_on_between_two_terms_was_not_idle() -> None:
    player = training(rejoin_us=10 * S)
    player.reach(6, after_us=6 * S)
    player.tell(TermBegan(epoch=Epoch(2)), CommitsFound(commits=()), after_us=100 * S)
    player.tell(NodeJoined(node=NodeId("b"), incarnation=1, attempt=Attempt(1)))
    player.reach(60)
    player.tell(NodeJoined(node=NodeId("c"), incarnation=1, attempt=Attempt(0)))
    player.rest(9 * S)
    assert player.has(Start)
    booked = _booked(player)
    assert (booked["useful"], booked["idle"]) == (6.0 + 102.0, 5.0)


def test_a_step_that_was_completed_before_the_word_of_the_restore_is_booked_with_the_next() -> None:
    player = training()
    early = Progress(
        attempt=Attempt(1),
        step=Step(1),
        furthest_step=Step(1),
        at_us=player.now_us - S // 2,
        phase="step",
        phase_since_us=player.now_us - S // 2,
        slowest_step_us=S,
        stall_us=0,
    )
    player.tell(Tick(progress=early))
    player.reach(4, after_us=3 * S)
    assert _booked(player) == {"idle": 5.0, "restore": 1.0, "useful": 4.0}


def test_nothing_is_regained_before_the_first_step_was_told() -> None:
    player = training()
    player.reach(6, after_us=6 * S)
    player.fail(signal=9)
    player.train()
    player.reach(12, after_us=6 * S)
    assert player.ledger is not None
    (row,) = player.ledger.faults
    assert row.regained_us == row.first_step_us == player.now_us
