"""A store that counts the bytes that are read through it, so that a restore can report where its state came from.

Neighbour: `pacing`, which holds reads back.
"""

from __future__ import annotations

import threading

from behemoth.checkpoint.into import num_bytes
from behemoth.checkpoint.wrapper_store import WrapperStore
from behemoth.ports import Into, ObjectStore


class CountingStore(WrapperStore):
    """Forwards all calls to `inner`. Thread-safe."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self._read_bytes = 0

    @property
    def read_bytes(self) -> int:
        """Bytes that reads asked for so far; reads that failed do not count."""
        return self._read_bytes

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        super().read_into(key, offset_bytes=offset_bytes, into=into)
        with self._lock:
            self._read_bytes += num_bytes(into)
