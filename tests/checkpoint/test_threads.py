"""One function over many items: in order, and not an item more than must be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from behemoth.base.errors import Invalid
from behemoth.checkpoint import threads
from behemoth.checkpoint.threads import batched, each_result, run_all

MANY = range(200)


class Work:
    """Counts; the second thread waits until the first has failed, so that what is begun then shows."""

    def __init__(self, error: Exception | None = None) -> None:
        self.done: list[int] = []
        self._error = error
        self._has_failed = threading.Event()

    def __call__(self, item: int) -> int:
        if self._error is not None and item == 0:
            self._has_failed.set()
            raise self._error
        if self._error is not None:
            assert self._has_failed.wait(60)
        self.done.append(item)
        return 2 * item


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(num_threads: int) -> None:
    assert run_all(Work(), MANY, threads=num_threads, name="t") == [2 * item for item in MANY]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_after_an_error_no_more_items_are_begun_than_were_under_way(num_threads: int) -> None:
    work = Work(Invalid("the first"))
    with pytest.raises(Invalid, match="the first"):
        run_all(work, MANY, threads=num_threads, name="t")
    assert len(work.done) < len(MANY) // 2


def test_an_interrupt_of_the_caller_ends_the_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def interrupted(*_: object, **__: object) -> None:
        gate.set()
        raise KeyboardInterrupt

    done: list[int] = []

    def work(item: int) -> None:
        assert gate.wait(60)
        done.append(item)

    monkeypatch.setattr(threads, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(work, range(100_000), threads=2, name="t")
    assert len(done) < 100_000


def test_each_result_takes_few_items_ahead_and_ends_with_its_caller() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in MANY:
            taken.append(item)
            yield item

    work = Work()
    found = each_result(work, items(), threads=2, name="t")
    assert dict(islice(found, 10)).items() <= {item: 2 * item for item in MANY}.items()
    found.close()  # type: ignore[attr-defined]
    assert len(taken) <= 10 + 2 * 2
    assert set(work.done) <= set(taken)
    assert dict(each_result(Work(), MANY, threads=2, name="t")) == {item: 2 * item for item in MANY}


def test_each_result_raises_the_first_error_and_begins_nothing_behind_it() -> None:
    work = Work(Invalid("the first"))
    with pytest.raises(Invalid, match="the first"):
        list(each_result(work, MANY, threads=2, name="t"))
    assert len(work.done) < 2 * 2


@pytest.mark.parametrize("num", [0, 1, 63, 127, 128, 1000])
def test_batches_hold_every_item_once_and_leave_no_thread_without(num: int) -> None:
    items = list(range(num))
    found = batched(items, threads=2)
    assert [item for batch in found for item in batch] == items
    assert len(found) >= min(2, num)
