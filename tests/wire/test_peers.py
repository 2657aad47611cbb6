"""What decodes is a message, and everything else is Corrupt; errors travel with their class."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base import errors
from behemoth.base.errors import BehemothError, Corrupt
from behemoth.base.ids import NodeId, Rank, RunUid, WriteId
from behemoth.wire.frames import decode_body
from behemoth.wire.peers import (
    GREETINGS,
    HELLOS,
    NONCE_BYTES,
    PAYLOAD_ENDS,
    PEER_ANSWERS,
    PEER_REQUESTS,
    WELCOMES,
    AskBytes,
    AskFragmentCrcs,
    AskFragments,
    AskSentParts,
    AskSnapshot,
    AskStored,
    AskUploadIds,
    BytesFound,
    CrcsFound,
    Greeting,
    PayloadEnd,
    PeerFailed,
    PeerHello,
    PeerRejected,
    PeerWelcome,
    SentPartRow,
    SentPartsFound,
    SnapshotFound,
    StoredFound,
    UploadIdsFound,
    error_of,
    failed,
    is_proof,
    proof,
)

NODE = NodeId("n0")
DECODERS = (GREETINGS, HELLOS, WELCOMES, PEER_REQUESTS, PEER_ANSWERS, PAYLOAD_ENDS)
NONCE = bytes(NONCE_BYTES)
SENT = SentPartRow(shard=(0, 1), number=1, etag="e", crc=2, size_bytes=3, payload_crc=4, payload_bytes=5)
MESSAGES = (
    Greeting(major=1, minor=1, nonce=NONCE),
    PeerHello(major=1, minor=1, node=NODE, nonce=NONCE, proof=b"p"),
    PeerWelcome(node=NODE, proof=b"p"),
    PeerRejected(code="bad-proof", reason="no"),
    AskSnapshot(rank=Rank(3), write_id=WriteId("a1-1"), layout_digest="f" * 64),
    AskBytes(rank=Rank(3), write_id=WriteId("a1-1"), sequence=9, offset_bytes=0, length_bytes=1 << 40),
    AskStored(key="a/b", unit_offset_bytes=0, unit_length_bytes=8, offset_bytes=4, length_bytes=4),
    SnapshotFound(sequence=1, step=2, data_bytes=3, payload_bytes=12),
    StoredFound(crc=1, read_bytes=8, payload_bytes=4),
    BytesFound(payload_bytes=12),
    AskFragments(rank=Rank(3), write_id=WriteId("a1-1"), fragments=((0, 1, 2, 3), (4, 5, 6, 7))),
    AskFragmentCrcs(rank=Rank(3), write_id=WriteId("a1-1"), fragments=((0, 1, 2, 3),)),
    AskUploadIds(rank=Rank(3), write_id=WriteId("a1-1"), shards=((0, 1),)),
    AskSentParts(rank=Rank(3), write_id=WriteId("a1-1"), completer=Rank(2), first=0),
    CrcsFound(crcs=(1, 0xFFFFFFFF)),
    UploadIdsFound(upload_ids=("one", "two")),
    SentPartsFound(parts=(SENT,)),
    PeerFailed(kind="NotFound", message="not here"),
    PayloadEnd(is_whole=True),
)
KINDS = [
    errors.Invalid,
    errors.NotFound,
    errors.Conflict,
    errors.Denied,
    errors.Unavailable,
    errors.Corrupt,
    errors.Timeout,
    errors.Internal,
]


def test_no_message_of_a_decoder_is_left_out_here() -> None:
    known = {kind for decoder in DECODERS for kind in get_args(decoder.type) or (decoder.type,)}
    assert {type(message) for message in MESSAGES} == known


def decoded(body: bytes) -> list[object]:
    """What any decoder makes of it; all others say Corrupt."""
    found = []
    for decoder in DECODERS:
        try:
            found.append(decode_body(decoder, body))
        except Corrupt:
            continue
    return found


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_is_one_decoders_and_comes_back_equal(message: msgspec.Struct) -> None:
    assert decoded(msgspec.msgpack.encode(message)) == [message]


@settings(deadline=None)
@given(body=st.binary(max_size=300))
def test_random_bytes_are_corrupt(body: bytes) -> None:
    assert decoded(body) == []


@settings(deadline=None)
@given(message=st.sampled_from(MESSAGES), at=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 8))
def test_a_message_that_was_damaged_is_a_message_or_corrupt(message: object, at: int, byte: int, cut: int) -> None:
    body = bytearray(msgspec.msgpack.encode(message))
    body[at % len(body)] = byte
    for found in decoded(bytes(body[: len(body) - cut])):
        assert isinstance(found, msgspec.Struct)


_plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(message=st.sampled_from(MESSAGES), field=st.integers(0, 9), value=_plain)
def test_a_field_of_another_kind_or_out_of_its_range_is_corrupt_or_in_its_range(
    message: object, field: int, value: object
) -> None:
    said: dict[str, object] = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    said[list(said)[field % len(said)]] = value
    for found in decoded(msgspec.msgpack.encode(said)):
        if isinstance(found, AskBytes):
            assert min(found.sequence, found.offset_bytes, found.length_bytes) >= 0
        if isinstance(found, SnapshotFound | BytesFound | PeerFailed):
            assert 0 <= found.payload_bytes <= 2**62


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_comes_back_as_its_class_with_hint_and_code(kind: type[BehemothError]) -> None:
    error = error_of(failed(kind("went wrong", hint="try this", code="some-code")), NODE)
    assert type(error) is kind
    assert (error.message, error.hint, error.code) == ("node n0: went wrong", "try this", "some-code")


def test_an_error_of_a_class_of_our_own_comes_back_as_what_it_derives_from() -> None:
    class Refined(errors.NotFound):
        pass

    assert type(error_of(failed(Refined("gone")), NODE)) is errors.NotFound
    assert type(error_of(failed(BehemothError("odd")), NODE)) is errors.Internal


def test_a_long_text_of_an_error_is_cut() -> None:
    assert len(msgspec.msgpack.encode(failed(Corrupt("x" * 10_000_000)))) < 10_000


def test_a_proof_holds_for_one_key_role_run_node_and_pair_of_numbers_only() -> None:
    mine, other = bytes(NONCE_BYTES), b"o" * NONCE_BYTES
    good = proof("key", role="asks", run_uid=RunUid("r"), node=NODE, mine=mine, other=other)
    assert is_proof(good, proof("key", role="asks", run_uid=RunUid("r"), node=NODE, mine=mine, other=other))
    others = (
        proof("yek", role="asks", run_uid=RunUid("r"), node=NODE, mine=mine, other=other),
        proof("key", role="is asked", run_uid=RunUid("r"), node=NODE, mine=mine, other=other),
        proof("key", role="asks", run_uid=RunUid("q"), node=NODE, mine=mine, other=other),
        proof("key", role="asks", run_uid=RunUid("r"), node=NodeId("n1"), mine=mine, other=other),
        proof("key", role="asks", run_uid=RunUid("r"), node=NODE, mine=other, other=mine),
    )
    assert not any(is_proof(good, wrong) for wrong in others)
