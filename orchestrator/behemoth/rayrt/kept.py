"""A program started under a keeper: ends by itself, on request, or with the process that started it, whole each time.

The starter holds two pipe ends: the lifeline, whose closing (by `stop` or by the starter's death, SIGKILL included)
ends the program and everything below, and the status pipe, which tells that all of it is dead. It decides nothing about
nodes; `behemoth.rayrt.processes` and `behemoth.rayrt.actor` do. The other end is `behemoth.rayrt.keeper`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from behemoth.base.errors import Invalid, Timeout
from behemoth.ports import LIFELINE_VARIABLE

GRACE_S = 0.5
"""Time between the end of an agent's lifeline and SIGKILL: its coordinator has given it time for anything longer."""

_KEEPER = str(Path(__file__).with_name("keeper.py"))
_STOP_MARGIN_S = 12.0
"""The keeper gives up after 10 s of killing; the rest is for a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSpec:
    """What to start. `env` is the whole environment; `grace_s` is what the program gets between the end of its lifeline
    and SIGKILL; `pass_fds` go to the program; `hold_fds` stay open in the keeper alone; `remove_dir` is deleted by the
    keeper once everything below is dead; stdout and stderr are appended to `log_path`, or discarded."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    grace_s: float = GRACE_S
    pass_fds: Sequence[int] = ()
    hold_fds: Sequence[int] = ()
    remove_dir: str = ""
    log_path: str = ""

    def __post_init__(self) -> None:
        require_program(self.argv)


class KeptProcess:
    """Handle on a running keeper. Thread-safe; made by `start_kept`, ended by `stop`."""

    def __init__(self, popen: subprocess.Popen[bytes], *, lifeline_fd: int, status_fd: int, grace_s: float) -> None:
        self._popen = popen
        self._lifeline_fd = lifeline_fd
        self._status_fd = status_fd
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._lifeline_lock = threading.Lock()
        self._reason = ""

    @property
    def keeper_pid(self) -> int:
        """Parent of the program's process."""
        return self._popen.pid

    @property
    def status_fd(self) -> int:
        """Readable once everything is dead, for a caller that polls several; -1 after `wait` or `stop` has told so."""
        return self._status_fd

    def wait(self, *, timeout_s: float) -> str:
        """One sentence on how the program ended, once nothing of it is left; "" if it runs on after `timeout_s`."""
        with self._lock:
            if self._reason or not _is_readable(self._status_fd, timeout_s):
                return self._reason
            self._reason = _sentence(_read_all(self._status_fd))
            self._release()
            return self._reason

    def let_go(self) -> None:
        """Close the lifeline without waiting: the end of the program has begun. Idempotent."""
        with self._lifeline_lock:
            fd, self._lifeline_fd = self._lifeline_fd, -1
        if fd >= 0:
            os.close(fd)

    def stop(self) -> None:
        """End the program and everything below; returns when all is dead. Blocks for `grace_s` and the killing.

        Raises Timeout when something cannot be killed.
        """
        self.let_go()
        if self.wait(timeout_s=self._grace_s + _STOP_MARGIN_S):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._popen.pid, signal.SIGKILL)
        raise Timeout(
            f"keeper process {self._popen.pid}: expected its program to end within "
            f"{self._grace_s + _STOP_MARGIN_S:.1f} s of its kill, got no answer",
            hint="look for processes in state D (uninterruptible sleep) with ps",
        )

    def _release(self) -> None:
        self.let_go()
        os.close(self._status_fd)
        self._status_fd = -1
        self._popen.wait(timeout=_STOP_MARGIN_S)


def start_kept(spec: KeptSpec) -> KeptProcess:
    """Start `spec.argv` under a keeper; returns before the program has been exec'd (that it cannot be is told by
    `wait`). Uses vfork and exec, so that it may be called from a process with threads.

    Raises OSError when the log file or the process cannot be made.
    """
    lifeline_read, lifeline_write = os.pipe()
    status_read, status_write = os.pipe()
    try:
        popen = _popen(spec, lifeline_fd=lifeline_read, status_fd=status_write)
    except BaseException:
        os.close(lifeline_write)
        os.close(status_read)
        raise
    finally:
        os.close(lifeline_read)
        os.close(status_write)
    return KeptProcess(popen, lifeline_fd=lifeline_write, status_fd=status_read, grace_s=spec.grace_s)


def require_program(argv: Sequence[str]) -> None:
    """Raises Invalid for an argv that names no program."""
    if not argv:
        raise Invalid("agent argv: expected a program and its arguments, got an empty list")


def _popen(spec: KeptSpec, *, lifeline_fd: int, status_fd: int) -> subprocess.Popen[bytes]:
    hold = ",".join(str(fd) for fd in spec.hold_fds)
    numbers = [str(lifeline_fd), str(status_fd), str(int(spec.grace_s * 1000)), hold, spec.remove_dir]
    with open(spec.log_path or os.devnull, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", _KEEPER, *numbers, "--", *spec.argv],
            env={**spec.env, LIFELINE_VARIABLE: str(lifeline_fd)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lifeline_fd, status_fd, *spec.pass_fds, *spec.hold_fds),
            start_new_session=True,
        )


def _is_readable(fd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0, int(timeout_s * 1000))))


def _read_all(fd: int) -> str:
    """Everything up to the keeper's end, which follows its one or two short lines at once."""
    chunks = []
    while chunk := os.read(fd, 4096):
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def _sentence(status: str) -> str:
    lines = status.splitlines()
    word, _, rest = lines[0].partition(" ") if lines else ("", "", "")
    match word:
        case "failed":
            return f"agent process could not be started: {rest}"
        case "exit":
            return f"agent process exited with code {rest}"
        case "signal":
            return f"agent process was killed by signal {rest} ({signal.strsignal(int(rest))})"
        case _:
            return "agent process ended with its keeper, which was killed"
