"""Trying again, on a clock whose waits make it pass."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Conflict, Unavailable
from behemoth.base.retry import FIRST_WAIT_S, LONGEST_WAIT_S, TELL_AFTER_S, retried


class Attempts:
    """Work that fails so many times; every try takes `try_s`."""

    def __init__(self, *, failures: int, try_s: float = 0.0) -> None:
        self.failures = failures
        self.try_s = try_s
        self.now_s = 50.0
        self.waits: list[float] = []

    def work(self) -> str:
        self.now_s += self.try_s
        if self.failures:
            self.failures -= 1
            raise Unavailable("write a: SlowDown (503)", hint="later", code="throttled")
        return "done"

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds

    def run(self, *, limit_s: float, jitter: float = 1.0) -> str:
        return retried(self.work, limit_s=limit_s, now=lambda: self.now_s, wait=self.wait, jitter=lambda: jitter)


def test_what_works_at_once_waits_for_nothing() -> None:
    attempts = Attempts(failures=0)
    assert attempts.run(limit_s=0) == "done"
    assert attempts.waits == []


def test_waits_double_up_to_the_longest() -> None:
    attempts = Attempts(failures=10)
    assert attempts.run(limit_s=1000) == "done"
    assert attempts.waits == [min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number) for number in range(10)]


def test_each_wait_is_anything_from_nothing_to_its_longest() -> None:
    attempts = Attempts(failures=5)
    attempts.run(limit_s=1000, jitter=0.25)
    assert attempts.waits == [FIRST_WAIT_S * 2**number / 4 for number in range(5)]
    hurried = Attempts(failures=2000)
    assert hurried.run(limit_s=1000, jitter=0.0) == "done"


def test_it_ends_in_time_and_tells_how_often_it_tried() -> None:
    attempts = Attempts(failures=1000, try_s=2.0)
    with pytest.raises(Unavailable, match=r"write a: SlowDown \(503\); gave up after \d+ tries in [\d.]+ s") as caught:
        attempts.run(limit_s=60)
    assert attempts.now_s - 50.0 < 60 + attempts.try_s
    assert (caught.value.hint, caught.value.code) == ("later", "throttled")


def test_who_waits_for_long_is_told_once_what_for(caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(failures=5, try_s=TELL_AFTER_S / 10)
    attempts.run(limit_s=60, jitter=0.0)
    assert caplog.messages == []
    attempts = Attempts(failures=3, try_s=TELL_AFTER_S)
    attempts.run(limit_s=60, jitter=0.0)
    assert caplog.messages == ["write a: SlowDown (503); tried again for up to 55 s"]


def test_only_what_may_pass_is_tried_again() -> None:
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise Conflict("create a: expected no such object, got one")

    with pytest.raises(Conflict):
        retried(work, limit_s=100)
    assert len(tries) == 1
