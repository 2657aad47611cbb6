"""The agent's end of the fork server: starts it, keeps it warm, and replaces it when it dies.

Workers are known here by (attempt, local rank). When the fork server dies its workers die with it (the kernel sees to
that); what those had started becomes the agent's own children and is ended here before anything new is forked.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, assert_never

from behemoth.agent.channel import Channel
from behemoth.agent.child import Child
from behemoth.agent.forkwire import (
    FORK_REPORTS,
    Exited,
    ForkReport,
    KillAll,
    SignalAll,
    Spawn,
    Spawned,
    SpawnFailed,
    Warm,
    Warmed,
    WarmFailed,
)
from behemoth.agent.processes import kill_strays
from behemoth.base.errors import Internal, Invalid, Unavailable
from behemoth.base.ids import Attempt
from behemoth.wire.session import DUMP_SIGNAL

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Libraries read these once, when they are loaded: set before exec, to 1 unless the user says otherwise, because every
rank of the node would otherwise start a thread per core."""

SPAWN_LIMIT_S = 30.0
KILL_LIMIT_S = 3.0
SWEEP_LIMIT_S = 10.0
_POLL_S = 0.005
_DUMP_S = 1.0
"""What a process is given to write its stacks."""
_RESTART_PAUSE_S = 1.0

WorkerKey: TypeAlias = tuple[Attempt, int]

_log = logging.getLogger(__name__)


