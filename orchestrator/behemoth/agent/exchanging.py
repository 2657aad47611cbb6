"""Writes across nodes: questions of `checkpoint.exchange` go to the store process of the node that has the rank.

Ranks of this node are asked in this process. A node that does not answer is asked again for a while, since its store
process may have a successor. What that one does not know any more it never answers: the asker gives up. Neighbours:
`store_services`, which writes, `peers`, which carries, and `checkpoint.exchange`, which answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerAddress
from behemoth.agent.peers.server import Handler, Reply
from behemoth.agent.peers.table import PeerTable
from behemoth.base.errors import BehemothError, Conflict, Corrupt, Timeout, Unavailable
from behemoth.base.ids import Rank, UploadId, WriteId
from behemoth.base.slots import slot_of
from behemoth.checkpoint.exchange import OUT_OF_TIME, Given, LocalExchange, OpenWrite, OpenWrites, SentPart
from behemoth.checkpoint.part_plan import Fragment, ShardId
from behemoth.ports import PartReceipt
from behemoth.wire.peers import (
    MAX_ROWS,
    MAX_SHARDS,
    PEER_BUSY,
    AskFragmentCrcs,
    AskFragments,
    AskSentParts,
    AskUploadIds,
    BytesFound,
    CrcsFound,
    FragmentRow,
    PeerRequest,
    SentPartRow,
    SentPartsFound,
    UploadIdsFound,
)

PATIENCE_S = 2.0
"""How long a peer's question may wait for its answer here; the peer then asks again, and has heard that this node is
there. Less than the time that it has itself (`end_writer.LEAST_WAIT_S`)."""
LOST_LIMIT_S = 30.0
"""How long a node that does not answer is asked again."""
REST_S = 60.0
"""How long it is not asked after that by who can do without."""
_PAUSE_S = 0.2
_WAITING = "write-waiting"
"""Code of the error for an answer that is not there yet."""
_ALIVE = (_WAITING, PEER_BUSY)
"""Codes that say that the node is there, and may be asked again."""

A = TypeVar("A")
T = TypeVar("T")


class ExchangeService:
    """Answers peers for the ranks of this node; its methods are handlers for a `PeerServer`."""

    def __init__(self, open_writes: OpenWrites) -> None:
        self._open_writes = open_writes

    def handlers(self) -> Mapping[type, Handler]:
        return {
            AskFragments: self._fragments,
            AskFragmentCrcs: self._crcs,
            AskUploadIds: self._upload_ids,
            AskSentParts: self._sent_parts,
        }

    def _fragments(self, asked: AskFragments) -> Reply:
        write, is_over = self._found(asked.rank, asked.write_id)
        views = write.views_of(_fragments(asked.rank, asked.fragments), cancelled=is_over)
        return Reply(answer=BytesFound(), payload=views, is_whole=write.is_held)

    def _crcs(self, asked: AskFragmentCrcs) -> Reply:
        write, is_over = self._found(asked.rank, asked.write_id)
        crcs = write.crcs_of(_fragments(asked.rank, asked.fragments), cancelled=is_over)
        return Reply(answer=CrcsFound(crcs=tuple(crcs)))

    def _upload_ids(self, asked: AskUploadIds) -> Reply:
        write, is_over = self._found(asked.rank, asked.write_id)
        ids = write.ids_of([ShardId(*row) for row in asked.shards], cancelled=is_over)
        return Reply(answer=UploadIdsFound(upload_ids=tuple(ids)))

    def _sent_parts(self, asked: AskSentParts) -> Reply:
        write, is_over = self._found(asked.rank, asked.write_id)
        sent = write.sent_to(asked.completer, cancelled=is_over)
        rows = [
            SentPartRow(
                shard=(one.shard.array, one.shard.number),
                number=one.receipt.number,
                etag=one.receipt.etag,
                crc=one.receipt.crc,
                size_bytes=one.receipt.size_bytes,
                payload_crc=one.payload_crc,
                payload_bytes=one.payload_bytes,
            )
            for one in sent[asked.first : asked.first + MAX_ROWS]
        ]
        return Reply(answer=SentPartsFound(parts=tuple(rows)))

    def _found(self, rank: Rank, write_id: WriteId) -> tuple[OpenWrite, Given]:
        """The rank's write, once it has begun, and what ends the waits for its answers, this one included."""
        is_over = _Patience(rank, write_id).is_over
        return self._open_writes.find(write_id, rank, cancelled=is_over), is_over


