"""Tokens by which agents prove that this run started them.

A token is an HMAC of node and incarnation under the run's secret: a successor of the coordinator that has the secret
recognises every agent without a list, and the token of one node opens no door for another.
"""

from __future__ import annotations

import hashlib
import hmac

from behemoth.base.ids import NodeId


class Tokens:
    """Mints and checks tokens. `secret` has at least 16 random bytes and never leaves this object."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def mint(self, node: NodeId, incarnation: int) -> str:
        """64 hexadecimal digits."""
        return hmac.new(self._secret, f"{node}\0{incarnation}".encode(), hashlib.sha256).hexdigest()

    def peer_key(self) -> str:
        """What nodes of the run prove themselves to each other with: the same for all, and no token of any node."""
        return hmac.new(self._secret, b"peers", hashlib.sha256).hexdigest()

    def is_valid(self, token: str, node: NodeId, incarnation: int) -> bool:
        """Compared in constant time."""
        return hmac.compare_digest(token.encode(), self.mint(node, incarnation).encode())
