"""A node that says nothing makes one rank of a node wait, and not each of them."""

from __future__ import annotations

import socket

import pytest
from msgspec.structs import replace

from agent.peers.test_replica_restores import Fleet, source_of
from behemoth.agent.peers import client
from behemoth.agent.peers.identity import UNREACHABLE, PeerAddress
from behemoth.agent.peers.sockets import PeerSocket
from behemoth.agent.peers.table import PeerTable
from behemoth.agent.storewire import SeePeers
from behemoth.base.errors import BehemothError, Conflict, NotFound, Timeout, Unavailable
from behemoth.base.ids import NodeId
from behemoth.checkpoint.exchange import Given
from behemoth.wire.commands import PeerPlace

GANG = SeePeers(
    job=0,
    slot=0,
    nodes=(NodeId("n0"), NodeId("n1")),
    places=tuple(PeerPlace(host="127.0.0.1", port=4000 + slot, domain=slot) for slot in range(2)),
)


def connections(listener: socket.socket) -> int:
    """How many came to it that nobody has taken."""
    listener.setblocking(False)
    found = 0
    try:
        while True:
            listener.accept()[0].close()
            found += 1
    except BlockingIOError:
        return found


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_second_rank_of_a_node_does_not_ask_the_holder_that_let_the_first_one_wait(
    monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    greeted = client.PeerClient._greeted

    def but_for_n2(self: client.PeerClient, peer: PeerAddress, cancelled: Given, is_patient: bool) -> PeerSocket:
        return greeted(self, peer, cancelled, is_patient and peer.node != "n2")

    monkeypatch.setattr(client, "SILENCE_S", 0.2)
    monkeypatch.setattr(client.PeerClient, "_greeted", but_for_n2)
    fleet = Fleet(4, lost=[1, 2])
    with fleet.listening(mute=[2], is_shared=is_shared) as restored:
        first, second = restored(1, source_of(2))
        assert connections(fleet.listeners[2]) == 1
    assert first.missed.startswith("node n2: expected a greeting from 127.0.0.1:")
    assert "slot 2: expected an answer, got none when this node asked before, in this attempt" in second.missed
    assert [one.origin for one in (first, second)] == 2 * ["several"]


@pytest.mark.parametrize("error", [Timeout("no answer"), Unavailable("no route", code=UNREACHABLE)])
def test_a_node_that_was_silent_is_asked_again_by_the_next_gang(error: BehemothError) -> None:
    table = PeerTable()
    table.see(GANG)
    with pytest.raises(type(error)), table.asking(1):
        raise error
    with pytest.raises(Unavailable, match="slot 1: expected an answer, got none"), table.asking(1):
        pass
    assert table.address(1).port == 4001  # who copies in the background goes on asking
    table.see(GANG)
    with table.asking(1) as address:
        assert address.port == 4001


@pytest.mark.parametrize("error", [NotFound("no snapshot"), Conflict("damaged"), Unavailable("it is busy")])
def test_a_node_that_answered_is_asked_again_whatever_it_said(error: BehemothError) -> None:
    table = PeerTable()
    table.see(GANG)
    with pytest.raises(type(error)), table.asking(1):
        raise error
    with table.asking(1) as address:
        assert address.node == "n1"


def test_silence_that_is_noticed_late_says_nothing_of_the_gang_that_came_meanwhile() -> None:
    table = PeerTable()
    table.see(GANG)

    def late() -> None:
        with table.asking(1):
            table.see(GANG)
            raise Timeout("no answer")

    with pytest.raises(Timeout):
        late()
    with table.asking(1) as address:
        assert address.node == "n1"


def test_a_node_that_does_not_answer_is_not_lost_for_the_gang_that_comes_after() -> None:
    table = PeerTable()
    table.see(GANG)
    asked = table.address(1)
    table.lose(asked)
    assert table.lost_for_s(asked) is not None
    table.see(replace(GANG, nodes=(NodeId("n0"), NodeId("n2"))))
    table.lose(asked)  # a question to it that was under way
    assert table.lost_for_s(table.address(1)) is None
    table.see(GANG)
    assert table.lost_for_s(asked) is None
