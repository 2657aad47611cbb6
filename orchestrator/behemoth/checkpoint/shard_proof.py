"""Proves that the objects which were uploaded are those that the ranks' spans add up to. Pure.

Two CRCs of each object say so. That of all its bytes is the store's word, given when it completed the object. It
follows from the layout alone, since behind each chunk stands its own CRC, and together with that every chunk has the
same one. So it proves that the object is as long as it must be, and that behind each chunk stands the CRC of what the
store has before it, but not which bytes these are. The other is of the chunks without what stands behind them. It is
the word of those who sent them, and follows from the CRCs of the spans, the word of those who own them: replicas that
differ show here. Neighbours: `proof`, which combines the spans, and `upload_writer`, whose records these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.crc import combine, crc32c, trailer
from behemoth.checkpoint.crc_columns import Crcs, combined_runs
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.proof import Proof
from behemoth.checkpoint.receipt import Receipt, WrittenShard


def check_shards(layout: Layout, proof: Proof, receipts: Sequence[Receipt]) -> None:
    """Every shard has exactly one record, and its CRCs are right. O(chunks).

    Raises Invalid for a record that is missing, doubled or of no shard, Corrupt for another CRC; each names the array
    and the shard, and the rank where there is one.
    """
    found, payload_crcs = _records(layout, receipts), iter(_payload_crcs(layout, proof.chunk_crcs))
    whole_crcs: dict[tuple[int, int], int] = {}  # of a few forms, which thousands of arrays have
    for array, grid in enumerate(grids(layout)):
        form = grid.num_slots, grid.payload_bytes
        if form not in whole_crcs:
            whole_crcs[form] = shard_crc(grid)
        for shard in range(grid.num_shards):
            payload_crc = next(payload_crcs)
            if (array, shard) not in found:
                raise Invalid(f"{_name(grid, shard)}: expected a record of its upload, got none", code="shard-missing")
            rank, record = found[array, shard]
            if record.crc != whole_crcs[form]:
                raise _differing(f"{_name(grid, shard)}, completed by rank {rank}", whole_crcs[form], record.crc)
            if record.payload_crc not in (None, payload_crc):
                raise _differing(f"{_name(grid, shard)}, what its chunks have in it", payload_crc, record.payload_crc)


def shard_crc(grid: Grid) -> int:
    """CRC-32C of a whole shard, whatever its chunks are."""
    chunk_crc = crc32c(bytes(grid.gap_bytes), crc32c(trailer(0)))  # that of nothing, with its CRC behind it
    return crc32c(grid.index(), _repeated(chunk_crc, grid.stride_bytes, grid.num_slots))


def _records(layout: Layout, receipts: Sequence[Receipt]) -> dict[tuple[int, int], tuple[int, WrittenShard]]:
    """By array and shard, with the rank whose record it is."""
    found: dict[tuple[int, int], tuple[int, WrittenShard]] = {}
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
            found[key] = receipt.rank, record
    return found


def _payload_crcs(layout: Layout, chunk_crcs: Sequence[Crcs]) -> list[int]:
    """Of each shard of each array, that of its chunks' payloads one behind the other, in order of the slots."""
    of_arrays = grids(layout)
    if not of_arrays:
        return []
    crcs = np.concatenate([_in_shards(grid, crcs) for grid, crcs in zip(of_arrays, chunk_crcs, strict=True)])
    lengths = np.repeat([grid.payload_bytes for grid in of_arrays], [grid.num_chunks for grid in of_arrays])
    num_chunks = np.repeat([grid.num_slots for grid in of_arrays], [grid.num_shards for grid in of_arrays])
    found: list[int] = combined_runs(crcs, lengths, np.append(0, np.cumsum(num_chunks))).tolist()
    return found


def _in_shards(grid: Grid, chunk_crcs: Crcs) -> Crcs:
    """From the order of chunks to that of shards and their slots, all of which count in C order."""
    num_dims, per_dim = len(grid.shard_shape), zip(grid.shards_per_dim, grid.shard_shape, strict=True)
    shards, slots = range(0, 2 * num_dims, 2), range(1, 2 * num_dims, 2)
    return chunk_crcs.reshape([num for pair in per_dim for num in pair]).transpose([*shards, *slots]).reshape(-1)


def _differing(what: str, expected: int, got: int) -> Corrupt:
    return Corrupt(
        f"{what}: expected CRC-32C {expected:08x}, as the spans of the ranks say, got {got:08x}",
        hint="replicas differ, or bytes were changed on their way to the store",
        code="shard-crc",
    )


@lru_cache(maxsize=1 << 10)
def _repeated(crc: int, num_bytes: int, times: int) -> int:
    """CRC-32C of so many bytes that have this one, so many times."""
    if times == 1:
        return crc
    half = times // 2
    return combine(_repeated(crc, num_bytes, half), _repeated(crc, num_bytes, times - half), (times - half) * num_bytes)


def _name(grid: Grid, shard: int) -> str:
    return f"array {grid.spec.name!r}, object {grid.shard_key(shard)}"
