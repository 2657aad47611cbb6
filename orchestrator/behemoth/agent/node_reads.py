"""Chunks that several ranks of a node restore from, each read once: by the rank that wants it first, for the others.

Which ranks read which chunks is known beforehand: a chunk that only one rank reads goes straight into that rank's
memory, and one that several ranks read is kept until the last of them has taken it. Memory is bounded: where there is
no room each rank reads for itself, as it does when another rank's read fails. Neighbours: `checkpoint.common_chunks`
(who reads what), `preparing`, which restores, and `peers.shared_reads`, which does the same among nodes.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from behemoth.base.ids import Rank
from behemoth.checkpoint.chunk_reader import Lent
from behemoth.checkpoint.common_chunks import CommonChunks
from behemoth.checkpoint.into import num_bytes, spread
from behemoth.checkpoint.own_memory import own_memory
from behemoth.checkpoint.units import ReadUnit
from behemoth.checkpoint.wrapper_store import WrapperStore
from behemoth.ports import Into, ObjectStore

WAIT_LIMIT_S = 60.0
"""Longest wait for a unit that another rank is reading. A rank that waited in vain reads the unit itself, and no rank
waits for that reader again."""


class _Held:
    """A unit that is being read for several, or has been once `done`; then `is_whole` tells whether that succeeded."""

    def __init__(self, memory: memoryview, reader: Rank) -> None:
        self.memory = memory
        self.lent = Lent(memory.toreadonly())
        self.reader = reader
        self.done = threading.Event()
        self.is_whole = False
        self.num_users = 0


class NodeReads:
    """The shared reads of one restore of a node. Thread-safe. `wanted`: the units that several of its ranks read, of
    which those that were taken are removed.
    `unit_of` says of which unit a range is a part. At most `limit_bytes` are held."""

    def __init__(self, wanted: CommonChunks, *, unit_of: Callable[[str, int, int], ReadUnit], limit_bytes: int) -> None:
        self.unit_of = unit_of
        self._wanted = wanted
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._held: dict[ReadUnit, _Held] = {}  # the longest there first
        self._free: defaultdict[int, list[memoryview]] = defaultdict(list)  # by size: pages that need not be made anew
        self._taken_bytes = 0
        """By what is held, and what is free."""
        self._active: set[Rank] = set()
        self._ended: set[Rank] = set()
        self._stuck: set[Rank] = set()
        """For whose reads somebody has waited in vain: each unit that such a rank reads would cost as long again."""

    def is_over_for(self, rank: Rank) -> bool:
        """Whether the rank has restored, and nobody is at it: if it does so again, others may too."""
        with self._lock:
            return rank in self._ended and not self._active

    @contextmanager
    def of(self, rank: Rank, inner: ObjectStore) -> Iterator[RankReads]:
        """The store `inner` as this rank reads it. What it has not read at the end is not kept for it any longer."""
        with self._lock:
            self._active.add(rank)
        try:
            yield RankReads(inner, rank, self)
        finally:
            with self._lock:
                self._end(rank)

    @contextmanager
    def lent(self, unit: ReadUnit, rank: Rank, fill: Callable[[memoryview], None]) -> Iterator[Lent | None]:
        """The unit's bytes for as long as this lasts, filled by this rank if nobody else has; None: the rank reads them
        for itself. Raises what `fill` raises; others then read for themselves."""
        with self._lock:
            held, is_reader = self._find(unit, rank)
        if held is None:
            yield None
            return
        try:
            if is_reader:
                fill(held.memory)
                held.is_whole = True
                held.done.set()
            yield held.lent if self._is_there(held) else None
        finally:
            with self._lock:
                held.num_users -= 1
                if is_reader:
                    held.done.set()
                self._took(unit, rank)

    def _is_there(self, held: _Held) -> bool:
        """Whether the unit can be taken, once its reader is done."""
        if not held.done.wait(0.0 if held.reader in self._stuck else WAIT_LIMIT_S):
            with self._lock:
                self._stuck.add(held.reader)
        return held.is_whole

    def _find(self, unit: ReadUnit, rank: Rank) -> tuple[_Held | None, bool]:
        """What is held of the unit, or will be if this rank reads it, and whether that is so."""
        held = self._held.get(unit)
        is_new = held is None and not self._wanted.left(unit) <= {rank}
        memory = self._memory(unit.length_bytes) if is_new else None
        if memory is not None:
            held = self._held[unit] = _Held(memory, rank)
        if held is None:
            self._took(unit, rank)
            return None, False
        held.num_users += 1
        return held, is_new

    def _memory(self, num_bytes: int) -> memoryview | None:
        """For a unit of this size, if it can be had: of free memory, or of what only ranks want that do not read."""
        if self._free[num_bytes]:
            return self._free[num_bytes].pop()
        if self._taken_bytes + num_bytes > self._limit_bytes:
            self._drop_free()
        for unit in list(self._held):
            if self._taken_bytes + num_bytes <= self._limit_bytes:
                break
            if not self._held[unit].num_users and self._wanted.left(unit).isdisjoint(self._active):
                del self._held[unit]
                self._taken_bytes -= unit.length_bytes
        if self._taken_bytes + num_bytes > self._limit_bytes:
            return None
        try:
            memory = own_memory(num_bytes)
        except OSError:  # the machine has no more
            return None
        self._taken_bytes += num_bytes
        return memory

    def _took(self, unit: ReadUnit, rank: Rank) -> None:
        """The rank has the unit, or wants it no more. It is kept if it is whole, and somebody else wants it."""
        self._wanted.took(unit, rank)
        held = self._held.get(unit)
        if held is not None and not held.num_users and not (held.is_whole and self._wanted.left(unit)):
            del self._held[unit]
            self._free[unit.length_bytes].append(held.memory)

    def _end(self, rank: Rank) -> None:
        self._active.discard(rank)
        self._ended.add(rank)
        for unit in [unit for unit in self._held if rank in self._wanted.left(unit)]:
            self._took(unit, rank)
        self._wanted.ended(rank)
        if not self._active:
            self._drop_free()

    def _drop_free(self) -> None:
        self._taken_bytes -= sum(size * len(some) for size, some in self._free.items())
        self._free.clear()


class NodeRestore:
    """The shared reads of the restore that a node is carrying out. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: object = None
        self._reads: NodeReads | None = None

    def joined(self, key: object, rank: Rank, begun: Callable[[], NodeReads]) -> NodeReads:
        """The reads of the restore of this key; `begun()` makes them for the first of its ranks. Raises what that
        raises."""
        with self._lock:
            if self._reads is None or key != self._key or self._reads.is_over_for(rank):
                self._reads = None
                self._reads = begun()
                self._key = key
            return self._reads

    def clear(self) -> None:
        """Free the memory: no rank restores any more."""
        with self._lock:
            self._reads = None


