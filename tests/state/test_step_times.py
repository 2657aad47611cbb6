"""The histogram behind the hang limit."""

from __future__ import annotations

import random

import pytest

from behemoth.state.step_times import StepTimes


def _times(samples: list[int]) -> StepTimes:
    times = StepTimes()
    for sample in samples:
        times = times.with_sample(sample)
    return times


def test_nothing_seen_is_zero_and_what_takes_no_time_is_no_sample() -> None:
    assert _times([0, -5]) == StepTimes()


@pytest.mark.parametrize("sample", [1, 7, 8, 9, 15, 16, 1_000, 999_999, 10**12])
def test_the_p99_of_one_sample_is_at_most_an_eighth_above_it(sample: int) -> None:
    assert sample <= _times([sample]).p99_us <= sample + sample // 8


def test_the_p99_of_many_is_close_to_that_of_a_sorted_list() -> None:
    generator = random.Random(5)
    samples = [int(generator.lognormvariate(13, 0.5)) for _ in range(5_000)]
    exact = sorted(samples)[len(samples) - len(samples) // 100 - 1]
    assert exact <= _times(samples).p99_us <= exact * 1.125 + 1


def test_one_outlier_in_a_hundred_does_not_move_it() -> None:
    assert _times([1_000] * 199 + [10**9]).p99_us < 1_200


def test_memory_is_bounded_whatever_comes() -> None:
    assert len(_times([1 << shift for shift in range(60)] * 3).counts) <= 60
