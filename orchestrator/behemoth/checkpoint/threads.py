"""Runs one function over many items on a few named threads, which are joined before it returns.

CRCs, copies and I/O release the GIL, so that threads help. Beside this only `staging` and `sealing` start threads of
the engine. Neighbours: `writer`, `reader`, `commit`, which call it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

BATCH_ITEMS = 64


def batched(items: Sequence[_Item], *, threads: int) -> list[Sequence[_Item]]:
    """The items in batches for `run_all`, since handing an item to a thread may cost more than its work; one item per
    batch where there are too few to share out evenly."""
    size = BATCH_ITEMS if len(items) >= BATCH_ITEMS * threads else 1
    return [items[at : at + size] for at in range(0, len(items), size)]


def run_all(work: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, name: str) -> list[_Result]:
    """The results in the order of `items`. Blocks. After a first error, or an interrupt of the caller, no further item
    is begun, and the error is raised once all that runs has ended. One thread means the caller's own."""
    if threads <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()  # does nothing to those that run or are done
    for future in futures:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            raise error
    return [future.result() for future in futures]


def each_result(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, name: str
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with its result, in order of completion. At most `2 * threads` items are under way, so that results do
    not pile up. After a first error no further item is begun, and the error is raised once all that runs has ended."""
    left = iter(items)
    under_way: dict[Future[_Result], _Item] = {}
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name) as pool:
        try:
            while True:
                for item in islice(left, 2 * threads - len(under_way)):
                    under_way[pool.submit(work, item)] = item
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()
        finally:
            for future in under_way:
                future.cancel()  # does nothing to those that run or are done


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, name: str) -> Iterator[_Result]:
    """The results in the order of `items`, each as soon as it and all before it are there. At most `threads` items are
    under way or wait to be taken. After a first error in that order no further item is begun, and the error is raised
    once all that runs has ended."""
    left = iter(items)
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name) as pool:
        under_way = deque(pool.submit(work, item) for item in islice(left, threads))
        try:
            while under_way:
                result = under_way.popleft().result()
                under_way.extend(pool.submit(work, item) for item in islice(left, 1))
                yield result
        finally:
            for future in under_way:
                future.cancel()  # does nothing to those that run or are done
