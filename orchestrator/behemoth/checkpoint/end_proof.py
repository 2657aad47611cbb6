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

    def where(self, chosen: Ints) -> Chunks:
        """Those at these places."""
        return Chunks(*(column[chosen] for column in self))


def ends_left(layout: Layout, receipts: Sequence[Receipt], first_rows: Ints, shared: Chunks) -> Chunks:
    """Those of the `shared` chunks, of several spans each, behind which nobody put a CRC. `first_rows`: of each
    receipt's spans, and the end of the last one's.

    Raises Invalid for a receipt that tells of more or fewer ends than its spans have, Corrupt for a wrong one.
    """
    by_row = np.argsort(shared.row)
    is_asked = shared.num_spans[by_row] <= MAX_SPANS
    ends, unasked = by_row[is_asked], by_row[~is_asked]
    bounds, data_crc = np.searchsorted(shared.row[ends], first_rows), shared.data_crc[ends]
    told = np.concatenate([_told(*one) for one in zip(receipts, np.diff(bounds).tolist(), strict=True)])
    if (wrong := np.flatnonzero((told != data_crc) & (told != END_LEFT))).size:
        at = int(wrong[0])
        rank = receipts[int(np.searchsorted(bounds, at, side="right")) - 1].rank
        array, chunk = int(shared.array[ends[at]]), int(shared.chunk[ends[at]])
        raise Corrupt(
            f"array {layout.arrays[array].name!r}, chunk {chunk}, rank {rank}: expected the CRC "
            f"{int(data_crc[at]):08x} of all ranks' bytes behind it, got {int(told[at]):08x}",
            code="chunk-end",
        )
    return shared.where(np.concatenate([ends[told == END_LEFT], unasked]))


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
