"""Spans as columns: what goes in comes out, whatever it is, and rubbish is refused before it takes memory."""

from __future__ import annotations

import zlib
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint import receipt as receipt_module
from behemoth.checkpoint import span_table
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.span_table import MAX_TABLE_BYTES, GrowingTable, SpanTable, WrittenSpan

HEAD = b"\x04" + bytes(8)
"""Of a table of two spans: what stands before its packed columns."""
COUNTS = st.integers(0, (1 << 32) - 1) | st.integers(0, (1 << 63) - 1)
CRCS = st.integers(0, (1 << 32) - 1)
SPANS = st.lists(
    st.builds(
        WrittenSpan,
        array=st.integers(0, (1 << 32) - 1),
        chunk=COUNTS,
        offset=COUNTS,
        length=COUNTS,
        crc=CRCS,
        is_zero=st.booleans(),
    ),
    max_size=5,
)


@settings(max_examples=50, deadline=None)
@given(spans=SPANS)
def test_the_spans_of_a_receipt_arrive_as_they_were(spans: list[WrittenSpan]) -> None:
    receipt = Receipt(rank=3, attempt=1, step=7, write_id="a1-1", layout_digest="d", spans=tuple(spans))
    came = Receipt.decode(receipt.encode())
    assert came == receipt
    assert list(came.spans) == spans
    assert all(type(span.crc) is int and type(span.is_zero) is bool for span in came.spans)
    assert came.encode() == receipt.encode()
    assert len(came.spans) == len(spans)
    assert came.spans[1:] == tuple(spans[1:])


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(SPANS, max_size=4), loose=st.integers(1, 6))
def test_spans_that_come_in_any_order_are_told_in_theirs_and_the_last_word_counts(
    batches: list[list[WrittenSpan]], loose: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(span_table, "_LOOSE_SPANS", loose)
        growing = GrowingTable()
        for batch in batches:
            growing.add(batch)
        last = {span[:3]: span for batch in batches for span in batch}
        assert list(growing.table()) == [span for _, span in sorted(last.items())]


def test_other_spans_are_not_equal() -> None:
    span = WrittenSpan(0, 1, 2, 3, 4, is_zero=False)
    table = SpanTable.of([span])
    assert table != SpanTable.of([span._replace(crc=5)])
    assert table != (span, span)
    assert table != "span"


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"rubbish",
        HEAD,
        HEAD + zlib.compress(bytes(33)),
        HEAD + zlib.compress(bytes(35)),
        HEAD + zlib.compress(bytes(34))[:-1],
        HEAD + zlib.compress(bytes(34)) + b"x",
        HEAD + zlib.compress(bytes(1 << 30)),
        b"\x08" + HEAD[1:] + zlib.compress(bytes(34)),
        b"\x05" + HEAD[1:] + zlib.compress(bytes(34)),
    ],
    ids=["nothing", "no zlib", "no columns", "short", "long", "cut", "more behind", "a bomb", "other", "no width"],
)
def test_what_is_not_exactly_so_many_spans_is_corrupt(packed: bytes) -> None:
    with pytest.raises(Corrupt) as caught:
        SpanTable.decode(packed, num_spans=2)
    assert caught.value.code == "receipt-spans"


def test_numbers_have_as_many_bytes_as_the_table_says() -> None:
    for head, num_bytes in ((HEAD, 34), (b"\x08" + HEAD[1:], 58)):
        table = SpanTable.decode(head + zlib.compress(bytes(num_bytes)), num_spans=2)
        assert table == (WrittenSpan(0, 0, 0, 0, 0, False),) * 2
        assert table == SpanTable.of(list(table))


def test_more_spans_than_a_receipt_may_have_are_refused_before_they_are_unpacked() -> None:
    with pytest.raises(Corrupt, match=f"spans: expected at most {MAX_TABLE_BYTES} bytes"):
        SpanTable.decode(b"", num_spans=1 << 40)


def test_a_receipt_that_no_peer_would_accept_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt_module, "MAX_TABLE_BYTES", 40)
    span = WrittenSpan(0, 1, 2, 3, 4, is_zero=False)
    receipt = Receipt(rank=3, attempt=1, step=7, write_id="a1-1", layout_digest="d", spans=(span,))
    receipt.encode()
    with pytest.raises(Invalid, match="receipt of rank 3: expected at most"):
        replace(receipt, spans=(span, span)).encode()


@pytest.mark.parametrize("version", [1, 2, 3, 4, 6])
def test_a_receipt_of_another_release_is_refused_by_its_version(version: int) -> None:
    document = msgspec.msgpack.encode({"version": version, "receipt": {"rank": 0, "spans": [[0, 0, 0, 1, 2, False]]}})
    with pytest.raises(Corrupt, match=f"receipt: expected version 5, got {version}") as caught:
        Receipt.decode(document)
    assert "one release" in caught.value.hint


@given(batches=st.lists(SPANS, max_size=4))
def test_columns_of_several_tables_are_those_of_all_their_spans(batches: list[list[WrittenSpan]]) -> None:
    spans = [span for batch in batches for span in batch]
    columns = SpanTable.joined(list(map(SpanTable.of, batches)))
    assert columns._fields == WrittenSpan._fields
    assert [column.tolist() for column in columns] == [[span[at] for span in spans] for at in range(6)]
