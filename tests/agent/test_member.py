"""Whose state a node's beat tells."""

from __future__ import annotations

from behemoth.agent.member import Member, beat_of
from behemoth.base.ids import Attempt, Rank, Step
from behemoth.state.config import HangFloors, WorkPhase
from behemoth.wire.reports import Beat

FLOORS = HangFloors(start_us=4, restore_us=6, first_step_us=5, step_us=1, eval_us=9, save_us=2)


def member(rank: int, phase: WorkPhase, *, since_us: int = 0, has_ended_steps: bool = True) -> Member:
    return Member(
        rank=Rank(rank),
        local_rank=rank,
        phase_since_us=since_us,
        phase=phase,
        step=Step(10),
        has_ended_steps=has_ended_steps,
        stall_us=5,
        tokens=100,
    )


def beat(*members: Member) -> Beat:
    return beat_of(members, Attempt(1), floors=FLOORS, port=1, last_slowest_us=0, now_us=100)


def test_a_rank_with_steps_left_decides_over_those_that_have_ended_theirs() -> None:
    told = beat(member(0, "eval"), member(1, "step", since_us=70, has_ended_steps=False))
    assert (told.phase, told.phase_age_us) == ("step", 30)


def test_of_ranks_without_steps_left_one_that_still_runs_decides_over_those_that_are_gone() -> None:
    gone = member(0, "save")
    gone.is_gone = True
    told = beat(gone, member(1, "step", since_us=70))
    assert (told.phase, told.phase_age_us) == ("step", 30)


def test_figures_are_those_of_all_ranks_whoever_has_ended() -> None:
    gone = member(0, "save")
    gone.is_gone = True
    told = beat(gone, member(1, "step"), member(2, "step", has_ended_steps=False))
    assert (told.stall_us, told.tokens) == (15, 300)
