"""What the leader of a giant save does once all ranks have written: their receipts in, one record out.

The receipts are those of the planner, rank by rank, as long as those of a run: only the bytes behind them do not exist,
so each span's CRC is a hash of its place, and the ends that ranks tell are made of these. Of a save to object storage
they are the same but for the ends; instead they have the records of the objects, made of the spans' CRCs one by one.
The store answers at once and has whatever the layout says, so what is measured is the leader's own work. Neighbour:
`sections.leading`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
from typing_extensions import Buffer

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.array_keys import metadata_key, shard_key
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.chunk_ends import chunk_ends
from behemoth.checkpoint.commit import complete
from behemoth.checkpoint.crc import combined
from behemoth.checkpoint.crc_columns import Crcs, Ints, combined_runs
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.proof import prove
from behemoth.checkpoint.receipt import Freshness, Receipt, WrittenShard
from behemoth.checkpoint.shard_proof import shard_crc
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.checkpoint.uploads import plan_uploads
from behemoth.ports import ObjectInfo, Part, SavesTo
from behemoth.testing.bucket import MemoryBucket
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


def of_objects(boxes: Layout, receipts: Sequence[Receipt]) -> list[Receipt]:
    """Of a save of the same arrays to object storage; `boxes` is the layout with box shards."""
    bare = [replace(one, layout_digest=boxes.digest, ends=msgspec.UNSET) for one in receipts]
    proof = prove(CANDIDATE, boxes, bare, are_files=False)
    shards: list[list[WrittenShard]] = [[] for _ in bare]
    for uploads in plan_uploads(boxes).uploads:
        for array, completers in zip(uploads.kind.positions, uploads.completer.tolist(), strict=True):
            grid, crcs = grids(boxes)[array], proof.chunk_crcs[array]
            whole_crc = shard_crc(grid)
            for shard, rank in enumerate(completers):
                payload_crc = combined((crc, grid.payload_bytes) for crc in crcs[grid.chunks_of(shard)].tolist())
                shards[rank].append(WrittenShard(array, shard, whole_crc, payload_crc))
    return [replace(one, shards=tuple(shards[one.rank])) for one in bare]


def store_of(layout: Layout) -> SavesTo:
    """One that has all that ranks write, and forgets what it is given."""
    return CompleteBucket(layout) if layout.sharding == "box" else CompleteFiles(layout)


def committed(store: SavesTo, layout: Layout, receipts: Sequence[Receipt], *, threads: int) -> bytes:
    """The record, of a write that is proven and complete."""
    return complete(store, CANDIDATE, layout, receipts, previous=None, threads=threads).encode()


class CompleteFiles(MemoryStore):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._written = _written(layout)

    def list(self, _prefix: str) -> Iterator[ObjectInfo]:
        return iter(self._written)

    def write_parts(self, _key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        assert all(part.offset_bytes < size_bytes for part in parts)

    def seal(self, _keys: Sequence[str]) -> None:
        pass


class CompleteBucket(MemoryBucket):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._written = _written(layout)

    def list(self, _prefix: str) -> Iterator[ObjectInfo]:
        return iter(self._written)

    def create(self, _key: str, _data: Buffer) -> None:
        pass


def _written(layout: Layout) -> list[ObjectInfo]:
    """What ranks write."""
    found: list[ObjectInfo] = []
    for array, grid in enumerate(grids(layout)):
        key = metadata_key(CANDIDATE.prefix, layout, array)
        found.append(ObjectInfo(key=key, size_bytes=len(grid.zarr_json())))
        for shard in range(grid.num_shards):
            key = shard_key(CANDIDATE.prefix, layout, array, shard)
            found.append(ObjectInfo(key=key, size_bytes=grid.file_bytes))
    return found


def _crcs(array: Ints, chunk: Ints, offset: Ints) -> Crcs:
    """Without a pattern, as those of data, since receipts are packed."""
    mixed = array.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + chunk.astype(np.uint64)
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9) + offset.astype(np.uint64)
    mixed ^= mixed >> np.uint64(29)
    return (mixed * np.uint64(0x94D049BB133111EB) >> np.uint64(32)).astype(np.uint32)
