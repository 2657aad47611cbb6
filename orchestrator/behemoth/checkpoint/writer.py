"""Writes a rank's spans from its arena to storage, with a CRC for each: the background part of a save.

It must not hold up training (it runs in the store process), must not decide anything (the plan did), and copies no
payload: buffers go from the arena to the store. Whoever writes a shard's last byte also writes its index, and with the
array's last byte its zarr.json, which follow from the layout alone: left to the leader, that would be two small durable
files for each of thousands of arrays while everybody waits. The CRC of a chunk that several ranks share is written by
the last of them, who asks the others (`end_writer`); what those do not tell is left to `commit`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from msgspec import UNSET, UnsetType
from typing_extensions import Buffer

from behemoth.checkpoint.chunk_ends import ChunkEnds, chunk_ends
from behemoth.checkpoint.chunk_tails import chunk_tail
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.end_writer import LEAST_WAIT_S, chunk_crcs, write_ends
from behemoth.checkpoint.exchange import Company, Exchange, OpenWrite
from behemoth.checkpoint.following import Follower
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.more_writers import MoreWriters
from behemoth.checkpoint.plan import Span
from behemoth.checkpoint.rank_write import RankWrite, payload_of
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.sealing import Sealing
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.turns import Turns
from behemoth.ports import Part, WritesRanges

THREADS_PER_WRITER = 5
"""While one computes a CRC or makes a file, the others' bytes are on their way, though threads of one disk tend to end
their writes together."""
SEAL_THREADS = 4
"""They wait for the disk and do not compute."""


def write_rank(store: WritesRanges, write: RankWrite, company: Company | None = None) -> Receipt:
    """Write and seal what the rank owns of its snapshot; record all CRCs in the arena.

    With a `company`, ranks that write at the same time, it also writes the ends of chunks that others began; without
    one, and where the others do not answer, these are left to the leader.

    Blocks until everything is durable. Idempotent: the same snapshot gives the same bytes. While a filling is followed,
    each byte is written once it is there, and the receipt waits for the whole. Raises NotFound without a snapshot,
    Conflict when cancelled, asked before each batch, or when the snapshot was replaced meanwhile, and the store's
    errors.
    """
    sequence = write.sequence()
    follower = write.follower(sequence)
    job = _Job(store, write, follower)
    ends = chunk_ends(write.layout, write.plan) if company is not None else None
    unfinished = {span.array for span in ends.spans} if ends is not None else set()
    told: bytes | UnsetType = UNSET
    began_s = time.monotonic()
    with Sealing(store.seal) as sealing:
        crcs = _write(job, write, sealing, unfinished)
        snapshot = follower.whole()
        if company is not None and ends is not None:
            open_write = OpenWrite(write.plan, write.arena, write.generation, sequence)
            open_write.summed(crcs)
            company.open_writes.enter(snapshot.write_id, open_write)
            told = _write_ends(store, write, ends, company.exchange, began_s=began_s)
            sealing.add([key for array in sorted(unfinished) for key in job.keys(array)])
        sealing.finish()
    return replace(write.receipt(follower.whole(), crcs), ends=told)  # asked again: it must not have been replaced


def _write_ends(store: WritesRanges, write: RankWrite, ends: ChunkEnds, exchange: Exchange, *, began_s: float) -> bytes:
    """What the receipt says of them. Whoever took longer than this rank by more than this rank itself took is not
    waited for: the leader knows all CRCs too."""
    deadline_s = time.monotonic() + max(LEAST_WAIT_S, time.monotonic() - began_s)
    found = chunk_crcs(write, ends, exchange, deadline_s=deadline_s)
    write_ends(store, write, ends, found)
    return found.astype("<i8").tobytes()


def _write(job: _Job, write: RankWrite, sealing: Sealing, unfinished: Collection[int]) -> list[int]:
    """The CRC of every span, all written. What is complete is sealed meanwhile, but for `unfinished` arrays."""
    turns, threads = Turns(write.plan.spans), write.threads
    more = MoreWriters()
    crcs: list[list[int]] = [[] for _ in range(turns.num_batches)]

    def work(thread: int) -> None:
        try:
            if thread >= threads:
                more.wait(write.go_on)
            while (batch := turns.take()) is not None:
                job.until_there(batch.spans)
                passed_s, computed_s = time.monotonic(), time.thread_time()
                crcs[batch.number] = job.run(batch.spans)
                more.wrote(
                    passed_s=time.monotonic() - passed_s,
                    computed_s=time.thread_time() - computed_s,
                    is_whole=job.is_whole(),
                )
                if turns.done(batch) and batch.array not in unfinished:
                    sealing.add(job.keys(batch.array))
        except BaseException:
            turns.stop()
            raise
        finally:
            more.end()

    num_threads = threads * THREADS_PER_WRITER if threads > 1 else 1
    run_all(work, range(num_threads), threads=num_threads, name="ckpt-write")
    return [crc for batch in crcs for crc in batch]


class _Job:
    """What all batches share; they run on several threads."""

    def __init__(self, store: WritesRanges, write: RankWrite, follower: Follower) -> None:
        self._store = store
        self._write = write
        self._grids = grids(write.layout)
        self._data = write.arena.filling(write.generation)
        self._follower = follower
        self._written: dict[int, set[str]] = {span.array: set() for span in write.plan.spans}

    def until_there(self, batch: Sequence[Span]) -> None:
        """Blocks until the program has copied the batch. Raises Conflict when cancelled."""
        self._write.go_on()
        self._follower.until(batch[-1].arena_offset + batch[-1].length)

    def is_whole(self) -> bool:
        """Whether the program's copy is complete."""
        return self._follower.is_whole()

    def run(self, batch: Sequence[Span]) -> list[int]:
        """CRCs of the batch's spans, which are all of one array and in place; the owned ones are written."""
        grid = self._grids[batch[0].array]
        crcs = [crc32c(self._payload(span)) for span in batch]
        owned = [(span, crc) for span, crc in zip(batch, crcs, strict=True) if span.is_owned]
        if owned:
            array = batch[0].array
            for shard, of_shard in _by_shard(owned).items():
                key = self._write.shard_key(array, shard)
                self._store_parts(array, key, grid.file_bytes, self._parts(grid, of_shard))
            if ends_array(grid, owned[-1][0]):
                data = grid.zarr_json()
                whole = Part(offset_bytes=0, buffers=[data])
                self._store_parts(array, self._write.metadata_key(array), len(data), [whole])
        return crcs

    def keys(self, array: int) -> list[str]:
        """Every object of an array that the rank wrote to. Asked once all of its batches are done."""
        return sorted(self._written[array])

    def _store_parts(self, array: int, key: str, size_bytes: int, parts: Iterable[Part]) -> None:
        self._store.write_parts(key, size_bytes=size_bytes, parts=list(parts))
        self._written[array].add(key)

    def _payload(self, span: Span) -> memoryview:
        return payload_of(self._data, span)

    def _parts(self, grid: Grid, owned: Sequence[tuple[Span, int]]) -> Iterator[Part]:
        """Of one shard. Neighbours in it become one part."""
        buffers: list[Buffer] = []
        start = end = -1
        for span, crc in owned:
            if span.shard_offset != end:
                if buffers:
                    yield Part(offset_bytes=start, buffers=buffers)
                buffers, start, end = [], span.shard_offset, span.shard_offset
            buffers.append(self._payload(span))
            end += span.length
            if span.length == grid.data_bytes(span.chunk):
                tail = chunk_tail(grid, crc, span.length)
                buffers.append(tail)
                end += len(tail)
        yield Part(offset_bytes=start, buffers=buffers)
        if _ends_shard(grid, owned[-1][0]):
            yield Part(offset_bytes=grid.index_offset_bytes, buffers=[grid.index()])


def _by_shard(owned: Sequence[tuple[Span, int]]) -> dict[int, list[tuple[Span, int]]]:
    """Spans of one array, in their order."""
    shards: dict[int, list[tuple[Span, int]]] = {}
    for span, crc in owned:
        shards.setdefault(span.shard, []).append((span, crc))
    return shards


def ends_array(grid: Grid, span: Span) -> bool:
    """Whether the span holds the array's last byte. Of all ranks' owned spans exactly one does."""
    return span.chunk == grid.num_chunks - 1 and span.offset + span.length == grid.data_bytes(span.chunk)


def _ends_shard(grid: Grid, span: Span) -> bool:
    """The same of its shard's last byte."""
    end_bytes = (grid.num_slots - 1) * grid.stride_bytes + grid.data_bytes(span.chunk)
    return span.shard_offset + span.length == end_bytes


def seal_all(store: WritesRanges, keys: Sequence[str]) -> None:
    """Make objects durable, several at a time."""
    share = max(1, -(-len(keys) // SEAL_THREADS))
    shares = [keys[at : at + share] for at in range(0, len(keys), share)]
    run_all(store.seal, shares, threads=SEAL_THREADS, name="ckpt-seal")
