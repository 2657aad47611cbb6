"""The identity of a node towards its peers, its address, and the two halves of the handshake.

The neighbours `server` and `client` call one half each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from behemoth.agent.peers.sockets import PeerSocket
from behemoth.base.errors import Corrupt, Denied, Unavailable
from behemoth.base.ids import NodeId, RunUid
from behemoth.wire.frames import PROTOCOL_MAJOR, PROTOCOL_MINOR
from behemoth.wire.peers import (
    GREETINGS,
    HELLOS,
    MAX_GREETING_BYTES,
    WELCOMES,
    Greeting,
    PeerHello,
    PeerRejected,
    PeerWelcome,
    fresh_nonce,
    is_proof,
    proof,
)

UNREACHABLE = "peer-unreachable"
"""The code of an error that says that no connection to a node came about."""
SILENT = "peer-silent"
"""The same of a node that did not say in time who it is, or said nothing for long within an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    """`key` is the same on all nodes of a run."""

    run_uid: RunUid
    node: NodeId
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddress:
    """Where `node` listens for its peers."""

    node: NodeId
    host: str
    port: int


def admit(link: PeerSocket, me: PeerIdentity, *, deadline: float) -> NodeId:
    """The half of the node that is asked; who asks. Raises Denied for a stranger, who is told so."""
    greeting = Greeting(major=PROTOCOL_MAJOR, minor=PROTOCOL_MINOR, nonce=fresh_nonce())
    link.send(greeting, deadline=deadline)
    hello = link.receive(HELLOS, limit_bytes=MAX_GREETING_BYTES, deadline=deadline)
    refusal = _refusal(hello, greeting.nonce, me)
    if refusal is not None:
        link.send(refusal, deadline=deadline)
        raise Denied(f"peer connection: {refusal.reason}", code=refusal.code)
    mine = proof(me.key, role="is asked", run_uid=me.run_uid, node=me.node, mine=greeting.nonce, other=hello.nonce)
    link.send(PeerWelcome(node=me.node, proof=mine), deadline=deadline)
    return hello.node


def enter(link: PeerSocket, me: PeerIdentity, expected: NodeId, *, deadline: float) -> None:
    """The half of the node that asks, whose caller says in errors which node that is. Raises Denied when it is not
    welcome, Unavailable when the other end is not the expected node of this run."""
    try:
        greeting = link.receive(GREETINGS, limit_bytes=MAX_GREETING_BYTES, deadline=deadline)
    except Corrupt as error:  # a web server, say, on a port that was free again
        raise _stranger() from error
    if greeting.major != PROTOCOL_MAJOR:
        raise Denied(f"expected peer protocol {PROTOCOL_MAJOR}, got {greeting.major}", code="protocol-version")
    nonce = fresh_nonce()
    mine = proof(me.key, role="asks", run_uid=me.run_uid, node=me.node, mine=nonce, other=greeting.nonce)
    hello = PeerHello(major=PROTOCOL_MAJOR, minor=PROTOCOL_MINOR, node=me.node, nonce=nonce, proof=mine)
    link.send(hello, deadline=deadline)
    answer = link.receive(WELCOMES, limit_bytes=MAX_GREETING_BYTES, deadline=deadline)
    if isinstance(answer, PeerRejected):
        raise Denied(answer.reason, code=answer.code)
    wanted = proof(me.key, role="is asked", run_uid=me.run_uid, node=expected, mine=greeting.nonce, other=nonce)
    if answer.node != expected or not is_proof(answer.proof, wanted):
        raise _stranger()


def _stranger() -> Unavailable:
    return Unavailable("another program listens at its port", code="peer-stranger")


def _refusal(hello: PeerHello, nonce: bytes, me: PeerIdentity) -> PeerRejected | None:
    if hello.major != PROTOCOL_MAJOR:
        reason = f"expected peer protocol {PROTOCOL_MAJOR}, got {hello.major}"
        return PeerRejected(code="protocol-version", reason=reason)
    wanted = proof(me.key, role="asks", run_uid=me.run_uid, node=hello.node, mine=hello.nonce, other=nonce)
    if not is_proof(hello.proof, wanted):
        return PeerRejected(code="bad-proof", reason="expected a node of this run, got one without its key")
    return None
