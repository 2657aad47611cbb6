"""Whatever a node that has proved itself asks of another one's memory, writes and reads, and whatever it answers: an
answer or an error of ours, in bounded memory. What frames may hold is tested in `wire`; here they reach their handlers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.peers.staged import LAYOUT, staged_rank
from behemoth.agent import exchanging
from behemoth.agent.exchanging import ExchangeService, NodeExchange
from behemoth.agent.memories import Memories
from behemoth.agent.peers.read_once import ReadOnce
from behemoth.agent.peers.server import FileRange, Handler
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.storewire import SeePeers
from behemoth.base.errors import BehemothError
from behemoth.base.ids import NodeId, Rank, UploadId, WriteId
from behemoth.checkpoint.exchange import LocalExchange, OpenWrite, OpenWrites, SentPart
from behemoth.checkpoint.part_plan import Fragment, ShardId
from behemoth.ports import PartReceipt
from behemoth.testing.store import MemoryStore
from behemoth.wire.commands import PeerPlace
from behemoth.wire.frames import decode_body
from behemoth.wire.peers import (
    PEER_ANSWERS,
    PEER_REQUESTS,
    AskBytes,
    AskFragmentCrcs,
    AskFragments,
    AskSentParts,
    AskSnapshot,
    AskStored,
    AskUploadIds,
    CrcsFound,
    PeerFailed,
    PeerRequest,
    SentPartRow,
    SentPartsFound,
    UploadIdsFound,
)
from checkpoint.mangled import mangled_document
from checkpoint.test_mangled import bounded

WRITE, RANK = WriteId("a1-1"), Rank(0)
REQUESTS: tuple[PeerRequest, ...] = (
    AskSnapshot(rank=RANK, write_id=WRITE, layout_digest=LAYOUT.digest),
    AskBytes(rank=RANK, write_id=WRITE, sequence=1, offset_bytes=0, length_bytes=64),
    AskStored(key="steps/a/b", unit_offset_bytes=0, unit_length_bytes=64, offset_bytes=8, length_bytes=8),
    AskFragments(rank=RANK, write_id=WRITE, fragments=((0, 0, 0, 64), (1, 0, 8, 16))),
    AskFragmentCrcs(rank=RANK, write_id=WRITE, fragments=((0, 0, 0, 64),)),
    AskUploadIds(rank=RANK, write_id=WRITE, shards=((0, 0),)),
    AskSentParts(rank=RANK, write_id=WRITE, completer=Rank(1), first=0),
)
SENT = PartReceipt(number=1, etag="e", crc=7, size_bytes=64)
ANSWERS = (
    CrcsFound(crcs=(1, 2)),
    UploadIdsFound(upload_ids=("u", "v")),
    SentPartsFound(
        parts=(SentPartRow(shard=(0, 0), number=1, etag="e", crc=7, size_bytes=64, payload_crc=5, payload_bytes=60),)
    ),
    PeerFailed(kind="Conflict", message="gone", hint="ask another", code="upload-gone"),
)


@pytest.fixture(scope="module")
def handlers() -> Iterator[Mapping[type, Handler]]:
    """Those of a node that has a snapshot of a rank in memory, writes it, and reads a store."""
    memories, open_writes, store = Memories(num_ranks=2), OpenWrites(), MemoryStore()
    staged = staged_rank(memories)
    staged.save(0, WRITE, 7)
    write = OpenWrite(staged.plan, staged.arena, 0, staged.arena.sequence(0))
    write.begun({ShardId(0, 0): UploadId("u")})
    write.sent({Rank(1): [SentPart(ShardId(0, 0), SENT, 5, 60)]})
    open_writes.enter(WRITE, write)
    store.create("steps/a/b", bytes(range(256)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchanging, "PATIENCE_S", 0.0)
        yield {
            **memories.handlers(),
            **ExchangeService(open_writes).handlers(),
            AskStored: ReadOnce(lambda: store, limit_bytes=1 << 20).answer,
        }
    staged.close()


def asked(handlers: Mapping[type, Handler], request: Any) -> int:
    """The bytes behind the answer, which are read as a server would send them."""
    reply = handlers[type(request)](request)
    if isinstance(reply.payload, FileRange):
        try:
            return len(os.pread(reply.payload.fd, reply.payload.length_bytes, reply.payload.offset_bytes))
        finally:
            os.close(reply.payload.fd)
    return sum(memoryview(one).nbytes for one in reply.payload)


def test_each_question_is_answered(handlers: Mapping[type, Handler]) -> None:
    num_spans = len(np.frombuffer(b"".join(handlers[AskSnapshot](REQUESTS[0]).payload), "<u4"))  # type: ignore[arg-type]
    assert [asked(handlers, request) for request in REQUESTS] == [4 * num_spans, 64, 8, 80, 0, 0, 0]


@given(data=st.data())
def test_a_mangled_question_is_answered_or_refused(handlers: Mapping[type, Handler], data: st.DataObject) -> None:
    document = msgspec.to_builtins(data.draw(st.sampled_from(REQUESTS)))
    document = msgspec.msgpack.decode(msgspec.msgpack.encode(document))
    body = data.draw(mangled_document(document, encode=msgspec.msgpack.encode))
    with bounded(), suppress(BehemothError):
        asked(handlers, decode_body(PEER_REQUESTS, body))


class OddClient:
    """Another node, that answers whatever it likes, once; then it is gone."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def ask(self, _peer: object, _request: object, answer_type: type, **_options: object) -> Any:
        answer = decode_body(PEER_ANSWERS, self._body)
        if not isinstance(answer, answer_type):
            raise BehemothError("another answer")
        return answer


def exchange_with(client: Any) -> NodeExchange:
    table = PeerTable()
    place = PeerPlace(host="127.0.0.1", port=4000, domain=0)
    table.see(SeePeers(job=0, slot=1, nodes=(NodeId("n0"), NodeId("n1")), places=(place, place)))
    local = LocalExchange(OpenWrites(), WRITE)
    return NodeExchange(local, WRITE, table=table, client=client, ranks_per_node=1)


FRAGMENTS = [Fragment(RANK, 0, 0, 0, 64), Fragment(RANK, 0, 0, 64, 64)]
QUESTIONS: tuple[Callable[[NodeExchange], object], ...] = (
    lambda exchange: np.array(exchange.crcs(RANK, FRAGMENTS, cancelled=lambda: False), dtype=np.int64),
    lambda exchange: exchange.upload_ids(RANK, [ShardId(0, 0), ShardId(0, 1)], cancelled=lambda: False),
    lambda exchange: exchange.receipts(RANK, Rank(1), first=0, cancelled=lambda: False),
)


@given(data=st.data())
def test_a_mangled_answer_is_taken_or_told(data: st.DataObject) -> None:
    answer = data.draw(st.sampled_from(ANSWERS))
    document = msgspec.msgpack.decode(msgspec.msgpack.encode(answer))
    exchange = exchange_with(OddClient(data.draw(mangled_document(document, encode=msgspec.msgpack.encode))))
    for question in QUESTIONS:
        with bounded(), suppress(BehemothError):
            question(exchange)


def test_each_answer_is_understood() -> None:
    crcs, ids, parts = (
        question(exchange_with(OddClient(msgspec.msgpack.encode(answer))))
        for question, answer in zip(QUESTIONS, ANSWERS, strict=False)
    )
    assert (list(crcs), ids) == ([1, 2], ["u", "v"])  # type: ignore[call-overload]
    assert parts == [SentPart(ShardId(0, 0), SENT, 5, 60)]
