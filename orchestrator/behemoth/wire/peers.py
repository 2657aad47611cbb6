"""Messages between the store processes of two nodes: a request, an answer, and raw bytes after the answer.

The node that is asked speaks first. Each end then proves with an HMAC over both ends' nonces that it has the run's peer
key: the key itself never crosses the wire, and another program that listens on an old port learns no proof.
Values only; `behemoth.agent.peers` has both ends. Neighbours: `reports` and `commands`, the wire to the coordinator.

A request of another kind is a class in `PeerRequest`, its answer one in `PeerAnswer`, and a handler at the server.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from behemoth.base.decoding import decode_builtins
from behemoth.base.errors import (
    BehemothError,
    Conflict,
    Corrupt,
    Denied,
    Internal,
    Invalid,
    NotFound,
    Timeout,
    Unavailable,
)
from behemoth.base.ids import NodeId, Rank, RunUid, WriteId
from behemoth.wire.message import Message

MAX_PEER_FRAME_BYTES: Final = 1 << 20
"""Largest request or answer; payloads are not in frames."""
MAX_GREETING_BYTES: Final = 4 << 10
"""Largest frame until the handshake is done."""
NONCE_BYTES: Final = 32
PEER_BUSY: Final = "peer-busy"
"""Code of the error of a node that answers as many others as it can: it is there, and may be asked again."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Nonce: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


# Handshake


class Greeting(Message, frozen=True, kw_only=True):
    """First frame, from the node that is asked."""

    major: int
    minor: int
    nonce: Nonce


class PeerHello(Message, frozen=True, kw_only=True):
    """Sent by the asking node: who it is, and the proof that it has the key."""

    major: int
    minor: int
    node: NodeId
    nonce: Nonce
    proof: bytes


class PeerWelcome(Message, frozen=True, kw_only=True):
    """Sent by the asked node: who it is, and the proof that it has the key too."""

    node: NodeId
    proof: bytes


class PeerRejected(Message, frozen=True, kw_only=True):
    """The connection ends: another protocol, another run, or a wrong proof."""

    code: str
    reason: str


# Requests


class AskSnapshot(Message, frozen=True, kw_only=True):
    """Is the verified snapshot of a write of this rank in this node's memory? SnapshotFound answers, and behind it the
    CRC-32C of every span in plan order, 4 bytes each, little-endian."""

    rank: Rank
    write_id: WriteId
    layout_digest: Name


class AskBytes(Message, frozen=True, kw_only=True):
    """Bytes of a snapshot's data area. BytesFound answers, and behind it the bytes: to be believed only once their CRCs
    are right, since the memory may be filled anew while they travel."""

    rank: Rank
    write_id: WriteId
    sequence: Count
    """As SnapshotFound told it: a later filling of the memory is another snapshot."""
    offset_bytes: Count
    length_bytes: Count


class AskStored(Message, frozen=True, kw_only=True):
    """A part of a unit of a stored object, which the asked node reads whole, once for all who ask. StoredFound answers,
    and behind it the part."""

    key: Annotated[str, msgspec.Meta(max_length=4096)]
    unit_offset_bytes: Count
    unit_length_bytes: Count
    offset_bytes: Count
    """From the beginning of the object, as the unit's."""
    length_bytes: Count


FragmentRow: TypeAlias = tuple[Count, Count, Count, Count]
"""Array, chunk, offset and length: bytes of a chunk's data, by which a rank finds them in its own plan."""
ShardRow: TypeAlias = tuple[Count, Count]
"""Position of an array in the layout, and number of its shard."""
MAX_ROWS: Final = 4096
"""Most rows in one request: as many as fit into a frame."""
MAX_SHARDS: Final = 128
"""Most shards in one request for upload ids, which may be long: as many as fit into the answer's frame."""


class AskFragments(Message, frozen=True, kw_only=True):
    """Bytes that a rank holds of a write which it uploads. BytesFound answers, and behind it the bytes in order."""

    rank: Rank
    write_id: WriteId
    fragments: Annotated[tuple[FragmentRow, ...], msgspec.Meta(max_length=MAX_ROWS)]


class AskFragmentCrcs(Message, frozen=True, kw_only=True):
    """Asks for the CRC-32C of each of these fragments. CrcsFound answers."""

    rank: Rank
    write_id: WriteId
    fragments: Annotated[tuple[FragmentRow, ...], msgspec.Meta(max_length=MAX_ROWS)]


class AskUploadIds(Message, frozen=True, kw_only=True):
    """Asks for the upload ids of shards whose uploads the rank completes. UploadIdsFound answers."""

    rank: Rank
    write_id: WriteId
    shards: Annotated[tuple[ShardRow, ...], msgspec.Meta(max_length=MAX_SHARDS)]


