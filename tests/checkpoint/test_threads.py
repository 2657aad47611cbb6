"""One function over many items: in order, and not an item more than must be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from behemoth.base.errors import Invalid
from behemoth.checkpoint import threads
from behemoth.checkpoint.threads import batched, each_result, in_order, run_all

MANY = range(200)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the caller leaves its threads: what was not to be begun any more is cancelled by then."""
    event = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            event.set()
            super().shutdown(wait=wait, cancel_futures=cancel_futures)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", Pool)
    return event


class Work:
    """Fails at the first item; with others it has done when its caller has left."""

    def __init__(self, left: threading.Event) -> None:
        self.begun: list[int] = []
        self._left = left

    def __call__(self, item: int) -> int:
        self.begun.append(item)
        if item == 0:
            raise Invalid("the first")
        assert self._left.wait(60)
        return 2 * item


def double(item: int) -> int:
    return 2 * item


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(num_threads: int) -> None:
    assert run_all(double, MANY, threads=num_threads, name="t") == [2 * item for item in MANY]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_after_an_error_no_more_items_are_begun_than_were_under_way(num_threads: int, left: threading.Event) -> None:
    work = Work(left)
    with pytest.raises(Invalid, match="the first"):
        run_all(work, MANY, threads=num_threads, name="t")
    assert len(work.begun) <= 1 + num_threads


def test_an_interrupt_of_the_caller_ends_the_work_too(monkeypatch: pytest.MonkeyPatch, left: threading.Event) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threads, "wait", interrupted)
    work = Work(left)
    with pytest.raises(KeyboardInterrupt):
        run_all(work, range(1, 1000), threads=2, name="t")
    assert len(work.begun) <= 2


class Taken:
    """Items, and how many of them were taken."""

    num = 0

    def __iter__(self) -> Iterator[int]:
        for item in MANY:
            self.num += 1
            yield item


def test_each_result_takes_few_items_ahead_and_ends_with_its_caller() -> None:
    taken, begun = Taken(), []

    def work(item: int) -> int:
        begun.append(item)
        return 2 * item

    found = each_result(work, taken, threads=2, name="t")
    assert dict(islice(found, 10)).items() <= {item: 2 * item for item in MANY}.items()
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= taken.num <= 10 + 2 * 2
    assert dict(each_result(double, MANY, threads=2, name="t")) == {item: 2 * item for item in MANY}


def test_each_result_raises_the_first_error_and_begins_nothing_behind_it(left: threading.Event) -> None:
    work = Work(left)
    with pytest.raises(Invalid, match="the first"):
        list(each_result(work, MANY, threads=2, name="t"))
    assert len(work.begun) <= 1 + 2


def test_results_in_order_wait_for_the_first_and_few_for_their_caller() -> None:
    taken, others = Taken(), threading.Semaphore(0)

    def work(item: int) -> int:
        for _ in range(2 if item == 0 else 0):
            assert others.acquire(timeout=60)
        others.release()
        return 2 * item

    found = in_order(work, taken, threads=3, name="t")
    assert next(found) == 0
    assert taken.num <= 3 + 1
    assert [0, *found] == [2 * item for item in MANY]


def test_results_in_order_end_with_the_first_error_and_with_their_caller(left: threading.Event) -> None:
    work = Work(left)
    with pytest.raises(Invalid, match="the first"):
        list(in_order(work, MANY, threads=3, name="t"))
    assert len(work.begun) <= 3
    left.clear()
    begun: list[int] = []

    def waits(item: int) -> None:
        begun.append(item)
        assert item == 0 or left.wait(60)

    found = in_order(waits, MANY, threads=3, name="t")
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 3 + 1


@pytest.mark.parametrize("num", [0, 1, 63, 127, 128, 1000])
def test_batches_hold_every_item_once_and_leave_no_thread_without(num: int) -> None:
    items = list(range(num))
    found = batched(items, threads=2)
    assert [item for batch in found for item in batch] == items
    assert len(found) >= min(2, num)
