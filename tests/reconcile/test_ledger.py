"""Every microsecond of every rank, by what it went into. `Player` checks after each turn that the sum is exact."""

from __future__ import annotations

from behemoth.base.ids import Attempt, Epoch, NodeId
from behemoth.reconcile.ledger import Buckets, books
from behemoth.state.evidence import GangFinished, NodeJoined, TermBegan
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
