"""The drain process of a run: `python -m behemoth.wiring.drain FD LEADER_PID`. Started by the leader only."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import suppress

from behemoth.agent.processes import die_with_parent


def main(argv: list[str]) -> int:
    """Serves until the leader is gone; returns 0."""
    fd, leader_pid = int(argv[0]), int(argv[1])
    die_with_parent(signal.SIGKILL, parent=leader_pid)
    # Imported once the tie holds: a process that is stopped while it imports must die with its leader too.
    from behemoth.app.drains.process import serve_drains
    from behemoth.storage.open import open_store

    with suppress(BrokenPipeError, ConnectionResetError):  # the leader has gone while something was told
        serve_drains(socket.socket(fileno=fd), open_store)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
