"""Ranks of several nodes write one save together, over real connections between store processes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from agent.peers.staged import identity
from agent.peers.test_silent_peers import connections
from behemoth.agent import exchanging
from behemoth.agent.exchanging import ExchangeService, NodeExchange
from behemoth.agent.peers import client as client_module
from behemoth.agent.peers import sockets
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.listener import listen_for_peers
from behemoth.agent.peers.server import PeerServer
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.storewire import SeePeers
from behemoth.base.errors import Conflict, Invalid, Timeout, Unavailable
from behemoth.base.ids import Attempt, NodeId, Rank, Step, UploadId, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.chunk_ends import chunk_ends
from behemoth.checkpoint.exchange import OUT_OF_TIME, Exchange, Given, LocalExchange, OpenWrite, OpenWrites
from behemoth.checkpoint.part_plan import Fragment, ShardId, plan_parts
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.proof import prove
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.store import MemoryStore
from behemoth.wire.commands import PeerPlace
from behemoth.wire.peers import MAX_ROWS, CrcsFound
from checkpoint.checkpoint_rig import arena_of, commit_receipts, logical_arrays, toy_layout, write_all_ranks
from checkpoint.company_rig import small_parts, staged_world

WRITE = WriteId("a1-1")
LAYOUT = toy_layout("box")
RANKS_PER_NODE = 2
LEAST = 16
LIMIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""


@pytest.fixture(autouse=True)
def tiny_parts() -> Iterator[None]:
    with small_parts(LEAST, 2 * LEAST):
        yield


@dataclass
class Node:
    """One store process, as far as others are asked."""

    open_writes: OpenWrites
    server: PeerServer
    table: PeerTable
    client: PeerClient

    def exchange(self) -> Exchange:
        local = LocalExchange(self.open_writes, WRITE)
        return NodeExchange(local, WRITE, table=self.table, client=self.client, ranks_per_node=RANKS_PER_NODE)


@contextmanager
def nodes() -> Iterator[list[Node]]:
    num = LAYOUT.mesh.num_ranks // RANKS_PER_NODE
    with ExitStack() as stack:
        listeners = [listen_for_peers("127.0.0.1") for _ in range(num)]
        names = tuple(NodeId(f"n{slot}") for slot in range(num))
        places = tuple(PeerPlace(host="127.0.0.1", port=listener.getsockname()[1], domain=0) for listener in listeners)
        found = []
        for slot, listener in enumerate(listeners):
            open_writes, table, me = OpenWrites(), PeerTable(), identity(names[slot])
            table.see(SeePeers(job=0, slot=slot, nodes=names, places=places))
            node = Node(
                open_writes, PeerServer(listener, me, ExchangeService(open_writes).handlers()), table, PeerClient(me)
            )
            node.server.start()
            stack.callback(node.client.close)
            stack.callback(node.server.close)
            found.append(node)
        yield found


@pytest.mark.parametrize("max_rows", [1, MAX_ROWS])
def test_ranks_of_two_nodes_make_the_same_objects_as_positional_writes(
    monkeypatch: pytest.MonkeyPatch, max_rows: int
) -> None:
    """However many answers it takes to tell which parts were sent."""
    monkeypatch.setattr(exchanging, "MAX_ROWS", max_rows)
    files, objects, arrays = MemoryStore(), MemoryBucket(min_part_bytes=LEAST), logical_arrays(LAYOUT, 1)
    commit_receipts(files, LAYOUT, write_all_ranks(files, LAYOUT, arrays, step=1), step=1)
    asked = [one for rank in range(4) for part in plan_parts(LAYOUT, Rank(rank)).parts for one in part.data]
    assert any(one.rank // RANKS_PER_NODE == 1 for one in asked)
    with nodes() as of, staged_world(LAYOUT, arrays) as world:
        world.place = lambda rank: (of[rank // RANKS_PER_NODE].open_writes, of[rank // RANKS_PER_NODE].exchange())
        commit_receipts(objects, LAYOUT, world.write_all(objects), step=1)
    assert {key: bytes(data) for key, data in objects._objects.items()} == {
        key: bytes(data) for key, data in files._objects.items()
    }


def test_ranks_of_several_nodes_put_the_crcs_behind_their_common_chunks_in_files() -> None:
    layout, arrays = toy_layout(), logical_arrays(LAYOUT, 1)
    alone, files = MemoryStore(), MemoryStore()
    commit_receipts(alone, layout, write_all_ranks(alone, layout, arrays, step=1), step=1)
    across = [
        rank
        for rank in map(Rank, range(4))
        for other in chunk_ends(layout, plan_rank(layout, rank)).rank.tolist()
        if other // RANKS_PER_NODE != rank // RANKS_PER_NODE
    ]
    assert across
    with nodes() as of, staged_world(layout, arrays) as world:
        world.place = lambda rank: (of[rank // RANKS_PER_NODE].open_writes, of[rank // RANKS_PER_NODE].exchange())
        receipts = world.write_all(files)
    candidate = Candidate(run="test", step=Step(1), write_id=WRITE, attempt=Attempt(1))
    assert not len(prove(candidate, layout, receipts).left.row)
    commit_receipts(files, layout, receipts, step=1)
    assert files._objects == alone._objects


def test_files_are_written_without_a_node_that_is_gone_for_the_leader_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks wrote before it went; whoever asks them for CRCs goes on without."""
    monkeypatch.setattr(exchanging, "LOST_LIMIT_S", 0.1)
    layout, arrays, files = toy_layout(), logical_arrays(LAYOUT, 1), MemoryStore()
    with nodes() as of, staged_world(layout, arrays) as world:
        of[0].server.close()
        world.place = lambda rank: (of[rank // RANKS_PER_NODE].open_writes, of[rank // RANKS_PER_NODE].exchange())
        receipts = world.write_all(files)
    candidate = Candidate(run="test", step=Step(1), write_id=WRITE, attempt=Attempt(1))
    assert len(prove(candidate, layout, receipts).left.row)
    commit_receipts(files, layout, receipts, step=1)
    alone = MemoryStore()
    commit_receipts(alone, layout, write_all_ranks(alone, layout, arrays, step=1), step=1)
    assert files._objects == alone._objects


FRAGMENT = Fragment(Rank(3), 0, 0, 0, 1)
"""Of a rank of the second node."""


def without_need(node: Node) -> NodeExchange:
    """The way of a write that can do without answers."""
    local = LocalExchange(node.open_writes, WRITE)
    return NodeExchange(
        local, WRITE, table=node.table, client=node.client, ranks_per_node=RANKS_PER_NODE, is_needed=False
    )


def out_of_time() -> bool:
    raise Timeout("no time left", code=OUT_OF_TIME)


def test_a_node_that_did_not_answer_rests_and_is_then_asked_once_where_a_write_can_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchanging, "LOST_LIMIT_S", 0.3)
    patience: list[bool] = []
    is_there = threading.Event()
    with nodes() as of:
        here = of[0]

        def ask(*_: object, is_patient: bool, **__: object) -> CrcsFound:
            patience.append(is_patient)
            if not is_there.is_set():
                raise Unavailable("node n1: expected a connection, got none")
            return CrcsFound(crcs=(7,))

        monkeypatch.setattr(here.client, "ask", ask)

        def asked(exchange: Exchange) -> list[bool]:
            """The patience of each question of one that is in vain."""
            patience.clear()
            with pytest.raises(Unavailable):
                exchange.crcs(Rank(3), [FRAGMENT], cancelled=lambda: False)
            return list(patience)

        first = asked(without_need(here))
        assert len(first) > 1
        assert set(first) == {True}
        assert asked(without_need(here)) == []
        needed = asked(here.exchange())
        assert len(needed) > 1
        assert set(needed) == {True}
        monkeypatch.setattr(exchanging, "REST_S", 0.0)
        assert asked(without_need(here)) == [False]
        is_there.set()
        assert without_need(here).crcs(Rank(3), [FRAGMENT], cancelled=lambda: False) == [7]
        is_there.clear()
        assert len(asked(without_need(here))) > 1


def test_a_port_that_takes_connections_and_says_nothing_is_waited_for_by_one_save_and_hardly_by_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with nodes() as (asker, _), silent_port(asker) as silent:

        def asked(*, looks: int | None = None) -> int:
            """How many connections a save made in vain, whose time is over after so many looks at it, if ever."""
            left = None if looks is None else [False] * looks
            with pytest.raises((Unavailable, Timeout)):
                without_need(asker).crcs(Rank(3), [FRAGMENT], cancelled=partial(_looked, left))
            return connections(silent)

        monkeypatch.setattr(client_module, "SILENCE_S", 3600.0)
        assert asked(looks=0) == 1
        assert asked(looks=0) == 1  # there was no time to greet in: that says nothing
        monkeypatch.setattr(client_module, "SILENCE_S", 2 * sockets.LOOK_S)
        assert asked(looks=5) == 1
        assert asked() == 0
        monkeypatch.setattr(exchanging, "REST_S", 0.0)
        assert asked() == 1


def _looked(left: list[bool] | None) -> bool:
    """Each look comes LOOK_S after the one before, at the earliest."""
    if left is None:
        return False
    return left.pop() if left else out_of_time()


def test_a_node_that_is_only_slow_is_asked_by_the_next_save_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is over while it waits for its answer, or when it has said that it has none yet."""
    asked = threading.Event()
    with nodes() as (asker, slow):
        find = slow.open_writes.find

        def found(write_id: WriteId, rank: Rank, *, cancelled: Given) -> OpenWrite:
            asked.set()
            return find(write_id, rank, cancelled=cancelled)

        monkeypatch.setattr(slow.open_writes, "find", found)
        for _ in range(2):
            asked.clear()
            with pytest.raises(Timeout, match="no time left"):
                without_need(asker).crcs(Rank(3), [FRAGMENT], cancelled=lambda: asked.is_set() and out_of_time())
            assert asked.is_set()
            assert asker.table.lost_for_s(asker.table.address(1)) is None


def test_a_node_that_says_that_it_is_not_ready_is_not_lost_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE_S", LIMIT_S)
    monkeypatch.setattr(exchanging, "PATIENCE_S", 0.05)
    monkeypatch.setattr(exchanging, "REST_S", 0.0)
    with nodes() as (asker, _):
        peer = asker.table.address(1)
        asker.table.lose(peer)
        with pytest.raises(Conflict):
            without_need(asker).crcs(Rank(3), [FRAGMENT], cancelled=lambda: asker.table.lost_for_s(peer) is None)


def test_a_node_that_is_gone_ends_the_uploads_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanging, "LOST_LIMIT_S", 0.1)
    store = MemoryBucket(min_part_bytes=LEAST)
    with nodes() as of, staged_world(LAYOUT, logical_arrays(LAYOUT, 1)) as world:
        of[1].server.close()
        world.place = lambda rank: (of[rank // RANKS_PER_NODE].open_writes, of[rank // RANKS_PER_NODE].exchange())
        with pytest.raises(Unavailable, match="node n1: expected a connection to"):
            world.write_all(store)
    assert list(store.list_uploads("")) == []


def test_an_answer_that_is_not_there_yet_is_asked_for_again_until_the_asker_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchanging, "PATIENCE_S", 0.05)
    refusals: list[str | None] = []
    with nodes() as of:
        ask = of[0].client.ask

        def told(*given: Any, **named: Any) -> object:
            try:
                return ask(*given, **named)
            except Timeout as error:
                refusals.append(error.code)
                raise

        monkeypatch.setattr(of[0].client, "ask", told)
        with pytest.raises(Conflict, match="given up while its node was asked"):
            of[0].exchange().receipts(Rank(3), Rank(0), first=0, cancelled=lambda: len(refusals) == 3)
    assert refusals == 3 * ["write-waiting"]


def test_what_a_rank_does_not_hold_or_complete_is_refused_by_its_node() -> None:
    store = MemoryBucket(min_part_bytes=LEAST)
    with nodes() as of, staged_world(LAYOUT, logical_arrays(LAYOUT, 1)) as world:
        world.place = lambda rank: (of[rank // RANKS_PER_NODE].open_writes, of[rank // RANKS_PER_NODE].exchange())
        world.write_all(store)
        exchange = of[0].exchange()
        for fragment in (Fragment(Rank(3), 99, 0, 0, 1), Fragment(Rank(3), 0, 0, 1 << 40, 1)):
            with pytest.raises(Invalid, match="node n1: rank 3: expected to hold bytes"):
                exchange.crcs(Rank(3), [fragment], cancelled=lambda: False)
        with pytest.raises(Invalid, match="node n1: rank 3: expected shards that it completes"):
            exchange.upload_ids(Rank(3), [ShardId(99, 0)], cancelled=lambda: False)


def test_any_number_of_upload_ids_of_any_length_comes_in_frames_that_a_node_takes() -> None:
    shards = [ShardId(0, number) for number in range(1000)]
    known = {shard: UploadId(f"{shard.number:04d}{'x' * 4000}") for shard in shards}
    plan = plan_rank(LAYOUT, Rank(3))
    with nodes() as of, arena_of(plan) as arena:
        upload = OpenWrite(plan, arena, 0, 1)
        of[1].open_writes.enter(WRITE, upload)
        upload.begun(known)
        found = of[0].exchange().upload_ids(Rank(3), shards, cancelled=lambda: False)
    assert list(found) == list(known.values())


@contextmanager
def silent_port(asker: Node) -> Iterator[socket.socket]:
    """Where the asker finds every node from now on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        names = (NodeId("n0"), NodeId("n1"))
        places = tuple(PeerPlace(host="127.0.0.1", port=silent.getsockname()[1], domain=0) for _ in names)
        asker.table.see(SeePeers(job=0, slot=0, nodes=names, places=places))
        yield silent


@pytest.mark.parametrize("greets", [False, True])
def test_a_question_to_a_node_that_is_frozen_ends_soon_after_it_is_given_up(
    monkeypatch: pytest.MonkeyPatch, greets: bool
) -> None:
    monkeypatch.setattr(exchanging, "PATIENCE_S", 2 * LIMIT_S)
    monkeypatch.setattr(client_module, "HANDSHAKE_LIMIT_S", 2 * LIMIT_S)
    given_up = threading.Event()
    with nodes() as (asker, _), ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        if not greets:
            stack.enter_context(silent_port(asker))
        fragment = Fragment(Rank(2), 0, 0, 0, 1)
        asked = pool.submit(asker.exchange().crcs, Rank(2), [fragment], cancelled=given_up.is_set)
        with pytest.raises(FutureTimeout):
            asked.result(0.3)
        given_up.set()
        with pytest.raises(Conflict):
            asked.result(LIMIT_S)
