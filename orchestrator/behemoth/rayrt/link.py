"""The run's end of the connection to its Ray host: one question at a time, ends collected in between.

No thread and no ray here; every wait is bounded, and a host that does not answer is killed with all below it. The
neighbours are `behemoth.rayrt.host`, the other end, and `behemoth.rayrt.runtime`, which owns this.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, assert_never

from behemoth.base.errors import Internal, Unavailable
from behemoth.rayrt.frames import Answer, Done, Ended, Failed, Imported, Request, answer_decoder, encode_line
from behemoth.rayrt.kept import KeptProcess, KeptSpec, start_kept
from behemoth.rayrt.tempdir import make_temp_dir, remove_left_behind

HOST_FD_ENV = "BEHEMOTH_RAY_HOST_FD"
"""Number of the host's end of the socket pair."""
_LOG_NAME = "host.log"
_LOG_TAIL_BYTES = 2000
_RAY_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONUNBUFFERED": "1",
}
"""No reports home; actors that ask for no GPU leave the machine's GPU variables alone; nothing held back in the log."""


class HostLink:
    """A running host and the socket to it. Used from one thread; made by `open_link`, ended by `close`."""

    def __init__(self, process: KeptProcess, connection: socket.socket, temp_dir: Path, log: BinaryIO) -> None:
        self._process = process
        self._connection = connection
        self._temp_dir = temp_dir
        self._log = log
        self._buffer = b""
        self._answers: deque[Imported | Done | Failed] = deque()
        self._ends: deque[Ended] = deque()
        self._lost = ""

    @property
    def temp_dir(self) -> Path:
        """Folder of the embedded Ray, and of the host's log."""
        return self._temp_dir

    @property
    def keeper_pid(self) -> int:
        """The process that kills all of Ray when it or this process ends."""
        return self._process.keeper_pid

    @property
    def lost(self) -> str:
        """Why the host has gone, with everything below it dead; "" while it is there."""
        return self._lost

    def await_import(self, *, timeout_s: float) -> None:
        """Block until the host has loaded ray. Raises Unavailable when it does not."""
        self._await_answer(timeout_s, "to load ray")

    def ask(self, request: Request, *, timeout_s: float) -> Done:
        """Send a request and wait for its answer. Raises Unavailable when it failed, or when no answer comes, after
        which the host is dead."""
        self._require_host()
        try:
            self._connection.sendall(encode_line(request))
        except OSError as error:
            self._lose(f"ray's host process has ended ({error.strerror})")
            self._require_host()
        match self._await_answer(timeout_s, f"to answer {type(request).__name__.lower()}"):
            case Done() as done:
                return done
            case Failed() as failed:
                raise Unavailable(f"ray: {failed.message}", hint=failed.hint)
            case Imported():
                raise Internal("ray host: expected an answer, got its greeting")
            case other:
                assert_never(other)

    def ends(self, *, timeout_s: float) -> list[Ended]:
        """Ends told since the last call, waiting for one up to `timeout_s`; returns early too when the host is lost."""
        deadline_s = time.monotonic() + timeout_s
        self._receive(0)
        while not self._ends and not self._lost and (left_s := deadline_s - time.monotonic()) > 0:
            self._receive(left_s)
        told = list(self._ends)
        self._ends.clear()
        return told

    def close(self) -> None:
        """Kill the host and everything below it, and remove its folder. Idempotent."""
        self._lose("ray's host process was closed")

    def _await_answer(self, timeout_s: float, what: str) -> Imported | Done | Failed:
        deadline_s = time.monotonic() + timeout_s
        while not self._answers and not self._lost:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                self._lose(f"ray: expected {what} within {timeout_s:.0f} s, got no answer{self._log_tail()}")
                break
            self._receive(left_s)
        if not self._answers:
            self._require_host()
        return self._answers.popleft()

    def _require_host(self) -> None:
        if self._lost:
            raise Unavailable(self._lost, hint="start the run again; its Ray can only be started with it")

    def _receive(self, timeout_s: float) -> None:
        if self._lost or not select.select([self._connection], [], [], timeout_s)[0]:
            return
        try:
            data = self._connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._lose(f"ray's host process has ended{self._log_tail()}")
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._sort(answer_decoder.decode(line))

    def _sort(self, answer: Answer) -> None:
        if isinstance(answer, Ended):
            self._ends.append(answer)
        else:
            self._answers.append(answer)

    def _lose(self, reason: str) -> None:
        if self._lost:
            return
        self._lost = reason
        self._connection.close()
        self._log.close()
        self._process.stop()

    def _log_tail(self) -> str:
        """The last line that the host printed: with a crash, the error. The open file outlives its folder."""
        size_bytes = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size_bytes - _LOG_TAIL_BYTES))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""


def open_link(*, grace_s: float, env: Mapping[str, str]) -> HostLink:
    """Start a host below a keeper in a fresh folder, and remove the folders of killed runs. Does not wait for it.

    `grace_s` is what the host gets when the run has gone before all of it is killed; `env` is laid over this process's
    environment. Raises Unavailable.
    """
    remove_left_behind()
    temp_dir, lock_fd = make_temp_dir()
    log_path = temp_dir / _LOG_NAME
    ours, theirs = socket.socketpair()
    spec = KeptSpec(
        argv=[sys.executable, "-m", "behemoth.rayrt.host"],
        env={**os.environ, **_RAY_ENV, **env, HOST_FD_ENV: str(theirs.fileno())},
        grace_s=grace_s,
        pass_fds=(theirs.fileno(),),
        hold_fds=(lock_fd,),
        remove_dir=str(temp_dir),
        log_path=str(log_path),
    )
    try:
        log_path.touch(mode=0o600)
        return HostLink(start_kept(spec), ours, temp_dir, log_path.open("rb"))
    except OSError as error:
        ours.close()
        raise Unavailable(f"ray host: expected a new process, got {error}") from error
    finally:
        theirs.close()
        os.close(lock_fd)
