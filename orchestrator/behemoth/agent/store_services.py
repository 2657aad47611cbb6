"""The services of a store process for its node's ranks: the store, peers, the node's own disk, and work on them.

Which thread does what, and how the agent is told of the end, is the business of the neighbour, `storeserver`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

from behemoth.agent.exchanging import ExchangeService, NodeExchange
from behemoth.agent.memories import Memories
from behemoth.agent.own_disk import OwnDisk
from behemoth.agent.peers.client import PeerClient
from behemoth.agent.peers.identity import PeerIdentity
from behemoth.agent.peers.read_once import ReadOnce
from behemoth.agent.peers.server import PeerServer
from behemoth.agent.peers.shared_reads import SharedReads
from behemoth.agent.peers.snapshots import AskedSnapshot, PeerSnapshot
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.preparing import Preparing
from behemoth.agent.pulling import Pulling
from behemoth.agent.storewire import (
    DiskCleared,
    KeepOnDisk,
    OpenStore,
    PeerService,
    Prepare,
    Prepared,
    Pull,
    StoreReport,
    Write,
    Written,
)
from behemoth.base.errors import Corrupt, Internal, NotFound, Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.exchange import Company, LocalExchange, OpenWrites
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.owner import require_there
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.upload_writer import upload_rank
from behemoth.checkpoint.writer import write_rank
from behemoth.policy.shared_reads import are_shared
from behemoth.ports import KeepsFiles, SavesTo, UploadsParts, WritesRanges
from behemoth.wire.peers import AskStored

SHARED_BYTES = 512 << 20
"""Most bytes that this node keeps of what it has read for other nodes; what was dropped is read again when asked."""


class StoreServices:
    """Thread-safe, but for the own disk: one thread carries out `KeepOnDisk` and calls `clear_disk`. The store is
    opened once it is wanted."""

    def __init__(
        self, opening: OpenStore, open_store: Callable[[str], SavesTo], open_disk: Callable[[str], WritesRanges]
    ) -> None:
        self.peers = PeerTable()
        self.memories = Memories(num_ranks=opening.num_ranks)
        self._opening = opening
        self._open_store = open_store
        self._store: SavesTo | None = None
        self._lock = threading.Lock()
        self._num_writing = 0
        self._threads = max(1, opening.threads // opening.num_ranks)
        self._client: PeerClient | None = None
        self._open_writes = OpenWrites()
        self._once = ReadOnce(self._opened, limit_bytes=SHARED_BYTES)
        self._disk = self._own_disk(open_disk)
        self._preparing = Preparing(
            self.memories,
            store=self._opened,
            peer=self._asked_snapshot,
            shared=self._shared_reads,
            threads=self._threads,
            ranks_per_node=opening.num_ranks,
            run_name=opening.run_name,
            disk=self._disk,
        )
        self._pulling = Pulling(
            self.memories,
            peer=self._peer_snapshot,
            is_writing=self._is_writing,
            rate_bytes_per_s=opening.peers.rate_bytes_per_s if opening.peers is not None else None,
        )

    def open_to_peers(self, service: PeerService, listener: socket.socket) -> None:
        """From now on other nodes are answered, and may be asked."""
        me = PeerIdentity(run_uid=service.run_uid, node=service.node, key=service.key)
        self._client = PeerClient(me)
        handlers = {
            **self.memories.handlers(),
            **ExchangeService(self._open_writes).handlers(),
            AskStored: self._once.answer,
        }
        PeerServer(listener, me, handlers).start()

    def do(self, order: Prepare | Write | Pull | KeepOnDisk, fd: int, *, cancelled: Callable[[], bool]) -> StoreReport:
        """Work on the memory `fd` until the order is carried out. Raises Behemoth's errors when it cannot be."""
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

    def clear_disk(self, job: int) -> DiskCleared:
        self._required_disk().clear()
        return DiskCleared(job=job)

    def _own_disk(self, open_disk: Callable[[str], WritesRanges]) -> OwnDisk | None:
        service = self._opening.disk
        if service is None:
            return None
        return OwnDisk(
            service,
            open_disk(service.disk.path),
            self.memories,
            num_ranks=self._opening.num_ranks,
            is_writing=self._is_writing,
        )

    def _required_disk(self) -> OwnDisk:
        if self._disk is None:
            raise Internal("own disk: expected orders for it only where the run has one, got one")
        return self._disk

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
        """While a save is written: background copies wait, and memory for restores is freed, since a rank that saves
        has restored."""
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
        return PeerSnapshot(self._client, self.peers.address(slot), plan, write_id=write_id, step=step)

    def _asked_snapshot(self, slot: int, plan: RankPlan, write_id: WriteId, step: Step) -> AskedSnapshot:
        """A peer's snapshot for a restore, in which all ranks of the node may ask the same peer: one that is silent is
        not asked again."""
        return AskedSnapshot(self._peer_snapshot(slot, plan, write_id, step), self.peers, slot)

    def _shared_reads(self) -> SharedReads | None:
        """The store as nodes read it together; None where they do not, such as on a disk or in a cache of their own.

        Each node looks for itself at what it has mounted. One that is alone with what it finds asks nobody, or asks
        nodes that answer all the same: it costs reads, and no byte.
        """
        mode, client, num_nodes = self._opening.share_reads, self._client, self.peers.num_slots
        if client is None or not are_shared(mode, num_nodes=num_nodes, is_served=self._is_served):
            return None
        return SharedReads(self._opened(), once=self._once, table=self.peers, client=client)

    def _is_served(self) -> bool:
        store = self._opened()
        return not isinstance(store, KeepsFiles) or store.is_on_network()

    def _write(self, order: Write, fd: int, cancelled: Callable[[], bool]) -> Written:
        layout = Layout.decode(order.layout)
        write = self._writer(self._opened(), order.write_id)
        receipt = write(
            RankWrite(
                prefix=step_prefix(order.step, order.write_id),
                layout=layout,
                plan=plan_rank(layout, order.rank),
                arena=self.memories.mapped(order.rank, fd),
                generation=order.generation,
                attempt=order.attempt,
                threads=self._threads,
                cancelled=cancelled,
                following=order.following,
                updated_step=order.updated_step,
                frozen=order.frozen,
            )
        )
        if (receipt.write_id, receipt.step) != (order.write_id, order.step):
            raise Internal(
                f"rank {order.rank}: expected write {order.write_id} of step {order.step} in generation "
                f"{order.generation}, got {receipt.write_id} of step {receipt.step}"
            )
        return Written(job=order.job, receipt=receipt.encode())

    def _writer(self, store: SavesTo, write_id: WriteId) -> Callable[[RankWrite], Receipt]:
        """Writes a rank's part as the store takes it, in company of all others."""
        exchange = NodeExchange(
            LocalExchange(self._open_writes, write_id),
            write_id,
            table=self.peers,
            client=self._client,
            ranks_per_node=self._opening.num_ranks,
            is_needed=isinstance(store, UploadsParts),
        )
        company = Company(self._open_writes, exchange)
        if isinstance(store, UploadsParts):
            return partial(upload_rank, store, company=company)
        return partial(write_rank, store, company=company)

    def _opened(self) -> SavesTo:
        with self._lock:
            if self._store is None:
                self._store = self._open_store(self._opening.url)
            return self._store