class ForkClient:
    """Owns the fork server from `start` to `close`. `on_exit` is called once for each worker that ends; a worker that
    died with its fork server is reported as killed by SIGKILL."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        modules: Sequence[str],
        keep: Callable[[], set[int]],
        on_exit: Callable[[Exited], None],
    ) -> None:
        self._environment = {**dict.fromkeys(THREAD_VARIABLES, "1"), **environment}
        self._modules = tuple(modules)
        self._keep = keep
        self._on_exit = on_exit
        self._child: Child | None = None
        self._channel: Channel[ForkReport] | None = None
        self._warm: asyncio.Future[None] | None = None
        self._spawning: dict[WorkerKey, asyncio.Future[int]] = {}
        self._workers: dict[WorkerKey, int] = {}  # pid, 0 while the fork is on its way
        self._replacing: asyncio.Task[None] | None = None
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._is_closing = False

    def start(self) -> None:
        """Returns at once; the imports go on in the fork server."""
        self._child = Child.start("behemoth.wiring.worker", environment=self._environment, own_session=True)
        self._channel = Channel(self._child.sock, FORK_REPORTS, on_message=self._take, on_end=self._lost)
        self._channel.open()
        self._warm = asyncio.get_running_loop().create_future()
        self._warm.add_done_callback(_retrieve)
        self._channel.send(Warm(modules=self._modules))

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def ready(self, *, timeout_s: float) -> None:
        """Wait until the imports are done. Raises Invalid with the traceback when one failed (the next call tries
        again), Timeout, or Unavailable when the fork server died."""
        async with asyncio.timeout(timeout_s):
            if self._replacing is not None:
                await asyncio.wait([self._replacing])
            if self._warm is None:
                self.start()
            assert self._warm is not None
            await asyncio.shield(self._warm)

    async def spawn(self, order: Spawn, *, output: int, session: int) -> int:
        """The pid of the new worker. Raises Unavailable with the reason."""
        if self._channel is None:
            raise Unavailable("fork server: it is being replaced", code="fork-server-gone")
        key = (order.attempt, order.local_rank)
        answer = asyncio.get_running_loop().create_future()
        self._spawning[key] = answer
        self._workers[key] = 0
        self._is_empty.clear()
        self._channel.send(order, (output, session))
        try:
            return int(await asyncio.wait_for(answer, SPAWN_LIMIT_S))
        finally:
            self._spawning.pop(key, None)

    def signal_all(self, signum: int) -> None:
        """To every worker, stopped ones included."""
        if self._channel is not None:
            self._channel.send(SignalAll(signal=signum))

    async def replace_stuck(self) -> None:
        """Imports that take longer than a start may: have their stacks written to the agent's log, and begin anew."""
        if self._child is None or self._warm is None or self._warm.done():
            return
        _log.warning("fork server: its imports of %s do not end; its stacks follow", ", ".join(self._modules))
        os.kill(self._child.pid, DUMP_SIGNAL)
        await asyncio.sleep(_DUMP_S)
        self._lost("its imports did not end")

    async def kill_all(self) -> None:
        """Until no worker is left, nor anything that one started. Raises Internal when the kernel does not let go of
        one (a process in uninterruptible sleep)."""
        if self._channel is not None and not self._is_empty.is_set():
            self._channel.send(KillAll())
            try:
                await asyncio.wait_for(self._is_empty.wait(), KILL_LIMIT_S)
            except TimeoutError:
                self._lost(f"its workers were still there {KILL_LIMIT_S} s after SIGKILL")
        if self._replacing is not None:
            await asyncio.wait([self._replacing], timeout=SWEEP_LIMIT_S)
        if self._workers:
            raise Internal(f"workers {sorted(self._workers.values())} are still there after SIGKILL")

    async def close(self) -> None:
        """Ends the fork server and everything below it."""
        self._is_closing = True
        if self._channel is not None and self._workers:
            self._channel.send(KillAll())
            await asyncio.wait([asyncio.ensure_future(self._is_empty.wait())], timeout=KILL_LIMIT_S)
        self._drop()
        await self._sweep()

    def _take(self, report: ForkReport) -> None:
        match report:
            case Warmed():
                if self._warm is not None and not self._warm.done():
                    self._warm.set_result(None)
            case WarmFailed():
                self._import_failed(report)
            case Spawned():
                self._spawned(report)
            case SpawnFailed():
                self._spawn_failed(report)
            case Exited():
                self._exited(report)
            case _:
                assert_never(report)

    def _import_failed(self, report: WarmFailed) -> None:
        _log.error("fork server: %s\n%s", report.reason, report.trace)
        if self._warm is not None and not self._warm.done():
            self._warm.set_exception(Invalid(f"{report.trace}{report.reason}", code="preload-failed"))
        self._drop()
        self._warm = None

    def _spawned(self, report: Spawned) -> None:
        key = (report.attempt, report.local_rank)
        self._workers[key] = report.pid
        answer = self._spawning.pop(key, None)
        if answer is not None and not answer.done():
            answer.set_result(report.pid)

    def _spawn_failed(self, report: SpawnFailed) -> None:
        key = (report.attempt, report.local_rank)
        self._forget(key)
        answer = self._spawning.pop(key, None)
        if answer is not None and not answer.done():
            answer.set_exception(Unavailable(report.reason, code="fork-refused"))

    def _exited(self, report: Exited) -> None:
        self._forget((report.attempt, report.local_rank))
        self._on_exit(report)

    def _forget(self, key: WorkerKey) -> None:
        self._workers.pop(key, None)
        if not self._workers:
            self._is_empty.set()

    def _lost(self, reason: str) -> None:
        if self._is_closing or self._replacing is not None:
            return
        _log.warning("fork server: %s; starting another", reason)
        was_warm = self._warm is not None and self._warm.done()
        gone = Unavailable(f"fork server: {reason}", code="fork-server-gone")
        for answer in self._spawning.values():
            if not answer.done():
                answer.set_exception(gone)
        if self._warm is not None and not self._warm.done():
            self._warm.set_exception(gone)
        self._drop()
        self._replacing = asyncio.create_task(
            self._replace(0 if was_warm else _RESTART_PAUSE_S), name="replace-fork-server"
        )

    async def _replace(self, pause_s: float) -> None:
        try:
            await self._sweep()
            for (attempt, local_rank), pid in list(self._workers.items()):
                self._exited(Exited(attempt=attempt, local_rank=local_rank, pid=pid, signal=9))
            await asyncio.sleep(pause_s)
            self.start()
        except Internal as error:
            _log.error("fork server: %s", error)
        finally:
            self._replacing = None

    async def _sweep(self) -> None:
        """End every process that became a child of this agent when its parent died."""
        deadline = asyncio.get_running_loop().time() + SWEEP_LIMIT_S
        while kill_strays(self._keep()):
            if asyncio.get_running_loop().time() > deadline:
                raise Internal("processes of dead workers are still there after SIGKILL")
            await asyncio.sleep(_POLL_S)

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._child is not None:
            self._child.kill()
            self._child = None


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting for the imports yet: an error is then kept for the first who asks, without a warning."""
    if not future.cancelled():
        future.exception()
