"""Four nodes that restore one checkpoint from one store, all in one process: real sockets and threads, a memory as
the store, every byte that is read from it counted there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from agent.peers.staged import identity
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.listener import listen_for_peers
from behemoth.agent.peers.read_once import ReadOnce
from behemoth.agent.peers.server import Handler, PeerServer
from behemoth.agent.peers.shared_reads import SharedReads
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.storewire import SeePeers
from behemoth.base.ids import NodeId, Rank
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_rank
from behemoth.checkpoint.units import ChunkUnits
from behemoth.ports import ObjectStore
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from behemoth.wire.commands import PeerPlace
from behemoth.wire.peers import AskStored
from checkpoint.saved_checkpoint import save

NODES = 4
MIB = 1 << 20
LIMIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""


def layout_on(*, tp: int = 1, dp: int = 1) -> Layout:
    """Columns over tp, and moments as flat ranges over dp, whose bounds are no chunks' bounds."""
    return Layout(
        mesh=Mesh(tp=tp, dp=dp, edp=tp * dp),
        arrays=(
            ArraySpec(name="model/w", dtype="float32", shape=(512, 2048), dims=((1, "tp"),)),
            ArraySpec(name="optim/m", dtype="float32", shape=(512, 2048), dims=((1, "tp"),), flat_over="dp"),
            ArraySpec(name="optim/v", dtype="float32", shape=(700, 1031), flat_over="dp"),
        ),
    )


def needed_bytes(layout: Layout) -> int:
    return 4 * sum(one.shape[0] * one.shape[1] for one in layout.arrays)


@dataclass
class Node:
    """What of a store process takes part in a restore from the store."""

    slot: int
    once: ReadOnce
    client: PeerClient
    table: PeerTable

    def reads(self, store: ObjectStore) -> SharedReads:
        return SharedReads(store, once=self.once, table=self.table, client=self.client)


@contextmanager
def fleet(
    store: ObjectStore, *, limit_bytes: int = 64 * MIB, broken: dict[int, Handler] | None = None
) -> Iterator[list[Node]]:
    """`broken`: what some slots answer instead of the truth."""
    with ExitStack() as stack:
        nodes, places = [], []
        for slot in range(NODES):
            listener = listen_for_peers("127.0.0.1")
            places.append(PeerPlace(host="127.0.0.1", port=listener.getsockname()[1], domain=slot))
            me = identity(f"n{slot}")
            node = Node(slot, ReadOnce(lambda: store, limit_bytes=limit_bytes), PeerClient(me), PeerTable())
            handler = (broken or {}).get(slot, node.once.answer)
            server = PeerServer(listener, me, {AskStored: handler})
            server.start()
            stack.callback(server.close)
            stack.callback(node.client.close)
            nodes.append(node)
        names = tuple(NodeId(f"n{slot}") for slot in range(NODES))
        for node in nodes:
            node.table.see(SeePeers(job=0, slot=node.slot, nodes=names, places=tuple(places)))
        yield nodes


class Saved:
    """A checkpoint in memory; what is read through `store` is counted."""

    def __init__(self, layout: Layout) -> None:
        self.memory = MemoryStore()
        record = save(self.memory, layout, step=3, write_id="a1-1")
        assert record is not None
        self.ref = record.ref
        self.layout = layout
        self.store = CountingStore(self.memory)

    def size_of(self, key: str) -> int:
        return next(one.size_bytes for one in self.memory.list("") if one.key == key)

    def restored(self, reads: ObjectStore, commit: Commit, layout: Layout, rank: int) -> bytes:
        """All that a rank of `layout` holds, as its arena has it."""
        plan = plan_rank(layout, Rank(rank))
        fd = os.memfd_create("shared-reads")
        arena = Arena.format(fd, plan)
        os.close(fd)
        read_rank(reads, commit, layout, plan, arena, 0, threads=2)
        data = arena.data(0)
        content = b"".join(bytes(data[one.arena_offset : one.arena_offset + one.length]) for one in plan.spans)
        del data
        arena.close()
        return content

    def restore_all(self, nodes: Sequence[Node], layout: Layout) -> list[SharedReads]:
        """Every rank opens the commit and restores, all at the same time; each must get the bytes that it would have
        read alone."""
        num_ranks = layout.mesh.num_ranks
        start = threading.Barrier(num_ranks)

        def work(rank: int) -> tuple[SharedReads, bytes]:
            reads = nodes[rank * NODES // num_ranks].reads(self.store)
            start.wait(LIMIT_S)
            commit = open_commit(reads, self.ref)
            reads.unit_of = ChunkUnits(commit).unit_of
            return reads, self.restored(reads, commit, layout, rank)

        with ThreadPoolExecutor(num_ranks) as pool:
            done = list(pool.map(work, range(num_ranks)))
        alone = open_commit(self.memory, self.ref)
        for rank, (_, content) in enumerate(done):
            assert content == self.restored(self.memory, alone, layout, rank)
        return [reads for reads, _ in done]

    def restore_alone(self, layout: Layout) -> None:
        """Every rank reads for itself."""
        for rank in range(layout.mesh.num_ranks):
            commit = open_commit(self.store, self.ref)
            self.restored(self.store, commit, layout, rank)


MESHES = {
    "same mesh, flat": (layout_on(dp=4), layout_on(dp=4)),
    "dp halved": (layout_on(dp=8), layout_on(dp=4)),
    "dp doubled": (layout_on(dp=4), layout_on(dp=8)),
    "tp halved": (layout_on(tp=4, dp=2), layout_on(tp=2, dp=2)),
    "tp doubled": (layout_on(tp=2, dp=2), layout_on(tp=4, dp=2)),
    "tp for dp": (layout_on(tp=4), layout_on(dp=4)),
}
