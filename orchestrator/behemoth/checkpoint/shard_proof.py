"""Proves that the objects which were uploaded are those that the ranks' spans add up to. Pure.

A shard's bytes follow from its chunks: payloads, their CRCs, zeros, the index. So its CRC-32C follows from the CRCs of
the spans, which say what the ranks staged, and must be the one with which the store has completed the object, which
says what it received. Bytes that went astray between the two, or that replicas had differently, show here. Neighbours:
`proof`, which combines the spans, and `upload_writer`, whose records these are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.crc import combine, crc32c, trailer
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.proof import Proof
from behemoth.checkpoint.receipt import Receipt


def check_shards(layout: Layout, proof: Proof, receipts: Sequence[Receipt]) -> None:
    """Every shard has exactly one record, and its CRC is right. O(chunks).

    Raises Invalid for a record that is missing, doubled or of no shard, Corrupt for another CRC; each names the array
    and the shard, and the rank where there is one.
    """
    found: dict[tuple[int, int], tuple[int, int]] = {}
    of = grids(layout)
    for receipt in receipts:
        for record in receipt.shards or ():
            if record.array >= len(of) or record.shard >= of[record.array].num_shards:
                raise Invalid(
                    f"rank {receipt.rank}: expected records of shards, got array {record.array}, shard {record.shard}",
                    code="shard-outside",
                )
            key = record.array, record.shard
            if key in found:
                raise Invalid(
                    f"{_name(of[record.array], record.shard)}: expected one record, got those of ranks "
                    f"{found[key][0]} and {receipt.rank}",
                    code="shard-twice",
                )
            found[key] = receipt.rank, record.crc
    for array, grid in enumerate(of):
        for shard in range(grid.num_shards):
            if (array, shard) not in found:
                raise Invalid(f"{_name(grid, shard)}: expected a record of its upload, got none", code="shard-missing")
            rank, crc = found[array, shard]
            expected = shard_crc(grid, proof.chunk_crcs[array][grid.chunks_of(shard)])
            if crc != expected:
                raise Corrupt(
                    f"{_name(grid, shard)}, completed by rank {rank}: expected CRC-32C {expected:08x}, as the spans "
                    f"of the ranks say, got {crc:08x}",
                    hint="replicas differ, or bytes were changed on their way to the store",
                    code="shard-crc",
                )


def shard_crc(grid: Grid, chunk_crcs: npt.NDArray[np.uint32]) -> int:
    """CRC-32C of a whole shard from those of its chunks' payloads, in order of the slots."""
    gap = bytes(grid.gap_bytes)
    total = 0
    for crc in chunk_crcs.tolist():
        total = combine(total, crc, grid.payload_bytes)
        total = crc32c(trailer(crc) + gap, total)
    return crc32c(grid.index(), total)


def _name(grid: Grid, shard: int) -> str:
    return f"array {grid.spec.name!r}, object {grid.shard_key(shard)}"