class NodeExchange:
    """An Exchange among the ranks of all nodes, `ranks_per_node` on each, in order of the slots.

    Where the write can do without answers (`is_needed` is false), a node that did not answer is not asked for REST_S,
    and then once, with little patience: a silent one would cost every save seconds, as long as the gang is there."""

    def __init__(
        self,
        local: LocalExchange,
        write_id: WriteId,
        *,
        table: PeerTable,
        client: PeerClient | None,
        ranks_per_node: int,
        is_needed: bool = True,
    ) -> None:
        self._local = local
        self._write_id = write_id
        self._table = table
        self._client = client
        self._ranks_per_node = ranks_per_node
        self._is_needed = is_needed

    def fetch(self, rank: Rank, fragments: Sequence[Fragment], into: memoryview, *, cancelled: Given) -> None:
        if self._is_here(rank):
            self._local.fetch(rank, fragments, into, cancelled=cancelled)
            return
        at = 0
        for some in _batches(fragments):
            asked = AskFragments(rank=rank, write_id=self._write_id, fragments=_rows(some))
            room = into[at : at + sum(fragment.length for fragment in some)]
            self._ask(rank, asked, BytesFound, into=room, cancelled=cancelled)
            at += len(room)

    def crcs(self, rank: Rank, fragments: Sequence[Fragment], *, cancelled: Given) -> Sequence[int]:
        if self._is_here(rank):
            return self._local.crcs(rank, fragments, cancelled=cancelled)
        found: list[int] = []
        for some in _batches(fragments):
            asked = AskFragmentCrcs(rank=rank, write_id=self._write_id, fragments=_rows(some))
            crcs = self._ask(rank, asked, CrcsFound, cancelled=cancelled).crcs
            found += _as_many(rank, some, crcs)
        return found

    def upload_ids(self, rank: Rank, shards: Sequence[ShardId], *, cancelled: Given) -> Sequence[UploadId]:
        if self._is_here(rank):
            return self._local.upload_ids(rank, shards, cancelled=cancelled)
        found: list[UploadId] = []
        for some in _batches(shards, MAX_SHARDS):
            asked = AskUploadIds(
                rank=rank, write_id=self._write_id, shards=tuple((one.array, one.number) for one in some)
            )
            ids = self._ask(rank, asked, UploadIdsFound, cancelled=cancelled).upload_ids
            found += map(UploadId, _as_many(rank, some, ids))
        return found

    def receipts(self, rank: Rank, completer: Rank, *, first: int, cancelled: Given) -> Sequence[SentPart]:
        if self._is_here(rank):
            return self._local.receipts(rank, completer, first=first, cancelled=cancelled)
        asked = AskSentParts(rank=rank, write_id=self._write_id, completer=completer, first=first)
        return [_sent_part(row) for row in self._ask(rank, asked, SentPartsFound, cancelled=cancelled).parts]

    def _is_here(self, rank: Rank) -> bool:
        """Whether the rank is of this node; so is every one while there is no other node."""
        return self._table.num_slots < 2 or slot_of(rank, self._ranks_per_node) == self._table.slot

    def _ask(
        self, rank: Rank, request: PeerRequest, answer: type[A], *, cancelled: Given, into: memoryview | None = None
    ) -> A:
        """Until the node answers, or has not for a while. Raises Conflict when cancelled, and what the node told."""
        if self._client is None:
            raise Unavailable(f"rank {rank}: expected a way to ask its node, got none", code="no-peers")
        slot, lost_s = slot_of(rank, self._ranks_per_node), None
        limit_s = LOST_LIMIT_S if self._is_needed else self._patience_s(slot)
        ask = partial(self._client.ask, into=into, cancelled=cancelled, is_patient=limit_s > 0)
        while True:
            try:
                peer = self._table.address(slot)
                with self._learning(peer):
                    return ask(peer, request, answer)
            except (Unavailable, Timeout) as error:
                lost_s = _lost_since(lost_s, error, limit_s=limit_s)
            if cancelled():
                raise Conflict(f"rank {rank}: given up while its node was asked", code="save-cancelled")
            if lost_s is not None:
                time.sleep(_PAUSE_S)

    def _patience_s(self, slot: int) -> float:
        """How long the slot's node is asked in vain, by who can do without. Raises Unavailable when it is not asked."""
        lost_s = self._table.lost_for_s(self._table.address(slot))
        if lost_s is None:
            return LOST_LIMIT_S
        if lost_s < REST_S:
            raise Unavailable(
                f"slot {slot}: expected an answer, got none {lost_s:.0f} s ago",
                hint=f"it is asked again {REST_S:g} s after that",
                code="peer-rests",
            )
        return 0.0

    @contextmanager
    def _learning(self, peer: PeerAddress) -> Iterator[None]:
        """Tells the table what comes of a question."""
        try:
            yield
        except (Unavailable, Timeout) as error:
            if error.code in _ALIVE:
                self._table.answered(peer)
            elif error.code != OUT_OF_TIME:
                self._table.lose(peer)
            raise
        self._table.answered(peer)


class _Patience:
    """Ends a wait with an error after which the peer asks again."""

    def __init__(self, rank: Rank, write_id: WriteId) -> None:
        self._where = f"rank {rank}, write {write_id}"
        self._deadline = time.monotonic() + PATIENCE_S

    def is_over(self) -> bool:
        if time.monotonic() >= self._deadline:
            raise Timeout(f"{self._where}: expected an answer within {PATIENCE_S:g} s, got none yet", code=_WAITING)
        return False


def _lost_since(lost_s: float | None, error: BehemothError, *, limit_s: float) -> float | None:
    """None for a node that answers, if only that it is not ready. Raises the error of one that has not for too long,
    and that of an asker who has no time left."""
    if error.code in _ALIVE:
        return None
    now_s = time.monotonic()
    lost_s = now_s if lost_s is None else lost_s
    if now_s - lost_s >= limit_s or error.code == OUT_OF_TIME:
        raise error
    return lost_s


def _as_many(rank: Rank, asked: Sequence[object], told: Sequence[T]) -> Sequence[T]:
    if len(told) != len(asked):
        raise Corrupt(f"rank {rank}: expected {len(asked)} answers, got {len(told)}", code="peer-answer")
    return told


def _batches(items: Sequence[T], most: int = MAX_ROWS) -> Iterator[Sequence[T]]:
    return (items[at : at + most] for at in range(0, len(items), most))


def _rows(fragments: Sequence[Fragment]) -> tuple[FragmentRow, ...]:
    return tuple((one.array, one.chunk, one.offset, one.length) for one in fragments)


def _fragments(rank: Rank, rows: Sequence[FragmentRow]) -> list[Fragment]:
    return [Fragment(rank, *row) for row in rows]


def _sent_part(row: SentPartRow) -> SentPart:
    receipt = PartReceipt(number=row.number, etag=row.etag, crc=row.crc, size_bytes=row.size_bytes)
    return SentPart(ShardId(*row.shard), receipt, row.payload_crc, row.payload_bytes)
