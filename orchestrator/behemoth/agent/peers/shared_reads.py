"""A store of which every unit is read by one node of the gang, and passed on to the others that need it.

Which node follows from the unit alone. What it says is checked, and whatever goes wrong with it the reader reads from
the store itself: a peer can make a restore slow, never wrong. Neighbours: `read_once`, which reads, and `client`.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable

from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.read_once import ReadOnce
from behemoth.agent.peers.table import PeerTable
from behemoth.base.errors import BehemothError, Corrupt, Invalid, Timeout, Unavailable
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.into import buffers_of
from behemoth.checkpoint.units import ReadUnit
from behemoth.checkpoint.wrapper_store import WrapperStore
from behemoth.ports import Into, ObjectStore
from behemoth.wire.peers import AskStored, StoredFound

GROUP_NODES = 64
"""What every rank reads is read by one node of each group of so many: a single one would have to answer the fleet."""


class SharedReads(WrapperStore):
    """Reads of one restore; thread-safe. `unit_of` says of which unit a range is a part; until its caller sets it, each
    range is one, and what every rank wants: the commit and its index."""

    def __init__(
        self,
        inner: ObjectStore,
        *,
        once: ReadOnce,
        table: PeerTable,
        client: PeerClient,
    ) -> None:
        super().__init__(inner)
        self.unit_of: Callable[[str, int, int], ReadUnit] | None = None
        self._once = once
        self._table = table
        self._client = client
        self._lock = threading.Lock()
        self._silent: set[int] = set()
        self._read_bytes = 0
        self._peer_bytes = 0

    @property
    def read_bytes(self) -> int:
        """Read from the store because of reads here, on whichever node: over all nodes that is what the fleet read."""
        return self._read_bytes

    @property
    def peer_bytes(self) -> int:
        """Received from other nodes."""
        return self._peer_bytes

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        for one in buffers_of(into):
            target = memoryview(one).cast("B") if memoryview(one).nbytes else memoryview(one)
            self._read(key, offset_bytes, target)
            offset_bytes += target.nbytes

    def _read(self, key: str, offset_bytes: int, target: memoryview) -> None:
        whole = (key, offset_bytes, target.nbytes)
        unit = ReadUnit(*whole) if self.unit_of is None else self.unit_of(*whole)
        is_here = False
        try:
            slot = self._reader_of(unit)
            is_here = slot == self._table.slot
            if is_here:
                self._read_here(unit, offset_bytes, target)
            else:
                self._ask(slot, unit, offset_bytes, target)
        except BehemothError as error:
            if is_here and not isinstance(error, Timeout | Invalid):
                raise  # the store's own word, for which it has had its time
            super().read_into(key, offset_bytes=offset_bytes, into=target)
            self._count(read_bytes=target.nbytes)

    def _reader_of(self, unit: ReadUnit) -> int:
        """The slot of the node that reads it: the same for all nodes, or, of what all of them want, for a group."""
        num = max(1, self._table.num_slots)
        number = zlib.crc32(f"{unit.key} {unit.offset_bytes}".encode())
        if self.unit_of is None:
            num_groups = -(-num // GROUP_NODES)
            number += self._table.slot * num_groups // num * (num // num_groups)
        return number % num

    def _read_here(self, unit: ReadUnit, offset_bytes: int, into: memoryview) -> None:
        data, read_bytes = self._once.get(unit)
        start = offset_bytes - unit.offset_bytes
        into[:] = data[start : start + into.nbytes]
        self._count(read_bytes=read_bytes)

    def _ask(self, slot: int, unit: ReadUnit, offset_bytes: int, into: memoryview) -> None:
        if slot in self._silent:
            raise Unavailable(f"slot {slot}: expected an answer, got a failure earlier in this restore")
        question = AskStored(
            key=unit.key,
            unit_offset_bytes=unit.offset_bytes,
            unit_length_bytes=unit.length_bytes,
            offset_bytes=offset_bytes,
            length_bytes=into.nbytes,
        )
        try:
            with self._table.asking(slot) as address:
                found = self._client.ask(address, question, StoredFound, into=into)
        except BehemothError:
            self._silent.add(slot)
            raise
        self._count(read_bytes=found.read_bytes, peer_bytes=into.nbytes)
        if crc32c(into) != found.crc:
            raise Corrupt(f"slot {slot}, object {unit.key}: expected {into.nbytes} bytes as they were sent, got others")

    def _count(self, *, read_bytes: int, peer_bytes: int = 0) -> None:
        with self._lock:
            self._read_bytes += read_bytes
            self._peer_bytes += peer_bytes
