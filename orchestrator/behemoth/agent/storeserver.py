"""The store process: all checkpoint I/O of a node, away from the agent's loop and from the workers.

It is given the staging memory by descriptor, and alone holds the store's credentials. Jobs run in threads: the reading
and writing release the GIL. It keeps nothing that its successor would need. The neighbours are `storelink`, the
agent's end, and `behemoth.checkpoint`, which does the work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import assert_never

from behemoth.agent.budget import OVER_BUDGET, OVER_DISK_BUDGET
from behemoth.agent.memories import Memories
from behemoth.agent.own_disk import OwnDisk
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerIdentity
from behemoth.agent.peers.once import ReadOnce
from behemoth.agent.peers.server import PeerServer
from behemoth.agent.peers.shared_reads import SharedReads
from behemoth.agent.peers.snapshots import PeerSnapshot
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.preparing import Preparing
from behemoth.agent.pulling import Pulling
from behemoth.agent.storewire import (
    STORE_ORDERS,
    Cancel,
    ClearDisk,
    DiskCleared,
    Failed,
    KeepCopies,
    KeepOnDisk,
    OpenStore,
    Prepare,
    Prepared,
    Pull,
    SeePeers,
    Share,
    StoreOrder,
    StoreReport,
    Write,
    Written,
)
from behemoth.agent.uploads import NodeExchange, UploadService
from behemoth.base.errors import BehemothError, Corrupt, Internal, Invalid, NotFound, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.exchange import LocalExchange, Uploading
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.owner import require_there
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.upload_writer import upload_rank
from behemoth.checkpoint.writer import write_rank
from behemoth.ports import KeepsFiles, SavesTo, UploadsParts, WritesRanges
from behemoth.wire.ends import Peer
from behemoth.wire.peers import AskStored

SHARED_BYTES = 512 << 20
"""Of what this node has read for others too: who comes later than that makes it read again."""
_SEND_LIMIT_S = 30.0
_IDLE_S = 3600.0

_log = logging.getLogger(__name__)


def serve_store(
    sock: socket.socket, open_store: Callable[[str], SavesTo], open_disk: Callable[[str], WritesRanges]
) -> None:
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
            server = _StoreServer(peer, order, open_store, open_disk)
            server.open_to_peers()
        elif server is not None:
            server.obey(order)


class _StoreServer:
    """Reads orders on one thread and works on others; answers are sent one at a time."""

    def __init__(
        self,
        peer: Peer[StoreOrder],
        opening: OpenStore,
        open_store: Callable[[str], SavesTo],
        open_disk: Callable[[str], WritesRanges],
    ) -> None:
        self._peer = peer
        self._opening = opening
        self._open_store = open_store
        self._store: SavesTo | None = None
        self._lock = threading.Lock()
        # A rank may restore while its last save is still being written.
        self._pool = ThreadPoolExecutor(max_workers=2 * opening.num_ranks, thread_name_prefix="store-job")
        self._threads = max(1, opening.threads // opening.num_ranks)
        self._stops: dict[int, threading.Event] = {}  # of jobs that are not answered yet
        self._peers = PeerTable()
        self._client: PeerClient | None = None
        self._uploading = Uploading()
        self._memories = Memories(num_ranks=opening.num_ranks)
        self._once = ReadOnce(self._opened, limit_bytes=SHARED_BYTES)
        self._num_writing = 0
        self._disk_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-disk")
        self._disk = self._own_disk(open_disk)
        self._preparing = Preparing(
            self._memories,
            store=self._opened,
            peer=self._peer_snapshot,
            shared=self._shared_reads,
            threads=self._threads,
            ranks_per_node=opening.num_ranks,
            run_name=opening.run_name,
            disk=self._disk,
        )
        self._copy_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-copy")
        self._pulling = Pulling(
            self._memories,
            peer=self._peer_snapshot,
            is_writing=self._is_writing,
            rate_bytes_per_s=opening.peers.rate_bytes_per_s if opening.peers is not None else None,
        )

    def open_to_peers(self) -> None:
        """From now on other nodes are answered, if the agent wants that."""
        service = self._opening.peers
        if service is None:
            return
        me = PeerIdentity(run_uid=service.run_uid, node=service.node, key=service.key)
        listener = socket.socket(fileno=self._peer.take_descriptor())
        self._client = PeerClient(me)
        handlers = {
            **self._memories.handlers(),
            **UploadService(self._uploading).handlers(),
            AskStored: self._once.answer,
        }
        PeerServer(listener, me, handlers).start()

    def obey(
        self, order: SeePeers | Share | KeepCopies | Pull | KeepOnDisk | ClearDisk | Prepare | Write | Cancel
    ) -> None:
        match order:
            case SeePeers():
                self._peers.see(order)
            case KeepCopies(ranks=ranks):
                self._memories.keep_copies(ranks)
            case Pull():
                self._begin(self._copy_pool, order)
            case KeepOnDisk():
                self._begin(self._disk_pool, order)
            case ClearDisk(job=job):
                self._disk_pool.submit(self._answer, job, partial(self._clear_disk, job))
            case Share():
                self._pool.submit(self._share, order, self._peer.take_descriptor())
            case Prepare() | Write():
                self._begin(self._pool, order)
            case Cancel(job=job):
                stop = self._stops.get(job)
                if stop is not None:  # else the job was answered while this was on its way
                    stop.set()
            case _:
                assert_never(order)

    def _begin(self, pool: ThreadPoolExecutor, order: Prepare | Write | Pull | KeepOnDisk) -> None:
        stop = self._stops[order.job] = threading.Event()
        pool.submit(self._work, order, self._peer.take_descriptor(), stop.is_set)

    def _share(self, order: Share, fd: int) -> None:
        try:
            self._memories.share(order.rank, fd, is_copy=order.is_copy)
        except BehemothError as error:
            _log.warning("memory of rank %d is not served to peers: %s", order.rank, error)
        finally:
            os.close(fd)

    def _work(self, order: Prepare | Write | Pull | KeepOnDisk, fd: int, cancelled: Callable[[], bool]) -> None:
        def done() -> StoreReport:
            try:
                return self._done(order, fd, cancelled)
            finally:
                os.close(fd)
                del self._stops[order.job]

        self._answer(order.job, done)

    def _answer(self, job: int, work: Callable[[], StoreReport]) -> None:
        """Tell the agent what came of a job: it waits for that, whatever happens."""
        answer: StoreReport
        try:
            answer = work()
        except BehemothError as error:
            reason = f"{error.message}; {error.hint}" if error.hint else error.message
            is_corrupt, is_unfit = isinstance(error, Corrupt | NotFound), isinstance(error, Invalid)
            answer = Failed(
                job=job,
                reason=reason,
                is_corrupt=is_corrupt,
                is_unfit=is_unfit,
                is_over_budget=error.code in (OVER_BUDGET, OVER_DISK_BUDGET),
            )
        except Exception as error:  # noqa: BLE001  # supervisor of a background job: the agent must get an answer
            answer = Failed(job=job, reason=f"{type(error).__name__}: {error}", is_corrupt=False)
        with self._lock:
            self._peer.send(answer, timeout_s=_SEND_LIMIT_S)

    def _done(self, order: Prepare | Write | Pull | KeepOnDisk, fd: int, cancelled: Callable[[], bool]) -> StoreReport:
        match order:
            case Prepare():
                return self._prepare(order, fd)
            case Pull():
                return self._pulling.pull(order, fd, cancelled=cancelled)
            case KeepOnDisk():
                return self._required_disk().keep(order, fd, cancelled=cancelled)
            case Write():
                with self._writing():
                    return self._write(order, fd, cancelled)

    def _own_disk(self, open_disk: Callable[[str], WritesRanges]) -> OwnDisk | None:
        service = self._opening.disk
        if service is None:
            return None
        return OwnDisk(
            service,
            open_disk(service.disk.path),
            self._memories,
            num_ranks=self._opening.num_ranks,
            is_writing=self._is_writing,
        )

    def _required_disk(self) -> OwnDisk:
        if self._disk is None:
            raise Internal("own disk: expected orders for it only where the run has one, got one")
        return self._disk

    def _clear_disk(self, job: int) -> DiskCleared:
        self._required_disk().clear()
        return DiskCleared(job=job)

    def _is_writing(self) -> bool:
        return self._num_writing > 0

    def _prepare(self, order: Prepare, fd: int) -> Prepared:
        try:
            return self._preparing.prepare(order, fd)
        except (Corrupt, NotFound):
            require_there(self._opened(), url=self._opening.url)
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """While this lasts, copies give way. Who saves has restored."""
        self._once.clear()
        self._preparing.clear()
        with self._lock:
            self._num_writing += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_writing -= 1

    def _peer_snapshot(self, slot: int, plan: RankPlan, write_id: WriteId, step: Step) -> PeerSnapshot:
        if self._client is None:
            raise Unavailable("peers: expected to be told the run's key, got none", code="peer-unknown")
        return PeerSnapshot(self._client, self._peers.address(slot), plan, write_id=write_id, step=step)

    def _shared_reads(self) -> SharedReads | None:
        """Where the store is a directory, its own caches and the network below it know better."""
        mode, client = self._opening.share_reads, self._client
        if mode == "never" or client is None or self._peers.num_slots < 2:
            return None
        if mode == "auto" and isinstance(self._opened(), KeepsFiles):
            return None
        return SharedReads(self._opened(), once=self._once, table=self._peers, client=client)

    def _write(self, order: Write, fd: int, cancelled: Callable[[], bool]) -> Written:
        layout = Layout.decode(order.layout)
        plan = plan_rank(layout, order.rank)
        write = self._writer(self._opened(), order.write_id)
        receipt = write(
            step_prefix(order.step, order.write_id),
            layout,
            plan,
            self._memories.mapped(order.rank, fd),
            order.generation,
            attempt=order.attempt,
            threads=self._threads,
            cancelled=cancelled,
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

    def _writer(self, store: SavesTo, write_id: WriteId) -> Callable[..., Receipt]:
        """Writes a rank's part as the store takes it."""
        if not isinstance(store, UploadsParts):
            return partial(write_rank, store)
        exchange = NodeExchange(
            LocalExchange(self._uploading, write_id),
            write_id,
            table=self._peers,
            client=self._client,
            ranks_per_node=self._opening.num_ranks,
        )
        return partial(upload_rank, store, uploading=self._uploading, exchange=exchange)

    def _opened(self) -> SavesTo:
        with self._lock:
            if self._store is None:
                self._store = self._open_store(self._opening.url)
            return self._store
