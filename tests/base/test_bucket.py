"""The token bucket, on a clock of numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.bucket import TokenBucket
from behemoth.base.errors import Invalid

TAKES = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 500)), min_size=1, max_size=40)
"""Seconds of pause, then tokens to take."""


def test_the_burst_is_free_and_what_exceeds_it_is_waited_for() -> None:
    bucket = TokenBucket(rate_per_s=100, burst=50)
    assert bucket.take(30, now_s=10.0) == 0.0
    assert bucket.take(20, now_s=10.0) == 0.0
    assert bucket.take(10, now_s=10.0) == pytest.approx(0.1)
    assert bucket.take(10, now_s=10.1) == pytest.approx(0.1)


def test_a_request_larger_than_the_burst_is_waited_for_once() -> None:
    bucket = TokenBucket(rate_per_s=100, burst=0)
    assert bucket.take(1000, now_s=0.0) == pytest.approx(10.0)
    assert bucket.take(0, now_s=10.0) == 0.0


def test_a_pause_fills_the_bucket_to_its_burst_and_no_further() -> None:
    bucket = TokenBucket(rate_per_s=100, burst=50)
    bucket.take(50, now_s=0.0)
    assert bucket.take(60, now_s=1e6) == pytest.approx(0.1)


def test_a_clock_that_runs_backwards_gives_nothing() -> None:
    bucket = TokenBucket(rate_per_s=100, burst=0)
    bucket.take(100, now_s=1000.0)
    assert bucket.take(0, now_s=0.0) == pytest.approx(1.0)
    assert bucket.take(0, now_s=1000.5) == pytest.approx(0.5)


@given(TAKES, st.floats(0.5, 1000), st.floats(0, 1000))
def test_who_waits_as_told_never_exceeds_the_rate_but_for_the_burst(
    takes: list[tuple[float, int]], rate_per_s: float, burst: float
) -> None:
    bucket = TokenBucket(rate_per_s=rate_per_s, burst=burst)
    now_s, used = 0.0, 0
    for pause_s, tokens in takes:
        now_s += pause_s
        now_s += bucket.take(tokens, now_s=now_s)
        used += tokens
        assert used <= burst + rate_per_s * now_s * (1 + 1e-9) + 1e-6


@given(TAKES)
def test_who_never_pauses_gets_the_whole_rate(takes: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate_per_s=100, burst=0)
    now_s, used = 0.0, 0
    for _, tokens in takes:
        now_s += bucket.take(tokens, now_s=now_s)
        used += tokens
    assert now_s == pytest.approx(used / 100)


@pytest.mark.parametrize(("rate_per_s", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (1, -1)])
def test_a_rate_that_is_none_is_refused(rate_per_s: float, burst: float) -> None:
    with pytest.raises(Invalid, match="expected > 0 a second"):
        TokenBucket(rate_per_s=rate_per_s, burst=burst)
