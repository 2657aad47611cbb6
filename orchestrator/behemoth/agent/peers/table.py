"""The peers of this node: the gang as the agent last described it, by slot, and which of them have been silent since.

The neighbours are `client`, which wants an address, and `storewire.SeePeers`, from which the table comes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from behemoth.agent.peers.identity import SILENT, UNREACHABLE, PeerAddress
from behemoth.agent.storewire import SeePeers
from behemoth.base.errors import BehemothError, Timeout, Unavailable


class _Gang(NamedTuple):
    """`slot`: this node's own. `silent` grows while the gang is there; whoever answers is not `lost` any more, of whom
    it is kept when that showed last."""

    slot: int | None
    addresses: tuple[PeerAddress | None, ...]
    silent: set[int]
    lost: dict[PeerAddress, float]


class PeerTable:
    """Empty until the first gang. Replaced as a whole, so that it may be read from any thread; two questions may be
    answered from two gangs."""

    def __init__(self) -> None:
        self._gang = _Gang(None, (), set(), {})

    def see(self, told: SeePeers) -> None:
        """From now on this gang is asked; what was learnt of an earlier one is forgotten."""
        places = zip(told.nodes, told.places, strict=False)  # an older coordinator tells no places
        addresses = tuple(
            PeerAddress(node=node, host=place.host, port=place.port) if place.port else None for node, place in places
        )
        self._gang = _Gang(told.slot, addresses, set(), {})

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
        return _address(self._gang, slot)

    def lost_for_s(self, peer: PeerAddress) -> float | None:
        """How long ago a node last showed that it does not answer questions of a save; None when it does."""
        lost_s = self._gang.lost.get(peer)
        return None if lost_s is None else time.monotonic() - lost_s

    def answered(self, peer: PeerAddress) -> None:
        self._gang.lost.pop(peer, None)

    def lose(self, peer: PeerAddress) -> None:
        """Until it answers again, or there is another gang. By address: a question may be over after its gang."""
        self._gang.lost[peer] = time.monotonic()

    @contextmanager
    def asking(self, slot: int) -> Iterator[PeerAddress]:
        """Where the slot's node listens, for one question of a restore. Raises Unavailable when nobody knows, or when
        it let a question of this node wait in vain since the gang began: its other ranks would wait as long again."""
        gang = self._gang
        if slot in gang.silent:
            raise Unavailable(
                f"slot {slot}: expected an answer, got none when this node asked before, in this attempt",
                hint="it is asked again by the next attempt",
                code=SILENT,
            )
        try:
            yield _address(gang, slot)
        except BehemothError as error:
            if isinstance(error, Timeout) or error.code == UNREACHABLE:
                gang.silent.add(slot)
            raise


def _address(gang: _Gang, slot: int) -> PeerAddress:
    found = gang.addresses[slot] if 0 <= slot < len(gang.addresses) else None
    if found is None:
        raise Unavailable(f"slot {slot}: expected a node that listens for peers, got none", code="peer-unknown")
    return found
