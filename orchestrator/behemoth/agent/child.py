"""Starts the helper processes of an agent, or of a leader: by exec, never by fork, with one socket to talk through.

The neighbours are `forkclient`, `storelink` and the leader's drains, which know what is said.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

_END_LIMIT_S = 5.0
_STDERR = 2


class Child:
    """A helper process and our end of its socket. Must be created on a thread that lives as long as it shall (an
    agent's main thread), since the kernel ties a parent-death signal to the thread that created the child."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self._process = process
        self.sock = sock

    @staticmethod
    def start(module: str, *, environment: Mapping[str, str], own_session: bool) -> Child:
        """`python -m module FD OUR_PID`. `own_session`: a signal to our group does not reach it, so that it
        can still end what is below it. Raises OSError when the machine has no room for it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR,
                    env=dict(environment),
                    pass_fds=(theirs.fileno(),),
                    start_new_session=own_session,
                )
        except BaseException:
            ours.close()
            raise
        return Child(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        """By force, without waiting: its socket comes to its end when it is gone."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    def kill(self) -> None:
        """End it by force and reap it. Blocks for as long as the kernel needs, at most some seconds."""
        self.end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_LIMIT_S)
