"""The Executor on threads of this process. Its neighbour on machines is `workers`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from behemoth.app.batches.jobs import Work, open_work
from behemoth.checkpoint.threads import each_result
from behemoth.ports import Batch


class ThreadExecutor:
    """Implements `behemoth.ports.Executor`; `open_work` makes a job's work, for tests."""

    def __init__(self, *, threads: int, open_work: Callable[[bytes], Work] = open_work) -> None:
        self._threads = threads
        self._open_work = open_work

    def run(self, job: bytes, batches: Iterable[Batch]) -> Iterator[Batch]:
        with closing(self._open_work(job)) as work:

            def result(batch: Batch) -> Batch:
                return Batch(number=batch.number, data=work.run(batch.data))

            for _, done in each_result(result, batches, threads=self._threads, name="batch"):
                yield done

    def close(self) -> None:
        """Threads end with each `run`."""
