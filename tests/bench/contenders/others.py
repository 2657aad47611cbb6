"""Plays all other ranks of a giant run: what they would have written is zeros, which sparse files hold without a byte.

A restore reads and checks whole chunks, of which one rank has written a part. So every chunk that it touched gets the
CRC that it has with zeros everywhere else, as the leader writes it when it knows all receipts. Neighbour: `giant`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc import combine, crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import Span
from behemoth.checkpoint.zeros import crc_of_zeros
from behemoth.ports import Part, WritesRanges

Held = tuple[Span, int]
"""A span that a rank holds, and the CRC of its bytes; they are in the file when it is owned."""


def write_chunk_ends(store: WritesRanges, prefix: str, layout: Layout, held: Sequence[Held]) -> None:
    """Write what follows the data of each chunk that these spans, of one rank or of several, touch."""
    for array, chunk, spans in _by_chunk(held):
        grid = grids(layout)[array]
        data_bytes = grid.data_bytes(chunk)
        tail = chunk_tail(grid, zero_filled_crc(spans, data_bytes), data_bytes)
        shard, slot = grid.place(chunk)
        store.write_parts(
            f"{prefix}/{layout.paths[array]}/{grid.shard_key(shard)}",
            size_bytes=grid.file_bytes,
            parts=[Part(offset_bytes=slot * grid.stride_bytes + data_bytes, buffers=[tail])],
        )


def zero_filled_crc(spans: Sequence[Held], num_bytes: int) -> int:
    """CRC-32C of so many bytes that are zero but for the owned spans, in order of their offsets in the chunk."""
    crc, end = crc32c(b""), 0
    for span, of_span in spans:
        if not span.is_owned:
            continue
        crc = combine(crc, crc_of_zeros(span.offset - end), span.offset - end)
        crc = combine(crc, of_span, span.length)
        end = span.offset + span.length
    return combine(crc, crc_of_zeros(num_bytes - end), num_bytes - end)


def _by_chunk(held: Sequence[Held]) -> Iterator[tuple[int, int, list[Held]]]:
    """By array and chunk, each span once: that of its owner if it is among them."""

    def place(one: Held) -> tuple[int, int, int]:
        return one[0].array, one[0].chunk, one[0].offset

    distinct = {place(one): one for one in sorted(held, key=lambda one: one[0].is_owned)}
    in_order = (distinct[key] for key in sorted(distinct))
    for (array, chunk), spans in groupby(in_order, key=lambda one: place(one)[:2]):
        yield array, chunk, list(spans)
