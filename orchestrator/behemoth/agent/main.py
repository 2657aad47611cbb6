"""The agent: one per node. Talks to the coordinator, runs its helper processes, beats; handles no checkpoint bytes.

It ends at the command Leave, when the coordinator rejects it for good, when its starter ends (lifeline), or when the
coordinator stays away for longer than its grace. Whatever the reason, nothing that it started outlives it. The
neighbour is `orders`, which obeys the commands and has the workers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Coroutine, Mapping
from typing import assert_never

from msgspec import structs

from behemoth.agent.arenas import Arenas
from behemoth.agent.copies import Copies
from behemoth.agent.forkclient import ForkClient
from behemoth.agent.forkwire import Exited
from behemoth.agent.keeping import Keeping
from behemoth.agent.link import Introduction, Link, jitter
from behemoth.agent.node_services import NodeServices
from behemoth.agent.orders import Orders
from behemoth.agent.output import Output
from behemoth.agent.peers.listener import listen_for_peers
from behemoth.agent.processes import adopt_orphans
from behemoth.agent.rendezvous import Reservation
from behemoth.agent.saves import Saves
from behemoth.agent.settings import AgentSettings
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import DiskService, OpenStore, PeerService, ShareMemory
from behemoth.base.errors import Denied, Internal
from behemoth.base.ids import Attempt
from behemoth.wire.commands import (
    AbortSave,
    Command,
    CommitSeen,
    GoAhead,
    Leave,
    Rejected,
    SaveAt,
    StartGang,
    StopGang,
    Welcome,
)
from behemoth.wire.setup import EntrypointWork, Setup

EXIT_LEFT = 0
EXIT_ALONE = 1
"""The starter or the coordinator is gone."""
EXIT_REJECTED = 3
EXIT_STUCK = 4
"""A worker cannot be ended; a successor on this node would share its devices, so the node counts as lost."""

_END_LIMIT_S = 8.0
_LAST_WORDS_LIMIT_S = 0.5
_LAST_STOP_LIMIT_S = 3.5
"""How long a StopGang may take that came just before Leave: it may include the stacks of hung workers."""

_log = logging.getLogger(__name__)


class Agent:
    """One life of the program. `environment` is what the agent was started with, without its own settings."""

    def __init__(self, settings: AgentSettings, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._environment = environment
        self._link = Link(settings, self, pause=jitter)
        self._output = Output()
        self._arenas = Arenas()
        self._reservation: Reservation | None = None
        self._for_peers: socket.socket | None = None
        self._services: NodeServices | None = None
        self._orders: Orders | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._grace: asyncio.TimerHandle | None = None
        self._end: asyncio.Future[int] | None = None
        self._is_run_over = False

    async def run(self) -> int:
        """The exit code, after everything below has ended."""
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        adopt_orphans()
        self._output.start()
        if self._settings.lifeline_fd is not None:
            loop.add_reader(self._settings.lifeline_fd, self._watch_lifeline, self._settings.lifeline_fd)
        self._run(self._stay_linked(), "link")
        try:
            return await self._end
        finally:
            await self._close()

    # Listener

    def introduction(self, host: str) -> Introduction:
        """See `link.Listener`."""
        if self._reservation is None:
            self._reservation = Reservation(host)
            self._reservation.renew()
        if self._for_peers is None:
            self._for_peers = listen_for_peers(host)
        return Introduction(
            attempt=self._orders.running if self._orders is not None else Attempt(0),
            rendezvous_port=self._reservation.port,
            peer_port=self._for_peers.getsockname()[1],
        )

    def welcomed(self, welcome: Welcome) -> None:
        """See `link.Listener`."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if self._orders is None:
            self._begin(welcome)
            return
        self._orders.welcomed(welcome.epoch)
        self._orders.tell_again()
        self._beat()

    def command(self, command: Command) -> None:
        """See `link.Listener`."""
        match command:
            case StartGang() | StopGang() | SaveAt() | GoAhead() | CommitSeen() | AbortSave():
                assert self._orders is not None, "the link hears a welcome before any command"
                self._orders.obey(command)
            case Leave():
                _log.info("asked to leave: %s", command.reason)
                self._is_run_over = command.is_run_over
                self._finish(EXIT_LEFT)
            case Rejected():
                _log.error("rejected: %s", command.reason)
                self._finish(EXIT_REJECTED)
            case Welcome():
                _log.warning("a second welcome on one connection changes nothing")
            case _:
                assert_never(command)

    def parted(self, reason: str) -> None:
        """See `link.Listener`."""
        grace_us = self._services.setup.coordinator_grace_us if self._services is not None else 0
        _log.warning("coordinator lost: %s; workers go on for %s us", reason, grace_us)
        if grace_us is not None:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(grace_us / 1e6, self._finish, EXIT_ALONE)

    # Life

    def _begin(self, welcome: Welcome) -> None:
        """The first welcome: warm up, so that even a spare starts workers at once."""
        setup = welcome.setup
        environment = {**self._environment, **setup.environment}
        store = StoreLink(
            environment=environment,
            opening=OpenStore(
                job=0,
                url=setup.store_url,
                threads=setup.io_threads,
                num_ranks=setup.ranks_per_node,
                run_name=setup.run_name,
                peers=self._peer_service(setup),
                share_reads=setup.share_reads,
                disk=self._disk_service(setup),
            ),
            for_peers=self._for_peers,
            shared=self._shared,
        )
        forks = ForkClient(
            environment=environment, modules=_modules(setup), keep=self._helper_pids, on_exit=self._exited
        )
        copies = Copies(store=store, setup=setup)
        keeping = Keeping(store=store, arenas=self._arenas, setup=setup, changed=self._beat)
        saves = Saves(arenas=self._arenas, store=store, send=self._link.send)
        self._services = NodeServices(
            setup=setup,
            forks=forks,
            store=store,
            output=self._output,
            arenas=self._arenas,
            saves=saves,
            copies=copies,
            keeping=keeping,
            send=self._link.send,
            beat=self._beat,
        )
        assert self._reservation is not None, "the agent has introduced itself before it is welcomed"
        self._orders = Orders(
            self._settings.node,
            self._settings.run_uid,
            services=self._services,
            reservation=self._reservation,
            run=self._run,
        )
        self._orders.welcomed(welcome.epoch)
        forks.start()
        store.start()
        self._run(copies.run(), "copies")
        self._run(keeping.run(), "keeping")
        self._run(self._keep_beating(welcome.beat_interval_us / 1e6), "beat")

    def _peer_service(self, setup: Setup) -> PeerService | None:
        if not setup.peer_key:
            return None
        return PeerService(
            run_uid=self._settings.run_uid,
            node=self._settings.node,
            key=setup.peer_key,
            rate_bytes_per_s=setup.peer_rate,
        )

    def _disk_service(self, setup: Setup) -> DiskService | None:
        if setup.local_disk is None:
            return None
        run_uid = self._settings.run_uid
        folder = f"{setup.run_name}-{run_uid}/{self._settings.node}"
        return DiskService(disk=setup.local_disk, folder=folder, run_uid=run_uid)

    def _shared(self) -> list[tuple[ShareMemory, int]]:
        """Memory with something in it."""
        own = [
            (ShareMemory(job=0, rank=one.rank, is_copy=False), one.fd) for one in self._arenas.all() if not one.is_new
        ]
        return own + (self._services.copies.shared() if self._services is not None else [])

    def _helper_pids(self) -> set[int]:
        assert self._services is not None
        return {pid for pid in (self._services.store.pid, self._services.forks.pid) if pid is not None}

    def _exited(self, report: Exited) -> None:
        if self._orders is not None:
            self._orders.exited(report)

    async def _keep_beating(self, interval_s: float) -> None:
        # Agents that were welcomed together shall not beat together.
        await asyncio.sleep(random.uniform(0, interval_s))
        while True:
            self._beat()
            await asyncio.sleep(interval_s)

    def _beat(self) -> None:
        if self._orders is not None:
            assert self._services is not None
            own_disk = self._services.keeping.health.told
            self._link.send(structs.replace(self._orders.beat(), own_disk=own_disk))

    def _watch_lifeline(self, fd: int) -> None:
        if os.read(fd, 1):
            return
        asyncio.get_running_loop().remove_reader(fd)
        _log.warning("the starter is gone")
        self._finish(EXIT_ALONE)

    def _finish(self, code: int) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(code)

    async def _stay_linked(self) -> None:
        try:
            await self._link.run()
        except Denied as error:
            _log.error("rejected: %s", error)
            self._finish(EXIT_REJECTED)

    def _run(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task of ours that fails would leave the node half alive: the agent ends instead, and is replaced."""
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        _log.error("%s failed: %s", task.get_name(), error, exc_info=error)
        self._finish(EXIT_STUCK)

    async def _close(self) -> None:
        """In this order: no new orders, workers, helpers, memory."""
        if self._orders is not None:
            await self._orders.stopped(timeout_s=_LAST_STOP_LIMIT_S)
        await self._link.flush(timeout_s=_LAST_WORDS_LIMIT_S)
        services = self._services
        if services is not None and self._is_run_over:
            await services.keeping.clear()
        for task in list(self._tasks):
            task.cancel()
        if services is not None:
            try:
                async with asyncio.timeout(_END_LIMIT_S):
                    await services.forks.close()
            except (TimeoutError, Internal) as error:
                _log.error("workers are left: %s", error)
            if self._orders is not None:
                self._orders.close()
            services.store.close()
            await services.saves.close()
            services.copies.close()
        self._arenas.close()
        self._output.stop()
        if self._reservation is not None:
            self._reservation.release()
        if self._for_peers is not None:
            self._for_peers.close()


def _modules(setup: Setup) -> tuple[str, ...]:
    """What the fork server imports before any fork."""
    match setup.work:
        case EntrypointWork():
            return (*setup.work.preload, setup.work.entrypoint.partition(":")[0])
        case _:
            return ()
