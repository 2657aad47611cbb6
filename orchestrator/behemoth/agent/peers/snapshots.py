"""A rank's snapshot in another node's memory, as the checkpoint engine copies it. The neighbours are `client` and, for
a restore, `table`, which remembers who is silent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerAddress
from behemoth.agent.peers.table import PeerTable
from behemoth.base.errors import Conflict
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena_format import CRC_BYTES
from behemoth.checkpoint.gathering import SnapshotSource
from behemoth.checkpoint.plan import RankPlan
from behemoth.wire.peers import AskBytes, AskSnapshot, BytesFound, SnapshotFound


class PeerSnapshot:
    """Implements `checkpoint.gathering.SnapshotSource`. `read_into` after `crcs`."""

    def __init__(self, client: PeerClient, peer: PeerAddress, plan: RankPlan, *, write_id: WriteId, step: Step) -> None:
        self._client = client
        self._peer = peer
        self._plan = plan
        self._write_id = write_id
        self._step = step
        self._sequence = 0

    def crcs(self) -> Sequence[int]:
        """Raises NotFound when the node does not have the snapshot."""
        table = bytearray(CRC_BYTES * len(self._plan.spans))
        question = AskSnapshot(rank=self._plan.rank, write_id=self._write_id, layout_digest=self._plan.layout_digest)
        found = self._client.ask(self._peer, question, SnapshotFound, into=memoryview(table))
        if (found.step, found.data_bytes) != (self._step, self._plan.data_bytes):
            raise Conflict(
                f"node {self._peer.node}, write {self._write_id}: expected step {self._step} and "
                f"{self._plan.data_bytes} bytes, got {found.step} and {found.data_bytes}",
                code="peer-snapshot",
            )
        self._sequence = found.sequence
        return np.frombuffer(table, dtype="<u4").tolist()  # type: ignore[no-any-return]

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        question = AskBytes(
            rank=self._plan.rank,
            write_id=self._write_id,
            sequence=self._sequence,
            offset_bytes=offset_bytes,
            length_bytes=into.nbytes,
        )
        self._client.ask(self._peer, question, BytesFound, into=into)


class AskedSnapshot:
    """Implements `SnapshotSource` for a restore: `inner` is that of the node in `slot`, which is not asked any more
    once it let any rank of this node wait in vain."""

    def __init__(self, inner: SnapshotSource, table: PeerTable, slot: int) -> None:
        self._inner = inner
        self._table = table
        self._slot = slot

    def crcs(self) -> Sequence[int | None]:
        with self._table.asking(self._slot):
            return self._inner.crcs()

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        with self._table.asking(self._slot):
            self._inner.read_into(offset_bytes, into)
