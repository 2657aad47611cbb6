"""The fork server: a warm, single-threaded process from which workers are forked, and their parent.

It imports what the program declared and then only forks, waits and kills. It must never start a thread, run a tensor
operation or open a connection: a fork copies one thread, and locks held by others stay locked for ever in the child.
So it refuses to fork once it has a second thread. When the agent is gone (its socket ends) it kills all groups below
it and ends. The neighbours are `forkclient`, the agent's end, and `behemoth.wiring.worker`, its `main`.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from behemoth.agent.forkwire import (
    ORDERS,
    Exited,
    KillAll,
    Order,
    SignalAll,
    Spawn,
    Spawned,
    SpawnFailed,
    Warm,
    Warmed,
    WarmFailed,
)
from behemoth.agent.processes import adopt_orphans, children, die_with_parent, kill_group, kill_strays, name_process
from behemoth.base.errors import Unavailable
from behemoth.base.ids import Rank
from behemoth.wire.ends import Peer
from behemoth.wire.session import WORKER_FD_VARIABLE, worker_title

_SEND_LIMIT_S = 10.0
_IDLE_WAIT_MS = 1000
_STRAYS_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a freshly forked worker is to do: call `entrypoint`, or execute `argv`."""

    entrypoint: str | None
    argv: tuple[str, ...]


def tie_to_agent(agent_pid: int) -> None:
    """Tie this process to the agent. While imports run nothing else would notice the agent's death, so the kernel
    kills; `serve` relaxes that, because later the groups below must be ended first."""
    die_with_parent(signal.SIGKILL, parent=agent_pid)


def serve(sock: socket.socket, *, agent_pid: int) -> Job | None:
    """Obey orders until the agent is gone, then return None with no worker left. In a forked worker it returns the
    worker's Job instead, on a clean slate: own session, default signals, output redirected, sockets of the server
    closed."""
    return _ForkServer(sock, agent_pid=agent_pid).run()


class _ForkServer:
    def __init__(self, sock: socket.socket, *, agent_pid: int) -> None:
        self._sock = sock
        self._agent_pid = agent_pid
        self._peer = Peer(sock, ORDERS)
        self._workers: dict[int, Spawn] = {}
        self._kept: set[int] = set()
        self._wakeup_read, self._wakeup_write = -1, -1

    def run(self) -> Job | None:
        adopt_orphans()
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        try:
            return self._loop()
        except Unavailable:
            self._end_everything()
            return None

    def _loop(self) -> Job | None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        poller.register(self._wakeup_read, select.POLLIN)
        while True:
            poller.poll(_IDLE_WAIT_MS)
            with suppress(BlockingIOError):
                os.read(self._wakeup_read, 4096)
            self._reap()
            while (order := self._peer.poll()) is not None:
                job = self._obey(order)
                if job is not None:
                    return job

    def _obey(self, order: Order) -> Job | None:
        match order:
            case Warm():
                self._warm(order)
            case Spawn():
                return self._spawn(order)
            case KillAll():
                self._kill_all()
            case SignalAll():
                self._signal_all(order.signal)
            case _:
                assert_never(order)
        return None

    def _warm(self, order: Warm) -> None:
        for name in order.modules:
            try:
                importlib.import_module(name)
            except BaseException as error:  # a module may raise anything, SystemExit included
                reason = f"import of {name!r} failed: {type(error).__name__}: {error}"
                self._tell(WarmFailed(reason=reason, trace=traceback.format_exc()))
                raise Unavailable(reason) from error
        # The kernel now only wakes this process at the agent's death (it may be stopped by a drill or a debugger);
        # the end of the socket then makes it end its groups, grandchildren included.
        die_with_parent(signal.SIGCONT, parent=self._agent_pid)
        # Processes that an import started (multiprocessing's resource tracker, say) belong to it, not to a worker.
        self._kept = children()
        gc.collect()
        gc.freeze()
        self._tell(Warmed())

    def _spawn(self, order: Spawn) -> Job | None:
        output, session = self._peer.take_descriptor(), self._peer.take_descriptor()
        threads = _foreign_threads()
        if threads:
            reason = f"fork server: expected a single thread after its imports, got {len(threads)} more: {threads}"
            self._refuse(order, f"{reason}; a preloaded module starts threads at import", output, session)
            return None
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._refuse(order, f"fork: {error.strerror}", output, session)
            return None
        if pid == 0:
            return self._become_worker(order, server, output, session)
        os.close(output)
        os.close(session)
        self._workers[pid] = order
        self._tell(Spawned(attempt=order.attempt, local_rank=order.local_rank, pid=pid))
        return None

    def _refuse(self, order: Spawn, reason: str, output: int, session: int) -> None:
        os.close(output)
        os.close(session)
        self._tell(SpawnFailed(attempt=order.attempt, local_rank=order.local_rank, reason=reason))

    def _become_worker(self, order: Spawn, server: int, output: int, session: int) -> Job:
        """In the child. Whatever goes wrong here must end the child, never return into the server's loop."""
        try:
            os.setsid()
            name_process(worker_title(Rank(int(order.environment["RANK"]))))
            die_with_parent(signal.SIGKILL, parent=server)
            _reset_signals()
            self._peer.close()
            os.close(self._wakeup_read)
            os.close(self._wakeup_write)
            _redirect(output)
            os.set_inheritable(session, True)
            os.environ.update(order.environment, **{WORKER_FD_VARIABLE: str(session)})
            gc.enable()
            return Job(entrypoint=order.entrypoint, argv=order.argv)
        except BaseException:  # noqa: BLE001
            os.write(2, traceback.format_exc().encode())
            os._exit(1)

    def _reap(self) -> None:
        """Tell of workers that ended. Their groups are ended while the zombie still holds the number."""
        for pid in _ended_children():
            order = self._workers.pop(pid, None)
            if order is not None:
                kill_group(pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if order is not None:
                self._tell(_exited(order, pid, code))
        if not self._workers:
            kill_strays(self._kept)

    def _kill_all(self) -> None:
        for pid in self._workers:
            kill_group(pid)

    def _signal_all(self, signum: int) -> None:
        for pid in self._workers:
            os.kill(pid, signum)
            os.kill(pid, signal.SIGCONT)

    def _end_everything(self) -> None:
        self._kill_all()
        deadline = time.monotonic() + _STRAYS_LIMIT_S
        for pid in self._workers:
            os.waitpid(pid, 0)
        while kill_strays(()) and time.monotonic() < deadline:
            time.sleep(0.005)

    def _tell(self, report: object) -> None:
        self._peer.send(report, timeout_s=_SEND_LIMIT_S)


def _foreign_threads() -> list[str]:
    """Names of the threads of this process besides the only one that may exist."""
    tasks = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    if not tasks:
        return []
    python = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return python or [(task / "comm").read_text().strip() for task in tasks]


def _ended_children() -> Iterator[int]:
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None:
            return
        yield info.si_pid


def _exited(order: Spawn, pid: int, code: int) -> Exited:
    if code < 0:
        return Exited(attempt=order.attempt, local_rank=order.local_rank, pid=pid, signal=-code)
    return Exited(attempt=order.attempt, local_rank=order.local_rank, pid=pid, exit_code=code)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _redirect(output: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)
    # A worker's lines must reach the log although nobody flushes before a SIGKILL.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)


def _ignore(signum: int, frame: object) -> None:
    """SIGCHLD needs a handler, or the wake-up descriptor stays silent."""
