"""What the leader of a giant save does once all ranks have written: their receipts in, one record out.

The receipts are those of the planner, rank by rank, as long as those of a run: only the bytes behind them do not exist,
so each span's CRC is a hash of its place, and the ends that ranks tell are made of these. The store answers at once
and has whatever the layout says, so what is measured is the leader's own work. Neighbour: `plan`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.array_keys import metadata_key, shard_key
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.chunk_ends import chunk_ends
from behemoth.checkpoint.commit import complete
from behemoth.checkpoint.crc_columns import Crcs, Ints, combined_runs
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.receipt import Freshness, Receipt
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.ports import ObjectInfo, Part
from behemoth.testing.store import MemoryStore

CANDIDATE = Candidate(run="giant", step=Step(1000), write_id=WriteId("a1-10"), attempt=Attempt(1))
_RANKS_AT_A_TIME = 250


def receipts_of(layout: Layout) -> list[bytes]:
    """Of all ranks, as they come from the wire. Built by as many processes as there are processors."""
    plan_rank(layout, Rank(0))  # the owners, which a fork inherits
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        ranks = range(layout.mesh.num_ranks)
        return pool.map(partial(receipt_of, layout), ranks, chunksize=min(_RANKS_AT_A_TIME, len(ranks)))


def receipt_of(layout: Layout, rank: int) -> bytes:
    plan = plan_rank(layout, Rank(rank))
    places = [span[:4] for span in plan.writes]
    array, chunk, offset, _ = np.array(places, dtype=np.int64).reshape(-1, 4).T
    ends = chunk_ends(layout, plan)
    told = combined_runs(_crcs(ends.array, ends.chunk, ends.offset), ends.length, ends.first)
    return Receipt(
        rank=rank,
        attempt=CANDIDATE.attempt,
        step=CANDIDATE.step,
        write_id=CANDIDATE.write_id,
        layout_digest=layout.digest,
        spans=[
            WrittenSpan(*place, crc, False)
            for place, crc in zip(places, _crcs(array, chunk, offset).tolist(), strict=True)
        ],
        freshness=Freshness(updated_step=CANDIDATE.step, held_crc=rank),
        ends=told.astype("<i8").tobytes(),
    ).encode()


def decoded(receipts: Sequence[bytes]) -> list[Receipt]:
    return [Receipt.decode(receipt) for receipt in receipts]


def committed(layout: Layout, receipts: Sequence[Receipt]) -> bytes:
    """The record, of a write that is proven and complete."""
    return complete(Complete(layout), CANDIDATE, layout, receipts, previous=None).encode()


class Complete(MemoryStore):
    """A store of files that has all that ranks write, and forgets what it is given."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for array, grid in enumerate(grids(self._layout)):
            yield ObjectInfo(key=metadata_key(prefix, self._layout, array), size_bytes=len(grid.zarr_json()))
            for shard in range(grid.num_shards):
                yield ObjectInfo(key=shard_key(prefix, self._layout, array, shard), size_bytes=grid.file_bytes)

    def write_parts(self, _key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        assert all(part.offset_bytes < size_bytes for part in parts)

    def seal(self, _keys: Sequence[str]) -> None:
        pass


def _crcs(array: Ints, chunk: Ints, offset: Ints) -> Crcs:
    """Without a pattern, as those of data, since receipts are packed."""
    mixed = array.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + chunk.astype(np.uint64)
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9) + offset.astype(np.uint64)
    mixed ^= mixed >> np.uint64(29)
    return (mixed * np.uint64(0x94D049BB133111EB) >> np.uint64(32)).astype(np.uint32)
