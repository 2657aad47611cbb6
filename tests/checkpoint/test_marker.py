"""Markers are exact to the bit, those of the first release too, and about the write in their name."""

import json

import pytest

from behemoth.base.errors import BehemothError, Corrupt, Invalid
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.framing import framed
from behemoth.checkpoint.marker import MAX_MARKER_BYTES, Marker, read_marker
from behemoth.checkpoint.paths import marker_key
from behemoth.checkpoint.verify_store import verify_store
from behemoth.ports import ObjectInfo
from behemoth.testing.store import MemoryStore
from checkpoint.others_first import OthersFirst
from checkpoint.saved_checkpoint import save, small_layout

MARKER = Marker.of(Step(10), WriteId("a1-1"), reason='it said "no"\nand é', at_us=5)
KEY = "rejected/000000010-a1-1.json"
OLD = b'{"step":10,"write_id":"a1-1","reason":"chunk 3 of \\u00e9 is damaged"}\n'
"""As the first release wrote it."""


def stored(data: bytes, key: str = KEY) -> tuple[MemoryStore, ObjectInfo]:
    store = MemoryStore()
    store.create(key, data)
    return store, ObjectInfo(key=key, size_bytes=len(data))


def test_a_marker_comes_back_as_it_was() -> None:
    assert read_marker(*stored(MARKER.encode())) == MARKER


def test_every_flipped_bit_of_a_marker_is_told() -> None:
    data = MARKER.encode()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BehemothError):
            read_marker(*stored(bytes(flipped)))


def test_a_rejection_of_the_first_release_is_read_and_held_to_its_form() -> None:
    assert read_marker(*stored(OLD)) == Marker.of(Step(10), WriteId("a1-1"), reason="chunk 3 of é is damaged")
    for data in (OLD[:-1], OLD[:-2] + b" }\n", OLD.replace(b":10,", b":11,"), OLD.replace(b"reason", b"reasom")):
        with pytest.raises(Corrupt, match=KEY):
            read_marker(*stored(data))


def test_one_of_a_newer_release_asks_for_an_upgrade() -> None:
    body = json.dumps({"format": {"major": 2, "minor": 0}}).encode()
    with pytest.raises(Invalid, match=r"expected format 1\.x, got 2\.0"):
        read_marker(*stored(framed(body)))


def test_one_that_is_about_another_write_or_far_too_long_is_damage() -> None:
    with pytest.raises(Corrupt, match="expected to be about the write in its name"):
        read_marker(*stored(MARKER.encode(), "pins/000000010-a1-2.json"))
    with pytest.raises(Corrupt, match=f"expected at most {MAX_MARKER_BYTES} bytes"):
        read_marker(*stored(bytes(MAX_MARKER_BYTES + 1)))


def test_one_that_went_after_it_was_listed_is_none() -> None:
    assert read_marker(MemoryStore(), ObjectInfo(key=KEY, size_bytes=9)) is None


def test_a_long_reason_is_cut() -> None:
    marker = Marker.of(Step(1), WriteId("a"), reason="é" * 100_000)
    assert len(marker.reason) == 4096
    assert len(marker.encode()) < MAX_MARKER_BYTES


def test_a_reason_with_bytes_that_are_no_text_is_written_all_the_same() -> None:
    marker = Marker.of(Step(1), WriteId("a"), reason="file " + b"caf\xe9".decode(errors="surrogateescape"))
    assert Marker.decode(marker.encode()).reason == "file caf\\udce9"
    assert len(Marker.of(Step(1), WriteId("a"), reason="\udce9" * 100_000).encode()) < MAX_MARKER_BYTES


def test_a_rejection_with_a_flipped_bit_is_named_and_still_counts() -> None:
    store = MemoryStore()
    save(store, small_layout(), step=10, write_id="a1-1")
    reject(store, commits(store)[0], "chunk 3 is damaged")
    assert verify_store(store) == ()
    (info,) = store.list("rejected")
    data = bytearray(info.size_bytes)
    store.read_into(KEY, offset_bytes=0, into=data)
    for byte in range(len(data)):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << byte % 8
        store.delete([KEY])
        store.create(KEY, flipped)
        (problem,) = verify_store(store)
        assert (problem.kind, problem.object_key, problem.length_bytes) == ("marker", KEY, len(data))
        assert commits(store) == []


def test_markers_are_checked_several_at_a_time_and_told_in_order() -> None:
    inner, writes = MemoryStore(), [(Step(10 + number), WriteId("a1-1")) for number in range(8)]
    keys = [marker_key(folder, *write) for folder in ("rejected", "pins") for write in writes]
    for key in keys:
        inner.create(key, b"rubbish")
    store = OthersFirst(inner, keys[0], num_others=len(keys) - 1)
    found = [problem.object_key for problem in verify_store(store) if problem.kind == "marker"]
    assert found == keys
