"""Reads each unit of stored objects once, however many nodes ask for it at the same time or soon after.

Memory is bounded: the least recently used unit is dropped first, and read again when it is asked for. The neighbours
are `shared_reads`, which decides which node reads what, and `server`, on whose threads other nodes' requests run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from behemoth.agent.peers.server import Reply
from behemoth.base.errors import BehemothError, Internal, Invalid, Timeout
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.units import ReadUnit
from behemoth.ports import ObjectStore
from behemoth.wire.peers import AskStored, StoredFound

MAX_UNIT_BYTES = 256 << 20
"""Most bytes of a unit. No chunk is as large; a rank reads a larger range itself."""
MAX_READS = 16
"""Most reads at the same time; others wait."""
WAIT_LIMIT_S = 60.0
"""Longest wait for a unit that another thread is reading; the caller then reads it itself."""


class _Read:
    """One reading of a unit, under way until `done`."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.data = memoryview(b"")
        self.error: BehemothError | None = None


class ReadOnce:
    """Thread-safe. Holds at most `limit_bytes`, and what is being read."""

    def __init__(self, store: Callable[[], ObjectStore], *, limit_bytes: int) -> None:
        self._store = store
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._reads: OrderedDict[ReadUnit, _Read] = OrderedDict()  # the longest not asked for first
        self._held_bytes = 0
        self._room = threading.BoundedSemaphore(MAX_READS)

    def get(self, unit: ReadUnit) -> tuple[memoryview, int]:
        """The unit's bytes, and how many were read from the store because of this call: all of them or none. Raises
        the store's errors."""
        if unit.length_bytes > MAX_UNIT_BYTES:
            raise Invalid(
                f"object {unit.key}: expected at most {MAX_UNIT_BYTES} bytes at once, got {unit.length_bytes}"
            )
        with self._lock:
            known = self._reads.get(unit)
            if known is not None:
                self._reads.move_to_end(unit)
            else:
                read = self._reads[unit] = _Read()
        if known is None:
            self._fill(unit, read)
            return read.data, unit.length_bytes
        if not known.done.wait(WAIT_LIMIT_S):
            raise Timeout(f"object {unit.key}: expected another reader's {unit.length_bytes} bytes in time, got none")
        if known.error is not None:
            raise type(known.error)(known.error.message, hint=known.error.hint, code=known.error.code)
        return known.data, 0

    def answer(self, asked: AskStored) -> Reply:
        """The handler of another node's question."""
        unit = ReadUnit(asked.key, asked.unit_offset_bytes, asked.unit_length_bytes)
        start = asked.offset_bytes - unit.offset_bytes
        if not 0 <= start <= start + asked.length_bytes <= unit.length_bytes:
            raise Invalid(
                f"object {unit.key}: expected a part of [{unit.offset_bytes}, +{unit.length_bytes}), got "
                f"[{asked.offset_bytes}, +{asked.length_bytes})",
                code="peer-range",
            )
        data, read_bytes = self.get(unit)
        part = data[start : start + asked.length_bytes]
        return Reply(answer=StoredFound(crc=crc32c(part), read_bytes=read_bytes), payload=(part,))

    def clear(self) -> None:
        """Free the memory of complete units: no rank restores any more."""
        with self._lock:
            self._reads = OrderedDict((unit, read) for unit, read in self._reads.items() if not read.done.is_set())
            self._held_bytes = 0

    def _fill(self, unit: ReadUnit, read: _Read) -> None:
        try:
            with self._room:  # memory is taken only by threads that may read, not by those that wait
                data = memoryview(bytearray(unit.length_bytes))
                self._store().read_into(unit.key, offset_bytes=unit.offset_bytes, into=data)
            read.data = data.toreadonly()
        except BehemothError as error:
            read.error = error
            raise
        except BaseException:
            read.error = Internal(f"object {unit.key}: the read for all ended in an error that is not ours")
            raise
        finally:
            self._end(unit, read)

    def _end(self, unit: ReadUnit, read: _Read) -> None:
        """Set `done` and count the bytes under one lock, since `clear` keeps reads that are not done and counts 0 for
        them."""
        with self._lock:
            read.done.set()
            if read.error is not None:
                self._reads.pop(unit, None)
                return
            self._held_bytes += unit.length_bytes
            for old in list(self._reads):
                if self._held_bytes <= self._limit_bytes:
                    return
                if old != unit and self._reads[old].done.is_set():
                    del self._reads[old]
                    self._held_bytes -= old.length_bytes
