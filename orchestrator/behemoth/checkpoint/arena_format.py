"""The byte layout of an arena and the encoding of its headers. Pure.

Neighbours: `arena`, which maps the memory and keeps the order of changes, and `loads`, which only wants sizes.

    page 0          header: sizes, layout digest, CRC
    per generation  header page, with the mark | CRC-32C of each span | data, each part from a page boundary on
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.crc import crc32c

NUM_GENERATIONS = 2
PAGE_BYTES = 4096
MAX_WRITE_ID_BYTES = 64
CRC_BYTES = 4
MARK_OFFSET = PAGE_BYTES // 2
"""Offset of the progress mark in a generation's header page: two 64-bit words, each written in one store: the sequence,
and the bytes of data that are in place."""

_ARENA = struct.Struct("<8sIIQQQ32s")  # magic, version, rank, spans, data bytes, size, layout digest
_GENERATION = struct.Struct(
    "<8sIIQQ32sI64s"
)  # magic, state, CRC of the CRC table, sequence, step, digest, id length, id
_ARENA_MAGIC, _GENERATION_MAGIC = b"BHMARENA", b"BHMGENER"
_VERSION = 2

ARENA_HEADER_BYTES = _ARENA.size + CRC_BYTES
GENERATION_HEADER_BYTES = _GENERATION.size + CRC_BYTES


class State(IntEnum):
    """What a generation that was begun holds. Only STAGED and VERIFIED are snapshots; VERIFIED also knows its CRCs."""

    COPYING = 1
    STAGED = 2
    VERIFIED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A whole generation. `sequence` orders the snapshots of one arena: steps may run backwards after a restore."""

    generation: int
    sequence: int
    step: Step
    write_id: WriteId
    layout_digest: str
    is_verified: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaHeader:
    """Header of the whole arena."""

    rank: int
    num_spans: int
    data_bytes: int
    size_bytes: int
    digest: str

    def encode(self) -> bytes:
        body = _ARENA.pack(
            _ARENA_MAGIC,
            _VERSION,
            self.rank,
            self.num_spans,
            self.data_bytes,
            self.size_bytes,
            bytes.fromhex(self.digest),
        )
        return _with_crc(body)

    @staticmethod
    def decode(data: bytes) -> ArenaHeader | None:
        """From ARENA_HEADER_BYTES; None when they are no intact header."""
        body = _without_crc(data)
        if body is None:
            return None
        magic, version, rank, num_spans, data_bytes, size_bytes, digest = _ARENA.unpack(body)
        if magic != _ARENA_MAGIC or version != _VERSION:
            return None
        return ArenaHeader(
            rank=rank,
            num_spans=num_spans,
            data_bytes=data_bytes,
            size_bytes=size_bytes,
            digest=digest.hex(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationHeader:
    """Header of one generation. `table_crc` is the CRC-32C of the table of its spans' CRCs."""

    state: State
    table_crc: int
    sequence: int
    step: int
    digest: str
    write_id: str

    def encode(self) -> bytes:
        name = self.write_id.encode()
        body = _GENERATION.pack(
            _GENERATION_MAGIC,
            self.state,
            self.table_crc,
            self.sequence,
            self.step,
            bytes.fromhex(self.digest),
            len(name),
            name,
        )
        return _with_crc(body)

    @staticmethod
    def decode(data: bytes) -> GenerationHeader | None:
        """From GENERATION_HEADER_BYTES; None when they are no intact header."""
        body = _without_crc(data)
        if body is None:
            return None
        magic, state, table_crc, sequence, step, digest, length, name = _GENERATION.unpack(body)
        if magic != _GENERATION_MAGIC:
            return None
        return GenerationHeader(
            state=State(state),
            table_crc=table_crc,
            sequence=sequence,
            step=step,
            digest=digest.hex(),
            write_id=name[:length].decode(),
        )

    @property
    def is_whole(self) -> bool:
        """Whether the generation is a snapshot."""
        return self.state in (State.STAGED, State.VERIFIED)

    def snapshot(self, generation: int) -> Snapshot | None:
        """The snapshot that `generation` is by this header; None unless it is whole."""
        if not self.is_whole:
            return None
        return Snapshot(
            generation=generation,
            sequence=self.sequence,
            step=Step(self.step),
            write_id=WriteId(self.write_id),
            layout_digest=self.digest,
            is_verified=self.state is State.VERIFIED,
        )


def arena_size_bytes(num_spans: int, data_bytes: int) -> int:
    """Size of the memfd for a plan of so many spans and so much data: two generations, their tables and headers."""
    return head_offset(num_spans, data_bytes, NUM_GENERATIONS)


def head_offset(num_spans: int, data_bytes: int, generation: int) -> int:
    """Where the header page of `generation` begins; for generation 2, where it would."""
    return PAGE_BYTES + generation * (_head_bytes(num_spans) + whole_pages(data_bytes))


def data_offset(num_spans: int, data_bytes: int, generation: int) -> int:
    """Where the data of `generation` begins."""
    return head_offset(num_spans, data_bytes, generation) + _head_bytes(num_spans)


def whole_pages(num_bytes: int) -> int:
    """`num_bytes`, rounded up to pages."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def _head_bytes(num_spans: int) -> int:
    return PAGE_BYTES + whole_pages(num_spans * CRC_BYTES)


def _with_crc(body: bytes) -> bytes:
    return body + crc32c(body).to_bytes(CRC_BYTES, "little")


def _without_crc(data: bytes) -> bytes | None:
    body = data[:-CRC_BYTES]
    return body if crc32c(body) == int.from_bytes(data[-CRC_BYTES:], "little") else None