class RankReads(WrapperStore):
    """What one rank reads through `NodeReads`. Thread-safe."""

    def __init__(self, inner: ObjectStore, rank: Rank, node: NodeReads) -> None:
        super().__init__(inner)
        self._rank = rank
        self._node = node

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        with self._common(key, offset_bytes, num_bytes(into)) as lent:
            if lent is not None:
                spread(lent.data, into)
                return
        super().read_into(key, offset_bytes=offset_bytes, into=into)

    @contextmanager
    def lent(
        self, key: str, *, offset_bytes: int, length_bytes: int, room: Callable[[int], memoryview]
    ) -> Iterator[Lent]:
        """See `LendsRanges`."""
        with self._common(key, offset_bytes, length_bytes) as lent:
            if lent is not None:
                yield lent
                return
        own = room(length_bytes)
        super().read_into(key, offset_bytes=offset_bytes, into=own)
        yield Lent(own)

    @contextmanager
    def _common(self, key: str, offset_bytes: int, length_bytes: int) -> Iterator[Lent | None]:
        """The bytes, where several ranks read them; None: this one reads them for itself."""
        unit = self._node.unit_of(key, offset_bytes, length_bytes)

        def fill(data: memoryview) -> None:
            self._inner.read_into(key, offset_bytes=unit.offset_bytes, into=data)

        with self._node.lent(unit, self._rank, fill) as lent:
            if lent is None or length_bytes == unit.length_bytes:
                yield lent
            else:
                begin = offset_bytes - unit.offset_bytes
                yield Lent(lent.data[begin : begin + length_bytes])
