"""The board tells how far the slowest rank is, once per change."""

from __future__ import annotations

from behemoth.base.ids import Attempt, NodeId, Step
from behemoth.fleet.progress import ProgressBoard
from behemoth.state.config import HangFloors, WorkPhase
from behemoth.wire.reports import Beat

A, B = NodeId("a"), NodeId("b")


FLOORS = HangFloors(start_us=4, restore_us=6, first_step_us=5, step_us=1, eval_us=9, save_us=2)


def board_of(attempt: Attempt, nodes: list[NodeId]) -> ProgressBoard:
    return ProgressBoard(attempt, nodes, floors=FLOORS)


def beat(step: int, *, attempt: int = 1, phase: WorkPhase = "step", age_us: int = 0, slowest_us: int = 10) -> Beat:
    return Beat(
        attempt=Attempt(attempt),
        step=Step(step),
        furthest_step=Step(step + 1),
        phase=phase,
        phase_age_us=age_us,
        slowest_step_us=slowest_us,
        stall_us=5,
        rendezvous_port=1,
        loss=float(step),
        tokens=100,
    )


def test_nothing_is_told_before_every_node_has_beaten() -> None:
    board = board_of(Attempt(1), [A, B])
    board.note(A, beat(3), 100)
    assert board.progress() is None


def test_the_slowest_node_sets_step_and_phase() -> None:
    board = board_of(Attempt(1), [A, B])
    board.note(A, beat(7), 100)
    board.note(B, beat(3, phase="save", age_us=40, slowest_us=30), 200)
    told = board.progress()
    assert told is not None
    assert (told.step, told.furthest_step, told.phase) == (3, 8, "save")
    assert (told.at_us, told.phase_since_us) == (200, 160)
    assert (told.slowest_step_us, told.stall_us) == (30, 10)


def test_the_same_state_is_not_told_twice() -> None:
    board = board_of(Attempt(1), [A])
    board.note(A, beat(3), 100)
    assert board.progress() is not None
    board.note(A, beat(3), 200)
    assert board.progress() is None
    board.note(A, beat(4), 300)
    assert board.progress() is not None


def test_beats_of_other_attempts_and_strangers_say_nothing() -> None:
    board = board_of(Attempt(2), [A])
    board.note(A, beat(9, attempt=1), 100)
    board.note(B, beat(9, attempt=2), 100)
    assert board.progress() is None


def test_the_first_completed_step_is_due_at_once_and_only_once() -> None:
    board = board_of(Attempt(1), [A, B])
    board.note(A, beat(41), 100)
    board.note(B, beat(40, slowest_us=0, phase="first_step"), 110)
    assert not board.is_first_step_due()
    board.note(B, beat(41), 120)
    assert board.is_first_step_due()
    assert board.progress() is not None
    assert not board.is_first_step_due()


def test_vitals_sum_tokens_and_average_losses() -> None:
    board = board_of(Attempt(1), [A, B])
    board.note(A, beat(2), 100)
    board.note(B, beat(4), 100)
    vitals = board.vitals()
    assert (vitals.step, vitals.loss, vitals.tokens) == (2, 3.0, 200)


def test_of_nodes_at_the_same_step_the_one_that_may_take_longest_sets_the_phase() -> None:
    """Rank 0 evaluates, and everybody waits for it."""
    board = board_of(Attempt(1), [A, B])
    board.note(A, beat(3, phase="eval", age_us=10), 100)
    board.note(B, beat(3, phase="step", age_us=90), 100)
    told = board.progress()
    assert told is not None
    assert (told.phase, told.phase_since_us) == ("eval", 90)


def test_a_node_that_is_not_up_yet_sets_the_phase_whatever_others_may_take() -> None:
    board = board_of(Attempt(1), [A, B])
    board.note(A, beat(0, phase="restore"), 100)
    board.note(B, beat(0, phase="eval"), 100)
    told = board.progress()
    assert told is not None
    assert told.phase == "restore"


def test_a_node_whose_workers_have_ended_does_not_speak_for_those_that_still_work() -> None:
    """Both have saved the end; of the two phases the save's may take longer."""
    board = board_of(Attempt(1), [A, B])
    board.note(A, beat(3, phase="save", age_us=90), 100)
    board.note(B, beat(3, phase="step", age_us=10), 100)
    board.finished(A, Attempt(0))
    told = board.progress()
    assert told is not None
    assert told.phase == "save"
    board.finished(A, Attempt(1))
    told = board.progress()
    assert told is not None
    assert (told.phase, told.phase_since_us) == ("step", 90)


def test_a_second_evaluation_is_told_even_when_no_beat_fell_between_the_two() -> None:
    board = board_of(Attempt(1), [A])
    board.note(A, beat(3, phase="eval", age_us=50), 100)
    assert board.progress() is not None
    board.note(A, beat(3, phase="eval", age_us=150), 200)
    assert board.progress() is None
    board.note(A, beat(3, phase="eval", age_us=50), 300)
    told = board.progress()
    assert told is not None
    assert (told.at_us, told.phase_since_us) == (300, 250)
