"""The store process of a node: `python -m behemoth.wiring.store FD AGENT_PID`. Started by the agent only."""

from __future__ import annotations

import logging
import signal
import socket
import sys

from behemoth.agent.processes import die_with_parent


def main(argv: list[str]) -> int:
    """Serves until the agent is gone; returns 0."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    fd, agent_pid = int(argv[0]), int(argv[1])
    die_with_parent(signal.SIGKILL, parent=agent_pid)
    # Imported once the tie holds: a process that is stopped while it imports must die with its agent too.
    from behemoth.agent.storeserver import serve_store
    from behemoth.storage.open import open_private, open_store

    serve_store(socket.socket(fileno=fd), open_store, open_private)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
