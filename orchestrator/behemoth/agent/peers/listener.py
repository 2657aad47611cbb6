"""The socket on which this node's store process listens for its peers.

The agent opens it and hands it down, so that the port is known before the process has started, and stays the same when
that process is replaced: whoever connects in between waits in the kernel's queue. The neighbour is `server`.
"""

from __future__ import annotations

import socket

from behemoth.base.errors import Unavailable

_BACKLOG = 1024
"""After a fault many nodes may ask one at the same time."""


def listen_for_peers(host: str) -> socket.socket:
    """On any free port of `host`, this node's address. Raises Unavailable when there is none."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind((host, 0))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(f"peers: expected a free port on {host}, got {error.strerror or error}") from error
    return sock
