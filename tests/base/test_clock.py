from __future__ import annotations

import time

import pytest

from behemoth.base.clock import Clock, ManualClock, WallClock


def test_a_manual_clock_stands_until_it_is_moved() -> None:
    clock: Clock = ManualClock(now_us=5)
    assert (clock.now_us(), clock.now_us()) == (5, 5)


def test_a_manual_clock_is_moved_forward_only() -> None:
    clock = ManualClock(now_us=5)
    clock.advance_to(5)
    clock.advance_to(7)
    with pytest.raises(ValueError, match="expected a time >= 7 us, got 6 us"):
        clock.advance_to(6)
    assert clock.now_us() == 7


def test_a_wall_clock_shows_wall_time() -> None:
    before_us = time.time_ns() // 1000
    now_us = WallClock().now_us()
    assert abs(now_us - before_us) < 10_000_000


def test_a_wall_clock_does_not_go_back_before_what_was_written_down() -> None:
    tomorrow_us = time.time_ns() // 1000 + 86_400_000_000
    clock = WallClock(not_before_us=tomorrow_us)
    assert tomorrow_us <= clock.now_us() < tomorrow_us + 10_000_000


def test_a_wall_clock_is_not_moved_by_a_system_clock_that_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock()
    first_us = clock.now_us()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert clock.now_us() >= first_us
