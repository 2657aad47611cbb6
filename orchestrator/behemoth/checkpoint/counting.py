"""A store that counts the bytes that are read through it, so that who restores can tell where its state came from.

Neighbour: `pacing`, which holds reads back.
"""

from __future__ import annotations

import threading

from behemoth.checkpoint.passing import PassingStore, num_bytes
from behemoth.ports import Into, ObjectStore


class CountingStore(PassingStore):
    """Passes everything on to `inner`. Thread-safe."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self._read_bytes = 0

    @property
    def read_bytes(self) -> int:
        """Asked for so far, by reads that succeeded."""
        return self._read_bytes

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        super().read_into(key, offset_bytes=offset_bytes, into=into)
        with self._lock:
            self._read_bytes += num_bytes(into)
