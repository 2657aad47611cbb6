"""At which step the next save is."""

from __future__ import annotations

import pytest

from behemoth.base.ids import Step
from behemoth.policy.cadence import lead_after_passed, lead_steps, line_step, next_step
from behemoth.state.config import Cadence

S = 1_000_000
EVERY_TEN = Cadence(steps=10)
EVERY_MINUTE = Cadence(interval_us=60 * S)


@pytest.mark.parametrize(
    ("cadence", "line", "furthest", "due_us", "learned", "is_asked", "committed", "expected"),
    [
        (EVERY_TEN, 0, 0, 0, 0, False, 0, 10),
        (EVERY_TEN, 9, 9, 0, 0, False, 0, 10),
        (EVERY_TEN, 10, 10, 0, 0, False, 0, 20),
        (EVERY_TEN, 12, 9, 0, 0, False, 0, 20),
        (EVERY_TEN, 5, 5, 0, 0, False, 20, 30),
        (EVERY_TEN, 95, 95, 0, 0, False, 0, 100),
        (EVERY_TEN, 8, 8, 0, 2, False, 0, 20),
        (EVERY_TEN, 100, 100, 0, 0, False, 0, 100),
        (EVERY_TEN, 3, 3, 0, 0, True, 0, 5),
        (EVERY_TEN, 3, 3, 0, 0, True, 6, 7),
        (EVERY_MINUTE, 3, 3, 60 * S, 0, False, 0, None),
        (EVERY_MINUTE, 3, 3, 0, 0, False, 0, 5),
        (EVERY_MINUTE, 3, 3, 0, 8, False, 0, 11),
        (EVERY_MINUTE, 98, 98, 60 * S, 0, False, 0, 100),
        (EVERY_MINUTE, 400, 98, 60 * S, 0, False, 0, 100),
    ],
)
def test_the_next_save(
    cadence: Cadence,
    line: int,
    furthest: int,
    due_us: int,
    learned: int,
    is_asked: bool,
    committed: int,
    expected: int | None,
) -> None:
    step = next_step(
        cadence,
        line=Step(line),
        furthest_step=Step(furthest),
        due_us=due_us,
        now_us=S,
        step_us=S,
        learned_lead_steps=learned,
        is_asked=is_asked,
        committed=Step(committed),
        total_steps=Step(100),
    )
    assert step == expected


@pytest.mark.parametrize(
    ("step_us", "learned", "expected"), [(0, 0, 2), (S, 0, 2), (S // 10, 0, 10), (S // 10, 30, 30)]
)
def test_fast_gangs_are_told_more_steps_ahead(step_us: int, learned: int, expected: int) -> None:
    assert lead_steps(step_us=step_us, learned_lead_steps=learned) == expected


def test_the_line_goes_on_at_the_pace_known_and_stands_without_one() -> None:
    assert line_step(Step(5), at_us=0, step_us=2, now_us=9) == 9
    assert line_step(Step(5), at_us=0, step_us=0, now_us=9) == 5
    assert line_step(Step(5), at_us=10, step_us=2, now_us=9) == 5


@pytest.mark.parametrize(("learned", "late_by", "expected"), [(0, 0, 1), (0, 31, 31), (31, 2, 62)])
def test_a_save_that_came_too_late_tells_the_next_lead(learned: int, late_by: int, expected: int) -> None:
    assert lead_after_passed(learned, late_by=late_by) == expected
