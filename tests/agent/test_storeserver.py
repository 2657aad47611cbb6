"""The store process's orders, over a real socket: a cancel reaches the job that is under way, and no other."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from agent.peers.staged import LAYOUT, StagedRank, staged_rank
from agent.stage import LIMIT_S
from behemoth.agent.memories import Memories
from behemoth.agent.storeserver import serve_store
from behemoth.agent.storewire import STORE_REPORTS, Cancel, Failed, OpenStore, StoreOrder, StoreReport, Write, Written
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.receipt import Receipt
from behemoth.ports import Part
from behemoth.testing.store import MemoryStore
from behemoth.wire.ends import Peer, send_with
from behemoth.wire.frames import encode_frame

WRITE = WriteId("a1-1")


class Held(MemoryStore):
    """Writes once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may_go_on = threading.Semaphore(0), threading.Event()

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        self.asked.release()
        assert self.may_go_on.wait(LIMIT_S)
        super().write_parts(key, size_bytes=size_bytes, parts=parts)


class Agent:
    """The other end of a store process that is a thread here."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._peer = Peer[StoreReport](sock, STORE_REPORTS)

    def order(self, order: StoreOrder, *descriptors: int) -> None:
        frame = encode_frame(order)
        assert send_with(self._sock, frame, descriptors) == len(frame)

    def write(self, job: int, rank: StagedRank) -> None:
        order = Write(
            job=job,
            rank=rank.rank,
            layout=LAYOUT.encode(),
            generation=0,
            attempt=Attempt(1),
            step=Step(7),
            write_id=WRITE,
        )
        self.order(order, rank.fd)

    def answer(self) -> StoreReport:
        return self._peer.receive(timeout_s=LIMIT_S, what="the store process")


@pytest.fixture
def rank() -> Iterator[StagedRank]:
    memories = Memories(num_ranks=1)
    rank = staged_rank(memories)
    rank.save(0, WRITE, 7)
    yield rank
    rank.close()


@contextmanager
def served(store: MemoryStore) -> Iterator[Agent]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    opened = (lambda _url: store, lambda _path: MemoryStore())
    serving = threading.Thread(target=serve_store, args=(theirs, *opened), name="store")
    serving.start()
    try:
        agent = Agent(ours)
        agent.order(OpenStore(job=0, url="memory", threads=1, num_ranks=1))
        yield agent
    finally:
        ours.close()
        serving.join(LIMIT_S)
        theirs.close()


def test_a_cancel_ends_the_job_that_is_under_way_and_one_that_comes_after_its_answer_ends_none(
    rank: StagedRank,
) -> None:
    store = Held()
    with served(store) as agent:
        agent.write(1, rank)
        assert store.asked.acquire(timeout=LIMIT_S)
        agent.order(Cancel(job=1))
        agent.write(2, rank)
        assert store.asked.acquire(timeout=LIMIT_S)  # so the cancel before it has been read too
        store.may_go_on.set()
        answers = {answer.job: answer for answer in (agent.answer(), agent.answer())}
        assert isinstance(answers[1], Failed)
        assert "cancelled" in answers[1].reason
        assert isinstance(answers[2], Written)
        agent.order(Cancel(job=1))
        agent.order(Cancel(job=2))
        agent.write(1, rank)
        written = agent.answer()
        assert isinstance(written, Written)
    receipt = Receipt.decode(written.receipt)
    assert (receipt.rank, receipt.step) == (Rank(0), Step(7))


def test_a_job_that_cannot_be_is_answered_with_the_reason_and_its_descriptor_is_closed(rank: StagedRank) -> None:
    with served(MemoryStore()) as agent:
        before = len(os.listdir("/proc/self/fd"))
        for job in range(1, 20):
            order = Write(
                job=job,
                rank=Rank(0),
                layout=b"rubbish",
                generation=0,
                attempt=Attempt(1),
                step=Step(7),
                write_id=WRITE,
            )
            agent.order(order, rank.fd)
            answer = agent.answer()
            assert isinstance(answer, Failed)
            assert answer.is_corrupt
            assert "layout" in answer.reason
        assert len(os.listdir("/proc/self/fd")) <= before + 1
