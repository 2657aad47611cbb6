"""The store process: all checkpoint I/O of a node, away from the agent's loop and from the workers.

It is given the staging memory by descriptor, and alone holds the store's credentials. Jobs run in threads: the reading
and writing release the GIL. It keeps nothing that its successor would need. The neighbours are `storelink`, the
agent's end, and `store_services`, which does the work.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import assert_never

from behemoth.agent.budget import OVER_BUDGET, OVER_DISK_BUDGET
from behemoth.agent.store_services import StoreServices
from behemoth.agent.storewire import (
    STORE_ORDERS,
    Cancel,
    ClearDisk,
    Failed,
    KeepCopies,
    KeepOnDisk,
    OpenStore,
    Prepare,
    Pull,
    SeePeers,
    ShareMemory,
    StoreOrder,
    StoreReport,
    Write,
)
from behemoth.base.errors import BehemothError, Corrupt, Invalid, NotFound, Unavailable
from behemoth.ports import SavesTo, WritesRanges
from behemoth.wire.ends import Peer

_SEND_LIMIT_S = 30.0
_IDLE_S = 3600.0

_log = logging.getLogger(__name__)


def serve_store(
    sock: socket.socket, open_store: Callable[[str], SavesTo], open_disk: Callable[[str], WritesRanges]
) -> None:
    """Serve orders until the agent is gone. Does not wait for writes under way then: they can never be committed."""
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
            services = StoreServices(order, open_store, open_disk)
            if order.peers is not None:
                services.open_to_peers(order.peers, socket.socket(fileno=peer.take_descriptor()))
            server = _StoreServer(peer, services, num_ranks=order.num_ranks)
        elif server is not None:
            server.obey(order)


class _StoreServer:
    """Reads orders on one thread and works on others; answers are sent one at a time."""

    def __init__(self, peer: Peer[StoreOrder], services: StoreServices, *, num_ranks: int) -> None:
        self._peer = peer
        self._services = services
        self._sending = threading.Lock()
        self._stops: dict[int, threading.Event] = {}  # of jobs that are not answered yet
        # A rank may restore while its last save is still being written.
        self._pool = ThreadPoolExecutor(max_workers=2 * num_ranks, thread_name_prefix="store-job")
        self._copy_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-copy")
        self._disk_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-disk")

    def obey(
        self, order: SeePeers | ShareMemory | KeepCopies | Pull | KeepOnDisk | ClearDisk | Prepare | Write | Cancel
    ) -> None:
        match order:
            case SeePeers():
                self._services.peers.see(order)
            case KeepCopies(ranks=ranks):
                self._services.memories.keep_copies(ranks)
            case Pull():
                self._begin(self._copy_pool, order)
            case KeepOnDisk():
                self._begin(self._disk_pool, order)
            case ClearDisk(job=job):
                self._disk_pool.submit(self._answer, job, partial(self._services.clear_disk, job))
            case ShareMemory():
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

    def _share(self, order: ShareMemory, fd: int) -> None:
        try:
            self._services.memories.share(order.rank, fd, is_copy=order.is_copy)
        except BehemothError as error:
            _log.warning("memory of rank %d is not served to peers: %s", order.rank, error)
        finally:
            os.close(fd)

    def _work(self, order: Prepare | Write | Pull | KeepOnDisk, fd: int, cancelled: Callable[[], bool]) -> None:
        def done() -> StoreReport:
            try:
                return self._services.do(order, fd, cancelled=cancelled)
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
                code=error.code,
                is_over_budget=error.code in (OVER_BUDGET, OVER_DISK_BUDGET),
            )
        except Exception as error:  # noqa: BLE001  # supervisor of a background job: the agent must get an answer
            answer = Failed(job=job, reason=f"{type(error).__name__}: {error}", is_corrupt=False)
        with self._sending:
            self._peer.send(answer, timeout_s=_SEND_LIMIT_S)
