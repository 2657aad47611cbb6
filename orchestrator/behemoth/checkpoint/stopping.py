"""A store that nobody reads any more once its work was given up, so that what needs many reads ends with the next one.

Neighbours: `pacing`, which ends the waits of reads that are held back, and `interop.unit_writer`, which ends writes.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.base.errors import Conflict
from behemoth.checkpoint.passing import PassingStore
from behemoth.ports import Into, ObjectStore


def require_wanted(cancelled: Callable[[], bool], *, what: str) -> None:
    """Raises Conflict for work that was given up."""
    if cancelled():
        raise Conflict(f"{what}: cancelled", code="cancelled")


class StoppingStore(PassingStore):
    """Passes everything on to `inner`, reads until `cancelled()`; Conflict then. Thread-safe."""

    def __init__(self, inner: ObjectStore, cancelled: Callable[[], bool]) -> None:
        super().__init__(inner)
        self._cancelled = cancelled

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        require_wanted(self._cancelled, what=f"read {key}")
        super().read_into(key, offset_bytes=offset_bytes, into=into)
