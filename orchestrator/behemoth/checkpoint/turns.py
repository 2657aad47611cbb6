"""Shares the spans of a rank out to several writer threads: as far as possible each writes a file of its own.

Threads that write to one file wait for each other: tmpfs locks it for the whole of a pwritev(2), ext4 while direct I/O
gives it blocks. Two threads on two cores filled pages that tmpfs had at 7.3 GB/s in one file, and at 11.7 in two. So a
thread takes the first batch in the plan's order whose array no other thread writes, and only if there is none joins
another thread. The module knows spans and no storage. Neighbour: `writer`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

BATCH_BYTES = 32 << 20
"""Size of one call of the store: large against its overhead, small enough to share an array among threads."""
BATCH_SPANS = 256


class Spanlike(Protocol):
    """Bytes that lie in the file of an array: a span of a plan, or a run of a box that torch cut."""

    @property
    def array(self) -> int: ...

    @property
    def length(self) -> int: ...


_Span = TypeVar("_Span", bound=Spanlike)


class SpanBatch(NamedTuple, Generic[_Span]):
    """Consecutive spans of one array, and their place among all batches."""

    number: int
    spans: Sequence[_Span]

    @property
    def array(self) -> int:
        return self.spans[0].array


class Turns(Generic[_Span]):
    """The batches of some spans, each given out once. Thread-safe."""

    def __init__(self, spans: Sequence[_Span]) -> None:
        self._lock = threading.Lock()
        self._left: dict[int, deque[SpanBatch[_Span]]] = {}
        self._busy: dict[int, int] = {}
        self.num_batches = 0
        for number, batch in enumerate(_batches(spans)):
            self._left.setdefault(batch[0].array, deque()).append(SpanBatch(number, batch))
            self.num_batches += 1

    def take(self) -> SpanBatch[_Span] | None:
        """The next batch to write; None when all are given out. The caller ends each by `done`."""
        with self._lock:
            array = next((one for one in self._left if one not in self._busy), next(iter(self._left), None))
            if array is None:
                return None
            batch = self._left[array].popleft()
            if not self._left[array]:
                del self._left[array]
            self._busy[array] = self._busy.get(array, 0) + 1
            return batch

    def done(self, batch: SpanBatch[_Span]) -> bool:
        """True when that was the last of its array."""
        with self._lock:
            self._busy[batch.array] -= 1
            if self._busy[batch.array] > 0:
                return False
            del self._busy[batch.array]
            return batch.array not in self._left

    def stop(self) -> None:
        """Give out nothing more: a thread has failed."""
        with self._lock:
            self._left.clear()


def _batches(spans: Sequence[_Span]) -> Iterator[list[_Span]]:
    """Consecutive spans of one array, up to a size."""
    batch: list[_Span] = []
    num_bytes = 0
    for span in spans:
        is_full = len(batch) >= BATCH_SPANS or num_bytes + span.length > BATCH_BYTES
        if batch and (is_full or span.array != batch[0].array):
            yield batch
            batch, num_bytes = [], 0
        batch.append(span)
        num_bytes += span.length
    if batch:
        yield batch
