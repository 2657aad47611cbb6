"""The Executor on threads of this process. Its neighbour on machines is `workers`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from behemoth.app.batches.jobs import Work, open_work
from behemoth.ports import Batch


class ThreadExecutor:
    """Implements `behemoth.ports.Executor`; `open_work` makes a job's work, for tests."""

    def __init__(self, *, threads: int, open_work: Callable[[bytes], Work] = open_work) -> None:
        self._threads = threads
        self._open_work = open_work
        self._work: Work | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: set[Future[Batch]] = set()

    def run(self, job: bytes, batches: Iterable[Batch]) -> Iterator[Batch]:
        self.stop()
        work = self._work = self._open_work(job)
        pool = self._pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="batch")

        def result(batch: Batch) -> Batch:
            return Batch(number=batch.number, data=work.run(batch.data))

        left = iter(batches)
        while True:
            for batch in islice(left, 2 * self._threads - len(self._under_way)):
                self._under_way.add(pool.submit(result, batch))
            if not self._under_way:
                break
            for future in wait(self._under_way, return_when=FIRST_COMPLETED).done:
                yield future.result()
                self._under_way.discard(future)  # only now is it sure that the caller has it
        self._end()

    def stop(self) -> list[Batch]:
        if self._work is not None:
            self._work.stop()
        for future in self._under_way:
            future.cancel()  # does nothing to those that run or are done
        wait(self._under_way)
        found = [one.result() for one in self._under_way if not one.cancelled() and one.exception() is None]
        self._under_way.clear()
        self._end()
        return found

    def close(self) -> None:
        self.stop()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._work is not None:
            self._work.close()
        self._pool = self._work = None
