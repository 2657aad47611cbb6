"""The store process: all checkpoint I/O of a node, away from the agent's loop and from the workers.

It is given the staging memory by descriptor, and alone holds the store's credentials. Jobs run in threads: the reading
and writing release the GIL. It keeps nothing that its successor would need. The neighbours are `storelink`, the
agent's end, and `behemoth.checkpoint`, which does the work.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import assert_never

from behemoth.agent.memories import Memories
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerIdentity
from behemoth.agent.peers.server import PeerServer
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.storewire import (
    STORE_ORDERS,
    Cancel,
    Failed,
    OpenStore,
    Prepare,
    Prepared,
    SeePeers,
    Source,
    StoreOrder,
    StoreReport,
    Write,
    Written,
)
from behemoth.base.errors import BehemothError, Corrupt, Internal, Invalid, NotFound, Unavailable
from behemoth.base.ids import Rank
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.conversion import AS_SAVED, Intake
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import left_out, origins
from behemoth.checkpoint.owner import require_there
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.reader import Commit, open_commit, read_rank
from behemoth.checkpoint.writer import write_rank
from behemoth.ports import CachesFiles, ObjectStore, WritesRanges
from behemoth.state.effect import CommitRef
from behemoth.wire.session import Peer

FILES_BYTES = 64 << 20
"""A smaller part of a rank goes through its staging memory even when the page cache holds it: the copy costs
milliseconds, and memory has it at the next restart even if the files are gone from the cache by then."""
NUM_PROBES = 64
"""How many chunks of a rank, evenly spread, are asked for in the page cache: to ask for all takes a while."""
_SEND_LIMIT_S = 30.0
_IDLE_S = 3600.0


def serve_store(sock: socket.socket, open_store: Callable[[str], WritesRanges]) -> None:
    """Obey until the agent is gone. What is being written then is not committed, hence rubbish: nobody waits."""
    server: _StoreServer | None = None
    peer = Peer(sock, STORE_ORDERS)
    while True:
        try:
            order = peer.receive(timeout_s=_IDLE_S, what="orders of the agent")
        except TimeoutError:
            continue
        except Unavailable:
            return
        if isinstance(order, OpenStore):
            server = _StoreServer(peer, order, open_store)
            server.open_to_peers()
        elif server is not None:
            server.obey(order)


class _StoreServer:
    """Reads orders on one thread and works on others; answers are sent one at a time."""

    def __init__(self, peer: Peer[StoreOrder], opening: OpenStore, open_store: Callable[[str], WritesRanges]) -> None:
        self._peer = peer
        self._opening = opening
        self._open_store = open_store
        self._store: WritesRanges | None = None
        self._lock = threading.Lock()
        # A rank may restore while its last save is still being written.
        self._pool = ThreadPoolExecutor(max_workers=2 * opening.num_ranks, thread_name_prefix="store-job")
        self._threads = max(1, opening.threads // opening.num_ranks)
        self._cancelled: set[int] = set()
        self._peers = PeerTable()
        self._client: PeerClient | None = None
        self._memories = Memories(num_ranks=opening.num_ranks)
        # A worker that died while its memory was being prepared has a successor that asks for the same: one at a time.
        self._preparing: defaultdict[Rank, threading.Lock] = defaultdict(threading.Lock)

    def open_to_peers(self) -> None:
        """From now on other nodes are answered, if the agent wants that."""
        service = self._opening.peers
        if service is None:
            return
        me = PeerIdentity(run_uid=service.run_uid, node=service.node, key=service.key)
        listener = socket.socket(fileno=self._peer.take_descriptor())
        self._client = PeerClient(me)
        PeerServer(listener, me, self._memories.handlers()).start()

    def obey(self, order: SeePeers | Prepare | Write | Cancel) -> None:
        match order:
            case SeePeers():
                self._peers.see(order)
            case Prepare() | Write():
                self._pool.submit(self._work, order, self._peer.take_descriptor())
            case Cancel():
                self._cancelled.add(order.job)
            case _:
                assert_never(order)

    def _work(self, order: Prepare | Write, fd: int) -> None:
        answer: StoreReport
        try:
            answer = self._prepare(order, fd) if isinstance(order, Prepare) else self._write(order, fd)
        except BehemothError as error:
            reason = f"{error.message}; {error.hint}" if error.hint else error.message
            is_corrupt, is_unfit = isinstance(error, Corrupt | NotFound), isinstance(error, Invalid)
            answer = Failed(job=order.job, reason=reason, is_corrupt=is_corrupt, is_unfit=is_unfit)
        except Exception as error:  # noqa: BLE001  # supervisor of a background job: the agent must get an answer
            answer = Failed(job=order.job, reason=f"{type(error).__name__}: {error}", is_corrupt=False)
        finally:
            os.close(fd)
            self._cancelled.discard(order.job)
        with self._lock:
            self._peer.send(answer, timeout_s=_SEND_LIMIT_S)

    def _prepare(self, order: Prepare, fd: int) -> Prepared:
        with self._lock:
            preparing = self._preparing[order.rank]
        with preparing:
            try:
                return self._prepare_alone(order, fd)
            except (Corrupt, NotFound):
                require_there(self._opened(), url=self._opening.url)
                raise

    def _prepare_alone(self, order: Prepare, fd: int) -> Prepared:
        layout, plan = _plan(order.layout, order)
        arena = self._memories.mapped(order.rank, fd, new=plan if order.is_new else None)
        source = order.source
        if source is None:
            return Prepared(job=order.job, generation=None, origin="nothing")
        if source.held_in is not None and _holds(arena, source, source.held_in):
            return Prepared(job=order.job, generation=source.held_in, origin="memory")
        store = self._opened()
        commit = open_commit(store, CommitRef(step=source.step, write_id=source.write_id, size_bytes=0))
        folder = None if source.must_read else _files(store, commit, layout, plan)
        if folder is not None:
            return Prepared(job=order.job, generation=None, origin="files", folder=folder)
        intake = Intake.decode(order.intake) if order.intake else AS_SAVED
        read_rank(store, commit, layout, plan, arena, source.spare, threads=self._threads, intake=intake)
        nothing = left_out(layout, origins(commit.layout, layout, step=source.step, intake=intake))
        return Prepared(job=order.job, generation=source.spare, origin="store", left_out=nothing)

    def _write(self, order: Write, fd: int) -> Written:
        layout, plan = _plan(order.layout, order)
        receipt = write_rank(
            self._opened(),
            step_prefix(order.step, order.write_id),
            layout,
            plan,
            self._memories.mapped(order.rank, fd),
            order.generation,
            attempt=order.attempt,
            threads=self._threads,
            cancelled=lambda: order.job in self._cancelled,
            following=order.following,
            updated_step=order.updated_step,
            frozen=order.frozen,
        )
        if (receipt.write_id, receipt.step) != (order.write_id, order.step):
            raise Internal(
                f"rank {order.rank}: expected write {order.write_id} of step {order.step} in generation "
                f"{order.generation}, got {receipt.write_id} of step {receipt.step}"
            )
        return Written(job=order.job, receipt=receipt.encode())

    def _opened(self) -> WritesRanges:
        with self._lock:
            if self._store is None:
                self._store = self._open_store(self._opening.url)
            return self._store


def _files(store: ObjectStore, commit: Commit, layout: Layout, plan: RankPlan) -> str | None:
    """Where the rank finds its part itself; None when it is small, not in the page cache, or of another layout: only a
    file of the rank's own layout has its spans in it."""
    if commit.layout.digest != layout.digest:
        return None
    if plan.data_bytes < FILES_BYTES or not isinstance(store, CachesFiles):
        return None
    ranges = []
    for span in plan.spans[:: -(-len(plan.spans) // NUM_PROBES)]:
        grid = grids(layout)[span.array]
        key = commit.shard_key(span.array, span.shard)
        ranges.append((key, grid.chunk_offset_bytes(span.chunk), grid.stride_bytes))
    return store.cached_folder(commit.record.prefix, ranges)


def _plan(encoded: bytes, order: Prepare | Write) -> tuple[Layout, RankPlan]:
    layout = Layout.decode(encoded)
    return layout, plan_rank(layout, order.rank)


def _holds(arena: Arena, source: Source, generation: int) -> bool:
    """True when memory holds exactly the wanted snapshot, with its CRCs, which the worker checks as it copies."""
    try:
        snapshot = arena.snapshot(generation)
    except NotFound:
        return False
    return snapshot.is_verified and (snapshot.write_id, snapshot.step) == (source.write_id, source.step)
