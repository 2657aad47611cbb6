"""Compares the CRCs that ranks put behind chunks of several spans with what these spans add up to. Pure.

A wrong one would make a checkpoint of which a chunk cannot be read. Neighbours: `proof`, whose part this is, and
`end_writer`, by which ranks wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.chunk_ends import MAX_SPANS
from behemoth.checkpoint.chunk_sums import ChunkSums
from behemoth.checkpoint.grid import Ints
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.receipt import END_LEFT, Receipt


class Chunks(NamedTuple):
    """Chunks as columns. `row`: of the span that ends the chunk, among those of all receipts, one after the other.
    `data_crc`: what the spans, `num_spans` of them, add up to."""

    row: Ints
    array: Ints
    chunk: Ints
    data_crc: Ints
    num_spans: Ints


NO_ENDS_LEFT = Chunks(*np.zeros((5, 0), dtype=np.int64))


def ends_left(layout: Layout, receipts: Sequence[Receipt], first_rows: Ints, sums: ChunkSums) -> Chunks:
    """Those of the chunks of several spans behind which nobody put a CRC. `first_rows`: of each receipt's spans, and
    the end of the last one's.

    Raises Invalid for a receipt that tells of more or fewer ends than its spans have, Corrupt for a wrong one.
    """
    rows, by_row = _in_order_of_rows(np.flatnonzero(sums.num_spans > 1), sums.last_row, int(first_rows[-1]))
    is_asked = sums.num_spans.take(by_row) <= MAX_SPANS
    ends, unasked = by_row[is_asked], by_row[~is_asked]
    bounds = np.searchsorted(rows[is_asked], first_rows)
    data_crc = sums.data_crc.take(ends)
    told = np.concatenate([_told(*one) for one in zip(receipts, np.diff(bounds).tolist(), strict=True)])
    if (wrong := np.flatnonzero((told != data_crc) & (told != END_LEFT))).size:
        at = int(wrong[0])
        rank = receipts[int(np.searchsorted(bounds, at, side="right")) - 1].rank
        array, chunk = (int(column[0]) for column in sums.places(ends[at : at + 1]))
        raise Corrupt(
            f"array {layout.arrays[array].name!r}, chunk {chunk}, rank {rank}: expected the CRC "
            f"{int(data_crc[at]):08x} of all ranks' bytes behind it, got {int(told[at]):08x}",
            code="chunk-end",
        )
    left = np.concatenate([ends[told == END_LEFT], unasked])
    return Chunks(sums.last_row[left], *sums.places(left), sums.data_crc[left].astype(np.int64), sums.num_spans[left])


def _in_order_of_rows(chunks: Ints, row_of: Ints, num_rows: int) -> tuple[Ints, Ints]:
    """The rows of these chunks, no two the same, in order, and the chunk of each. Each chunk is put where its row is,
    which is faster than sorting them."""
    is_row, chunk_of = np.zeros(num_rows, dtype=np.bool_), np.empty(num_rows, dtype=np.int64)
    rows = row_of.take(chunks)
    is_row[rows], chunk_of[rows] = True, chunks
    rows = np.flatnonzero(is_row)
    return rows, chunk_of.take(rows)


def _told(receipt: Receipt, num_ends: int) -> Ints:
    """What stands behind the chunks that a rank ends and others began."""
    if receipt.ends is msgspec.UNSET:
        return np.full(num_ends, END_LEFT)
    if len(receipt.ends) != 8 * num_ends:
        raise Invalid(
            f"rank {receipt.rank}: expected the ends of {num_ends} chunks, which others began, got "
            f"{len(receipt.ends) / 8:g}",
            code="receipt-ends",
        )
    return np.frombuffer(receipt.ends, dtype="<i8")
