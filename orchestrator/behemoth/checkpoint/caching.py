"""A store that keeps the ranges that were read last, least recently used first to go.

Only for objects of committed checkpoints, which never change: nothing is ever invalidated. For small chunks that one
batch after another reads. Neighbours: `counting` and `pacing`, stores of the same kind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from behemoth.checkpoint.into import buffers_of, num_bytes, spread
from behemoth.checkpoint.wrapper_store import WrapperStore
from behemoth.ports import Into, ObjectStore


class CachingStore(WrapperStore):
    """Keeps at most `limit_bytes` of what was read from `inner`. Thread-safe; threads that read the same new range at
    the same time each read it from `inner`."""

    def __init__(self, inner: ObjectStore, *, limit_bytes: int) -> None:
        super().__init__(inner)
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()  # the longest not asked for first
        self._held_bytes = 0

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        asked = (key, offset_bytes, num_bytes(into))
        with self._lock:
            data = self._known.get(asked)
            if data is not None:
                self._known.move_to_end(asked)
        if data is None:
            super().read_into(key, offset_bytes=offset_bytes, into=into)
            self._keep(asked, b"".join(buffers_of(into)))
            return
        spread(memoryview(data), into)

    def _keep(self, asked: tuple[str, int, int], data: bytes) -> None:
        with self._lock:
            if asked not in self._known and len(data) <= self._limit_bytes:
                self._known[asked] = data
                self._held_bytes += len(data)
            while self._held_bytes > self._limit_bytes:
                self._held_bytes -= len(self._known.popitem(last=False)[1])
