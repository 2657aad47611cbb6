"""Silence and its limits."""

from __future__ import annotations

import pytest

from behemoth.base.ids import Attempt, Step
from behemoth.policy.hang import deadline_us, limit_us
from behemoth.state.config import HangFloors, WorkPhase
from behemoth.state.evidence import Progress

FLOORS = HangFloors(start_us=1, restore_us=2, first_step_us=30, step_us=40, eval_us=50, save_us=60)


@pytest.mark.parametrize(
    ("phase", "p99_us", "expected_us"),
    [
        ("start", 1_000, 1),
        ("restore", 1_000, 2),
        ("first_step", 5, 30),
        ("step", 0, 40),
        ("step", 13, 40),
        ("step", 14, 42),
        ("eval", 100, 300),
        ("save", 1, 60),
    ],
)
def test_the_limit_is_three_p99_but_no_less_than_the_floor(phase: WorkPhase, p99_us: int, expected_us: int) -> None:
    assert limit_us(phase, floors=FLOORS, p99_us=p99_us) == expected_us


@pytest.mark.parametrize(
    ("at_us", "since_us", "promise_us", "watch_us", "expected_us"),
    [(10, 5, None, 0, 50), (10, 25, None, 0, 65), (10, 5, 900, 0, 940), (10, 5, 3, 0, 50), (10, 5, None, 100, 140)],
    ids=["last step", "phase began", "promise", "broken promise", "takeover"],
)
def test_the_limit_counts_from_the_last_sign_of_life(
    at_us: int, since_us: int, promise_us: int | None, watch_us: int, expected_us: int
) -> None:
    progress = Progress(
        attempt=Attempt(1),
        step=Step(1),
        furthest_step=Step(1),
        at_us=at_us,
        phase="step",
        phase_since_us=since_us,
        slowest_step_us=1,
        stall_us=0,
        next_report_by_us=promise_us,
    )
    assert deadline_us(progress, watch_us=watch_us, floors=FLOORS, p99_us=0) == expected_us
