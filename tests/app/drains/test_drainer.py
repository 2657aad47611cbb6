"""Which commits are drained, which are held for it, and what follows on a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from behemoth.app.drains.drainer import Drainer, DrainNews
from behemoth.app.drains.messages import Drained
from behemoth.base.errors import BehemothError, Conflict, Corrupt, NotFound, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.copy_plan import REJECTED
from behemoth.state.effect import CommitRef

LIMIT_S = 30


def commit(step: int) -> CommitRef:
    return CommitRef(step=Step(step), write_id=WriteId(f"a1-{step}"), size_bytes=1)


class FakeLink:
    """Answers when it is let; `errors` come first, one for each order."""

    def __init__(self, *errors: BehemothError) -> None:
        self.asked: list[int] = []
        self.ways: list[bool] = []
        self._errors = list(errors)
        self._is_open = threading.Event()
        self._is_open.set()
        self._heard = threading.Condition()
        self._is_closed = False

    def hold(self) -> None:
        self._is_open.clear()

    def let_go(self) -> None:
        self._is_open.set()

    def drain(self, commit: CommitRef) -> Drained:
        with self._heard:
            self.asked.append(commit.step)
            self._heard.notify_all()
        assert self._is_open.wait(LIMIT_S)
        if self._is_closed:
            raise Unavailable("it is closed")
        if self._errors:
            raise self._errors.pop(0)
        return Drained(num_bytes=1, seconds=1.0)

    def give_way(self, is_saving: bool) -> None:
        self.ways.append(is_saving)

    def close(self) -> None:
        self._is_closed = True
        self._is_open.set()

    def until_asked(self, *steps: int) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: self.asked == list(steps), LIMIT_S), self.asked


@contextmanager
def draining(link: FakeLink, *, every: int = 1, below: int | None = None) -> Iterator[tuple[Drainer, list[DrainNews]]]:
    told: list[DrainNews] = []
    drainer = Drainer(
        link, every=every, below=None if below is None else commit(below), tell=told.append, jitter=lambda: 0.0
    )
    try:
        yield drainer, told
    finally:
        drainer.close()


def finish(drainer: Drainer, step: int) -> bool:
    return drainer.finish(commit(step), limit_s=LIMIT_S, cancelled=lambda: False)


def test_of_so_many_commits_one_is_drained_and_the_last_one_of_the_run() -> None:
    link = FakeLink()
    with draining(link, every=3) as (drainer, told):
        for step in (1, 2, 3):
            drainer.committed(commit(step))
        link.until_asked(3)
        drainer.committed(commit(4))
        assert finish(drainer, 4)
        assert link.asked == [3, 4]
        assert drainer.below == commit(4)
    assert [news.commit.step for news in told if news.error is None] == [3, 4]


def test_a_later_commit_takes_the_place_of_one_that_waits_and_both_ways_are_held() -> None:
    link = FakeLink()
    link.hold()
    with draining(link) as (drainer, _):
        drainer.committed(commit(1))
        link.until_asked(1)
        drainer.committed(commit(2))
        drainer.committed(commit(3))
        assert drainer.held() == {"a1-1", "a1-3"}
        link.let_go()
        assert finish(drainer, 3)
        assert link.asked == [1, 3]
        assert drainer.held() == frozenset()


def test_a_drain_that_fails_is_tried_again_with_the_newest_that_is_due() -> None:
    link = FakeLink(Unavailable("away"), Unavailable("away"))
    link.hold()
    with draining(link) as (drainer, told):
        drainer.committed(commit(1))
        link.until_asked(1)
        drainer.committed(commit(2))
        link.let_go()
        assert finish(drainer, 2)
        assert link.asked[0] == 1
        assert set(link.asked[1:]) == {2}
    assert [(news.error is None, news.is_given_up) for news in told] == [(False, False), (False, False), (True, False)]


@pytest.mark.parametrize(
    "error", [Corrupt("a chunk"), NotFound("the commit"), Conflict("its write was given up there", code=REJECTED)]
)
def test_a_checkpoint_that_no_try_can_drain_is_given_up_and_the_next_one_is_drained(error: BehemothError) -> None:
    link = FakeLink(error)
    with draining(link) as (drainer, told):
        assert not finish(drainer, 1)
        drainer.committed(commit(2))
        assert finish(drainer, 2)
        assert link.asked == [1, 2]
    assert told[0].is_given_up


def test_after_a_restart_what_is_due_follows_from_both_stores() -> None:
    for steps, asked in (((1, 2, 3), [3]), ((1, 2), []), ((), [])):
        link = FakeLink()
        with draining(link, every=2, below=1) as (drainer, _):
            drainer.found([commit(step) for step in steps])
            link.until_asked(*asked)
            drainer.committed(commit(8))
            assert finish(drainer, 8)


def test_the_end_of_a_run_waits_no_longer_than_it_may() -> None:
    link = FakeLink()
    link.hold()
    with draining(link) as (drainer, _):
        assert not drainer.finish(commit(1), limit_s=0.0, cancelled=lambda: False)
        assert not drainer.finish(commit(1), limit_s=LIMIT_S, cancelled=lambda: True)


def test_what_is_below_already_is_not_asked_for_again() -> None:
    link = FakeLink()
    with draining(link, below=4) as (drainer, _):
        assert finish(drainer, 4)
        assert link.asked == []
