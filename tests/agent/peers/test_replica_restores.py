"""Nodes that lost their memory together, and the replicas that have a part of it: real sockets, all in one process."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from agent.peers.staged import identity
from behemoth.agent.memories import Memories
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.listener import listen_for_peers
from behemoth.agent.peers.places import MAX_IN_VAIN
from behemoth.agent.peers.read_once import ReadOnce
from behemoth.agent.peers.server import Handler, PeerServer, Reply
from behemoth.agent.peers.shared_reads import SharedReads
from behemoth.agent.peers.snapshots import AskedSnapshot, PeerSnapshot
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.preparing import Preparing
from behemoth.agent.storewire import Prepare, Prepared, RestoreSource, SeePeers
from behemoth.base.errors import Unavailable
from behemoth.base.ids import NodeId, Rank, Slot, Step, WriteId
from behemoth.checkpoint import gathering
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.paths import INDEX, commit_key, step_prefix
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.reader import read_rank, read_rank_into
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from behemoth.wire.commands import PeerPlace
from behemoth.wire.peers import AskBytes, AskSnapshot, AskStored
from checkpoint.other_memory import payload
from checkpoint.saved_checkpoint import save

RANKS_PER_NODE, STEP, WRITE = 2, Step(3), WriteId("a1-1")
MIB = 1 << 20
WEIGHT_BYTES, NORM_BYTES, SHARE_BYTES = MIB, 132, MIB // 2
"""Of one rank: columns that four replicas have, what all ranks have, and a share of moments that nobody else has, with
as many nodes as there are in most tests."""


def layout_on(num_nodes: int) -> Layout:
    """Tensor parallel in a node, data parallel among nodes. The moments of a node's rank are a chunk of 2 MiB, of which
    each data-parallel rank has a share."""
    return Layout(
        mesh=Mesh(tp=RANKS_PER_NODE, dp=num_nodes, edp=num_nodes * RANKS_PER_NODE),
        arrays=(
            ArraySpec(name="model/norm", dtype="float32", shape=(33,)),
            ArraySpec(name="model/w", dtype="float32", shape=(256, 2048), dims=((1, "tp"),)),
            ArraySpec(name="optim/m", dtype="float32", shape=(512, 2048), dims=((1, "tp"),), flat_over="dp"),
        ),
    )


@dataclass
class MemoryNode:
    """What of a store process answers other nodes."""

    memories: Memories
    once: ReadOnce
    table: PeerTable = field(default_factory=PeerTable)
    asked: list[AskSnapshot | AskBytes] = field(default_factory=list)
    given_bytes: list[int] = field(default_factory=list)
    fails_after: int | None = None
    """So many answers with bytes, then none."""

    def handlers(self) -> dict[type, Handler]:
        of_memory = {kind: partial(self._answer, handler) for kind, handler in self.memories.handlers().items()}
        return {**of_memory, AskStored: self.once.answer}

    def _answer(self, handler: Handler, question: AskSnapshot | AskBytes) -> Reply:
        self.asked.append(question)
        reply = handler(question)
        if isinstance(question, AskBytes):
            if len(self.given_bytes) == self.fails_after:
                raise Unavailable("its memory is gone")
            self.given_bytes.append(question.length_bytes)
        return reply


class Fleet:
    """A checkpoint in a store that counts, and in the memory of all nodes but those that were lost."""

    def __init__(self, num_nodes: int, *, lost: Sequence[int]) -> None:
        self.layout = layout_on(num_nodes)
        self.listeners: list[socket.socket] = []
        self.store = MemoryStore()
        record = save(self.store, self.layout, step=STEP, write_id=WRITE)
        assert record is not None
        self.commit = open_commit(self.store, record.ref)
        self.nodes = [
            MemoryNode(Memories(num_ranks=RANKS_PER_NODE), ReadOnce(lambda: self.store, limit_bytes=64 * MIB))
            for _ in range(num_nodes)
        ]
        for slot, node in enumerate(self.nodes):
            for rank in self.ranks_of(slot) if slot not in lost else ():
                self.fill(node.memories, rank)

    @property
    def opening_bytes(self) -> int:
        """Of the commit and its index."""
        keys = {commit_key(STEP), f"{step_prefix(STEP, WRITE)}/{INDEX}"}
        return sum(info.size_bytes for info in self.store.list("") if info.key in keys)

    def ranks_of(self, slot: int) -> list[Rank]:
        return [Rank(slot * RANKS_PER_NODE + local) for local in range(RANKS_PER_NODE)]

    def fill(self, memories: Memories, rank: Rank) -> Arena:
        """As after a save, or a restore, of the rank."""
        plan = plan_rank(self.layout, rank)
        fd = os.memfd_create(f"replica-{rank}", os.MFD_ALLOW_SEALING)
        arena = memories.mapped(rank, fd, new=plan)
        os.close(fd)
        read_rank(self.store, self.commit, self.layout, plan, arena, 0, threads=1)
        return arena

    def damage(self, slot: int, array: str) -> None:
        """A bit of it flips in the memory of all ranks of a node."""
        for rank in self.ranks_of(slot):
            arena = self.fill(self.nodes[slot].memories, rank)
            piece = next(one for one in plan_rank(self.layout, rank).pieces if one.name == array)
            arena.data(0)[piece.arena_offset + piece.nbytes // 2] ^= 1

    @contextmanager
    def listening(
        self, *, is_shared: bool = False, mute: Collection[int] = ()
    ) -> Iterator[Callable[[int, RestoreSource], list[Prepared]]]:
        """How the ranks of a node get back what they lost, one after the other; each must have its own bytes. Nodes
        that are `mute` take connections and say nothing."""
        with ExitStack() as stack:
            places = []
            for slot, node in enumerate(self.nodes):
                listener, me = listen_for_peers("127.0.0.1"), identity(f"n{slot}")
                self.listeners.append(listener)
                server = PeerServer(listener, me, node.handlers())
                if slot not in mute:
                    server.start()
                stack.callback(server.close)
                places.append(PeerPlace(host="127.0.0.1", port=listener.getsockname()[1], domain=slot))
            names = tuple(NodeId(f"n{slot}") for slot in range(len(places)))
            for slot, node in enumerate(self.nodes):
                node.table.see(SeePeers(job=0, slot=slot, nodes=names, places=tuple(places)))
            yield partial(self._restored, is_shared)

    def _restored(self, is_shared: bool, slot: int, source: RestoreSource) -> list[Prepared]:
        client, node = PeerClient(identity(f"n{slot}")), self.nodes[slot]

        def peer(other: int, plan: RankPlan, write_id: WriteId, step: Step) -> AskedSnapshot:
            there = PeerSnapshot(client, node.table.address(other), plan, write_id=write_id, step=step)
            return AskedSnapshot(there, node.table, other)

        def shared() -> SharedReads | None:
            return SharedReads(self.store, once=node.once, table=node.table, client=client) if is_shared else None

        preparing = Preparing(
            node.memories,
            store=lambda: self.store,
            peer=peer,
            shared=shared,
            threads=2,
            ranks_per_node=RANKS_PER_NODE,
            run_name="test",
        )
        try:
            return [self._prepared(preparing, rank, source) for rank in self.ranks_of(slot)]
        finally:
            client.close()

    def _prepared(self, preparing: Preparing, rank: Rank, source: RestoreSource) -> Prepared:
        plan = plan_rank(self.layout, rank)
        fd = os.memfd_create(f"restored-{rank}", os.MFD_ALLOW_SEALING)
        order = Prepare(job=1, rank=rank, layout=self.layout.encode(), is_new=True, source=source)
        prepared = preparing.prepare(order, fd)
        arena = Arena.open(fd)
        os.close(fd)
        assert arena.snapshot(0).is_verified
        expected, data = memoryview(bytearray(plan.data_bytes)), arena.data(0)
        read_rank_into(self.store, self.commit, self.layout, plan, expected, threads=1)
        assert all(payload(data, span) == payload(expected, span) for span in plan.spans)
        return prepared


def source_of(*holders: int) -> RestoreSource:
    return RestoreSource(step=STEP, write_id=WRITE, held_in=None, spare=0, holders=tuple(Slot(one) for one in holders))


def chunk_bytes(fleet: Fleet) -> int:
    """What each rank reads of its moments: all of the chunk in which they lie."""
    assert plan_rank(fleet.layout, Rank(0)).spans[-1].length == 2 * MIB // len(fleet.nodes)
    return 2 * MIB + TRAILER_BYTES


@pytest.mark.parametrize("holder", [2, None])
def test_of_what_replicas_have_nothing_is_read_from_the_store(holder: int | None) -> None:
    fleet = Fleet(4, lost=[1, 2])
    with fleet.listening() as restored:
        first, second = restored(1, source_of(*([holder] if holder is not None else [])))
    for one in (first, second):
        assert (one.origin, one.peer_bytes) == ("several", WEIGHT_BYTES + NORM_BYTES)
    assert first.store_bytes == fleet.opening_bytes + chunk_bytes(fleet)
    assert second.store_bytes == chunk_bytes(fleet)
    lacks = "node n2: memory of rank {}: expected a snapshot of write a1-1, got none"
    assert [one.missed for one in (first, second)] == [lacks.format(rank) if holder else "" for rank in (2, 3)]


def test_what_no_memory_has_is_read_once_by_nodes_that_share_their_reads() -> None:
    fleet = Fleet(4, lost=[1, 2])
    with fleet.listening(is_shared=True) as restored:
        done = [one for slot in (1, 2) for one in restored(slot, source_of())]
    assert [one.origin for one in done] == 4 * ["several"]
    num_chunks = RANKS_PER_NODE  # one for each of the columns, in which both nodes have a share
    assert sum(one.store_bytes for one in done) == fleet.opening_bytes + num_chunks * chunk_bytes(fleet)


def test_a_holder_that_has_the_copy_is_the_only_node_that_is_asked() -> None:
    fleet = Fleet(4, lost=[1])
    for rank in fleet.ranks_of(1):
        fd = os.memfd_create(f"copy-{rank}", os.MFD_ALLOW_SEALING)
        plan = plan_rank(fleet.layout, rank)
        arena = fleet.nodes[2].memories.copy(rank, fd, plan)
        read_rank(fleet.store, fleet.commit, fleet.layout, plan, arena, 0, threads=1)
        os.close(fd)
    with fleet.listening() as restored:
        for one in restored(1, source_of(2)):
            assert (one.origin, one.store_bytes) == ("peer", 0)
            assert one.peer_bytes == WEIGHT_BYTES + NORM_BYTES + SHARE_BYTES
    assert [bool(node.asked) for node in fleet.nodes] == [False, False, True, False]


@pytest.mark.parametrize("left", [0, 2, 3])
def test_one_replica_that_is_left_is_found_and_no_node_is_asked_again_that_has_nothing(left: int) -> None:
    fleet = Fleet(4, lost=[slot for slot in range(4) if slot != left])
    with fleet.listening() as restored:
        assert [one.origin for one in restored(1, source_of())] == 2 * ["several"]
    for slot, node in enumerate(fleet.nodes):
        tables = Counter(type(one).__name__ for one in node.asked)["AskSnapshot"]
        assert tables <= (2 if slot != 1 else 0)  # once for each of the ranks


def test_a_fleet_that_lost_all_memory_is_asked_a_bounded_number_of_times() -> None:
    fleet = Fleet(16, lost=range(16))
    with fleet.listening() as restored:
        for one in restored(1, source_of(2)):
            assert (one.origin, one.peer_bytes) == ("store", 0)
            assert one.missed.startswith("node n2: memory of rank ")
            assert one.missed.count("expected a snapshot") == 1  # nobody promised the others
    num_asked = sum(len(node.asked) for node in fleet.nodes)
    assert num_asked == RANKS_PER_NODE * (1 + MAX_IN_VAIN)


def test_damage_in_one_replica_costs_another_question_and_nothing_of_the_store() -> None:
    whole = Fleet(4, lost=[1, 2])
    damaged = Fleet(4, lost=[1, 2])
    damaged.damage(0, "model/w")
    damaged.damage(3, "model/norm")
    with whole.listening() as restored, damaged.listening() as restored_from_damaged:
        expected, got = restored(1, source_of()), restored_from_damaged(1, source_of())
    assert [one.store_bytes for one in got] == [one.store_bytes for one in expected]
    asked = [one.peer_bytes - WEIGHT_BYTES - NORM_BYTES for one in got]
    assert all(more in (NORM_BYTES, WEIGHT_BYTES) for more in asked)


@pytest.mark.parametrize("num_answers", range(4))
def test_what_a_replica_gave_before_it_was_lost_stays(monkeypatch: pytest.MonkeyPatch, num_answers: int) -> None:
    monkeypatch.setattr(gathering, "BLOCK_BYTES", 4096)  # two questions for each rank, of which any may be the last
    fleet = Fleet(4, lost=[1, 2])
    for slot in (0, 3):
        fleet.nodes[slot].fails_after = num_answers
    with fleet.listening() as restored:
        first, second = restored(1, source_of())
    given = Counter(size for node in fleet.nodes for size in node.given_bytes)
    assert given.keys() <= {WEIGHT_BYTES, NORM_BYTES}
    assert first.peer_bytes + second.peer_bytes == sum(given.elements())
    num_wanted = {WEIGHT_BYTES: 2, NORM_BYTES: 2 if given else 1}  # read together by ranks that have got nothing
    assert first.store_bytes + second.store_bytes == fleet.opening_bytes + 2 * chunk_bytes(fleet) + sum(
        (num - given[size]) * (size + TRAILER_BYTES) for size, num in num_wanted.items()
    )
