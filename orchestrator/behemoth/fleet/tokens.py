"""Tokens by which agents prove that this run started them.

A token is an HMAC of node and incarnation under the run's secret: a successor of the coordinator that has the secret
recognizes every agent without a list, and the token of one node is of no use to another.
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
        """The token of an incarnation of a node: 64 hexadecimal digits."""
        return hmac.new(self._secret, f"{node}\0{incarnation}".encode(), hashlib.sha256).hexdigest()

    def peer_key(self) -> str:
        """The key with which nodes of the run authenticate to each other: the same for all, and not a token of any
        node."""
        return hmac.new(self._secret, b"peers", hashlib.sha256).hexdigest()

    def is_valid(self, token: str, node: NodeId, incarnation: int) -> bool:
        """Whether a token is that of this incarnation. Compared in constant time."""
        return hmac.compare_digest(token.encode(), self.mint(node, incarnation).encode())
