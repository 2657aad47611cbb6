"""Who the peers are: the gang as the agent last told it, by slot.

The neighbours are `client`, which wants an address, and `storewire.SeePeers`, from which the table comes.
"""

from __future__ import annotations

from collections.abc import Sequence

from behemoth.agent.peers.identity import PeerAddress
from behemoth.agent.storewire import SeePeers
from behemoth.base.errors import Unavailable


class PeerTable:
    """Empty until the first gang. Replaced as a whole, so that it may be read from any thread."""

    def __init__(self) -> None:
        self._seen: SeePeers | None = None
        self._addresses: Sequence[PeerAddress | None] = ()

    def see(self, told: SeePeers) -> None:
        places = zip(told.nodes, told.places, strict=False)  # an older coordinator tells no places
        self._addresses = [
            PeerAddress(node=node, host=place.host, port=place.port) if place.port else None for node, place in places
        ]
        self._seen = told

    @property
    def slot(self) -> int:
        """This node's own. Raises Unavailable before the first gang."""
        if self._seen is None:
            raise Unavailable("peers: expected the table of a gang, got none yet", code="peer-unknown")
        return self._seen.slot

    @property
    def num_slots(self) -> int:
        return len(self._addresses)

    def address(self, slot: int) -> PeerAddress:
        """Raises Unavailable when nobody knows where the slot's node listens."""
        found = self._addresses[slot] if 0 <= slot < len(self._addresses) else None
        if found is None:
            raise Unavailable(f"slot {slot}: expected a node that listens for peers, got none", code="peer-unknown")
        return found
