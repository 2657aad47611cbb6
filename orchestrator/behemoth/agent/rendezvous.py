"""Keeps one TCP port free on this node for the next attempt's MASTER_PORT.

A bound socket that does not listen is the reservation: nobody else can bind the port meanwhile. Ports that the kernel
hands to outgoing connections are avoided, since between the release and rank 0's listen any process might get one.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

from behemoth.base.errors import Unavailable

_LOWEST_PORT = 20_000
_TRIES = 64


class Reservation:
    """Holds a port from `renew` to `release`."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int:
        """The reserved port, 0 when none is held."""
        return 0 if self._socket is None else int(self._socket.getsockname()[1])

    def renew(self) -> None:
        """Give up the port held, if any, and reserve a fresh one. Raises Unavailable when all tries were taken."""
        fresh = _reserve(self._host, avoid=self.port)
        self.release()
        self._socket = fresh

    def release(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _reserve(host: str, *, avoid: int) -> socket.socket:
    highest = _first_ephemeral_port() - 1
    for _ in range(_TRIES):
        port = random.randint(_LOWEST_PORT, highest) if highest > _LOWEST_PORT else 0
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            if port == avoid and port:
                raise OSError("the port that is being given up")
            sock.bind((host, port))
        except OSError:
            sock.close()
            continue
        return sock
    raise Unavailable(f"rendezvous: expected a free port on {host} in {_TRIES} tries, got none")


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32_768