class AskSentParts(Message, frozen=True, kw_only=True):
    """What the rank has uploaded of the shards that `completer` completes, from the `first` of these parts on.
    SentPartsFound answers."""

    rank: Rank
    write_id: WriteId
    completer: Rank
    first: Count


PeerRequest: TypeAlias = (
    AskSnapshot | AskBytes | AskStored | AskFragments | AskFragmentCrcs | AskUploadIds | AskSentParts
)


# Answers


class _Answer(Message, frozen=True, kw_only=True):
    payload_bytes: Count = 0
    """How many raw bytes follow. Behind them, if there are any, comes a PayloadEnd."""


class SnapshotFound(_Answer, frozen=True, kw_only=True):
    """Answers AskSnapshot."""

    sequence: Count
    step: Count
    data_bytes: Count


class BytesFound(_Answer, frozen=True, kw_only=True):
    """Answers AskBytes."""


class StoredFound(_Answer, frozen=True, kw_only=True):
    """Answers AskStored."""

    crc: Count
    """CRC-32C of the part."""
    read_bytes: Count
    """Read from the store because of this question; 0 when somebody had asked before."""


class CrcsFound(_Answer, frozen=True, kw_only=True):
    """Answers AskFragmentCrcs."""

    crcs: tuple[Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)], ...]


class UploadIdsFound(_Answer, frozen=True, kw_only=True):
    """Answers AskUploadIds."""

    upload_ids: tuple[Annotated[str, msgspec.Meta(max_length=4096)], ...]


class SentPartRow(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A part that the store has, as it said, and what chunks have in it, as its sender says."""

    shard: ShardRow
    number: Count
    etag: Name
    crc: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
    size_bytes: Count
    payload_crc: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
    payload_bytes: Count


class SentPartsFound(_Answer, frozen=True, kw_only=True):
    """Answers AskSentParts: MAX_ROWS of them at most."""

    parts: tuple[SentPartRow, ...]


class PeerFailed(_Answer, frozen=True, kw_only=True):
    """Answers any request: a Behemoth error with its class."""

    kind: Literal["Invalid", "NotFound", "Conflict", "Denied", "Unavailable", "Corrupt", "Timeout", "Internal"]
    message: str
    hint: str = ""
    code: str = ""


PeerAnswer: TypeAlias = (
    SnapshotFound | BytesFound | StoredFound | CrcsFound | UploadIdsFound | SentPartsFound | PeerFailed
)


class PayloadEnd(Message, frozen=True, kw_only=True):
    """`is_whole`: what was sent was still what was asked for when the last byte had left."""

    is_whole: bool


GREETINGS: Final = msgspec.msgpack.Decoder(Greeting)
HELLOS: Final = msgspec.msgpack.Decoder(PeerHello)
WELCOMES: Final = msgspec.msgpack.Decoder(PeerWelcome | PeerRejected)
PEER_REQUESTS: Final = msgspec.msgpack.Decoder(PeerRequest)
PEER_ANSWERS: Final = msgspec.msgpack.Decoder(PeerAnswer)
PAYLOAD_ENDS: Final = msgspec.msgpack.Decoder(PayloadEnd)

_MAX_TEXT: Final = 4096
_KINDS: Final[dict[str, type[BehemothError]]] = {
    kind.__name__: kind for kind in (Invalid, NotFound, Conflict, Denied, Unavailable, Corrupt, Timeout, Internal)
}


def fresh_nonce() -> bytes:
    """A random number for one connection."""
    return secrets.token_bytes(NONCE_BYTES)


def proof(
    key: str, *, role: Literal["asks", "is asked"], run_uid: RunUid, node: NodeId, mine: bytes, other: bytes
) -> bytes:
    """An HMAC that only a holder of the key can make: `node` of the run is this end of the connection with these two
    nonces."""
    said = msgspec.msgpack.encode((role, run_uid, node, mine, other))
    return hmac.new(key.encode(), said, hashlib.sha256).digest()


def is_proof(given: bytes, wanted: bytes) -> bool:
    """Whether a proof is right. Compared in constant time."""
    return hmac.compare_digest(given, wanted)


def failed(error: BehemothError) -> PeerFailed:
    """An error as a message."""
    kind = next(one for one in type(error).__mro__ if one.__name__ in _KINDS or one is BehemothError)
    name = kind.__name__ if kind is not BehemothError else "Internal"
    told = {"message": error.message[:_MAX_TEXT], "hint": error.hint[:_MAX_TEXT], "code": error.code[:_MAX_TEXT]}
    return decode_builtins({"kind": name, **told}, PeerFailed)


def error_of(told: PeerFailed, node: NodeId) -> BehemothError:
    """The error that `node` told, to be raised here."""
    return _KINDS[told.kind](f"node {node}: {told.message}", hint=told.hint, code=told.code)
