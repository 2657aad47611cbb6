"""Who the peers are: the gang as the agent last told it, by slot.

The neighbours are `client`, which wants an address, and `storewire.SeePeers`, from which the table comes.
"""

from __future__ import annotations

from typing import NamedTuple

from behemoth.agent.peers.identity import PeerAddress
from behemoth.agent.storewire import SeePeers
from behemoth.base.errors import Unavailable


class _Gang(NamedTuple):
    """`slot`: this node's own."""

    slot: int | None
    addresses: tuple[PeerAddress | None, ...]


class PeerTable:
    """Empty until the first gang. Replaced as a whole, so that it may be read from any thread; two questions may be
    answered from two gangs."""

    def __init__(self) -> None:
        self._gang = _Gang(None, ())

    def see(self, told: SeePeers) -> None:
        places = zip(told.nodes, told.places, strict=False)  # an older coordinator tells no places
        addresses = tuple(
            PeerAddress(node=node, host=place.host, port=place.port) if place.port else None for node, place in places
        )
        self._gang = _Gang(told.slot, addresses)

    @property
    def slot(self) -> int:
        """This node's own. Raises Unavailable before the first gang."""
        slot = self._gang.slot
        if slot is None:
            raise Unavailable("peers: expected the table of a gang, got none yet", code="peer-unknown")
        return slot

    @property
    def num_slots(self) -> int:
        return len(self._gang.addresses)

    def address(self, slot: int) -> PeerAddress:
        """Raises Unavailable when nobody knows where the slot's node listens."""
        addresses = self._gang.addresses
        found = addresses[slot] if 0 <= slot < len(addresses) else None
        if found is None:
            raise Unavailable(f"slot {slot}: expected a node that listens for peers, got none", code="peer-unknown")
        return found
