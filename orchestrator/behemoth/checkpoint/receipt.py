"""Receipts: what a rank reports to have written. The leader proves a checkpoint from these alone.

Receipts cross the network as msgpack, are bounded, and decode strictly. Neighbours: `rank_write` makes them, `commit`
judges, `span_table` has what there are millions of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import msgspec

from behemoth.base.decoding import UNDECODABLE, decode_msgpack, told
from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.span_table import MAX_TABLE_BYTES, SpanTable, WrittenSpan

MAX_RECEIPT_BYTES = 64 << 20
FORMAT_VERSION = 5
END_LEFT = -1
"""In `Receipt.ends`, of a chunk behind which the rank put no CRC."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Crc = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class WrittenShard(NamedTuple):
    """An object that the rank has completed, or sent as one, with the CRC-32C of all its bytes as the store has them.
    `array` counts in the layout's order, `shard` in that of its grid.

    `payload_crc`: that of its chunks' data and padding alone, as it was sent; None where who sent the bytes is who told
    their spans' CRCs, as in imports and saves of DCP. Those receipts cross no network, and none that does has None."""

    array: _Count
    shard: _Count
    crc: _Crc
    payload_crc: _Crc | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Evidence about all that a rank holds (it wrote only a part of that), for `freshness.check_fresh`.

    `updated_step` is the last step in which its program announced an update, `frozen` the arrays that it declared not
    to move, counted in the layout's order, `held_crc` the CRC of the others (`freshness.held_crc`).
    """

    updated_step: _Count
    held_crc: _Crc
    frozen: tuple[_Count, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One rank's report of one write. Without `freshness` the rank's state is not judged. `shards` is set where objects
    are uploaded, `ends` where files are written."""

    rank: _Count
    attempt: _Count
    step: _Count
    write_id: _Text
    layout_digest: _Text
    spans: Sequence[WrittenSpan]
    freshness: Freshness | msgspec.UnsetType = msgspec.UNSET
    shards: tuple[WrittenShard, ...] | msgspec.UnsetType = msgspec.UNSET
    ends: bytes | msgspec.UnsetType = msgspec.UNSET
    """Of each chunk of up to `MAX_SPANS` spans that the rank's spans end and do not begin, in their order, the CRC-32C
    of its data as the rank put it behind them: little-endian, 8 bytes each, END_LEFT where it did not. Such ends, or
    all when this is left out, are the leader's to write."""

    def encode(self) -> bytes:
        """Versioned msgpack, for `decode`. Raises Invalid when it would be larger than a peer accepts."""
        table = SpanTable.of(self.spans)
        header = replace(self, spans=())
        data = msgspec.msgpack.encode(
            _Document(version=FORMAT_VERSION, receipt=header, num_spans=len(table), spans=table.encode())
        )
        if len(data) > MAX_RECEIPT_BYTES or table.num_bytes > MAX_TABLE_BYTES:
            raise Invalid(
                f"receipt of rank {self.rank}: expected at most {MAX_RECEIPT_BYTES} bytes and {MAX_TABLE_BYTES} of "
                f"spans, got {len(data)} and {table.num_bytes} bytes"
            )
        return data

    @staticmethod
    def decode(data: bytes) -> Receipt:
        """Its spans are a SpanTable. Raises Corrupt for what is no receipt of this version, and for one that does not
        say what was sent of an object: then replicas that differ would not show."""
        if len(data) > MAX_RECEIPT_BYTES:
            raise Corrupt(f"receipt: expected at most {MAX_RECEIPT_BYTES} bytes, got {len(data)}", code="receipt-size")
        try:
            version = decode_msgpack(data, _Version).version
            if version != FORMAT_VERSION:
                raise Corrupt(
                    f"receipt: expected version {FORMAT_VERSION}, got {version}",
                    hint="all agents of a run must be of one release",
                    code="receipt-version",
                )
            document = decode_msgpack(data, _Document)
        except UNDECODABLE as error:
            raise Corrupt(
                f"receipt: expected a msgpack document, got: {told(error)}", code="receipt-rubbish"
            ) from error
        receipt = document.receipt
        for shard in receipt.shards or ():
            if shard.payload_crc is None:
                raise Corrupt(
                    f"receipt of rank {receipt.rank}: expected the CRC of what was sent of shard {shard.shard} of "
                    f"array {shard.array}, got none",
                    code="receipt-rubbish",
                )
        # Nobody has seen it yet, and a second one for each of 32,000 takes as long as all that is decoded of it.
        object.__setattr__(receipt, "spans", SpanTable.decode(document.spans, num_spans=document.num_spans))
        return receipt


class _Version(msgspec.Struct, kw_only=True):
    version: int


class _Document(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`receipt` has no spans: they stand beside it, packed."""

    version: int
    receipt: Receipt
    num_spans: _Count
    spans: bytes
