"""Writes a rank's spans from its arena to storage, with a CRC for each: the background part of a save.

It must not hold up training (it runs in the store process), must not decide anything (the plan did), and copies no
payload: buffers go from the arena to the store. Whoever writes a shard's last byte also writes its index, and with the
array's last byte its zarr.json, which follow from the layout alone: left to the leader, that would be two small durable
files for each of thousands of arrays while everybody waits. What several ranks share, a chunk's CRC, is left to
`commit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import msgspec
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Attempt, Step
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.crc import combine, crc32c, trailer
from behemoth.checkpoint.following import Follower
from behemoth.checkpoint.freshness import held_crc
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.more_writers import MoreWriters
from behemoth.checkpoint.paths import METADATA
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.receipt import Freshness, Receipt, WrittenSpan
from behemoth.checkpoint.sealing import Sealing
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.turns import Turns
from behemoth.checkpoint.zeros import crc_of_zeros, is_zero
from behemoth.ports import Part, WritesRanges

THREADS_PER_WRITER = 5
"""While one computes a CRC or makes a file, the others' bytes are on their way, though threads of one disk tend to end
their writes together."""
SEAL_THREADS = 4
"""They wait for the disk and do not compute."""


def write_rank(
    store: WritesRanges,
    prefix: str,
    layout: Layout,
    plan: RankPlan,
    arena: Arena,
    generation: int,
    *,
    attempt: Attempt,
    threads: int,
    cancelled: Callable[[], bool],
    following: int | None = None,
    updated_step: Step | None = None,
    frozen: Collection[int] = (),
) -> Receipt:
    """Write and seal what the rank owns of the snapshot in `generation`, below `prefix`; record all CRCs in the arena.

    Blocks until everything is durable. Idempotent: the same snapshot gives the same bytes. `cancelled` is asked before
    each batch. With `following`, the sequence of a filling that was begun, the snapshot may still be unfinished: each
    byte is written once it is there, and the receipt waits for the whole. `updated_step`: the last step in which the
    program announced an update, `frozen`: the arrays, by position, that it declared not to move; None: it told neither.
    Raises Conflict when cancelled or when the snapshot was replaced meanwhile, and the store's errors.
    """
    check_fit(layout, plan, arena)
    sequence = arena.snapshot(generation).sequence if following is None else following
    follower = Follower(arena, generation, sequence, cancelled=cancelled)
    job = _Job(store, prefix, layout, plan, arena.filling(generation), follower, cancelled)
    with Sealing(store.seal) as sealing:
        crcs = _write(job, plan, sealing, threads=threads)
        follower.whole()
        sealing.finish()
    snapshot = follower.whole()  # asked again: it must not have been replaced
    arena.record_crcs(generation, snapshot.sequence, crcs)
    data = arena.filling(generation)
    return receipt_of(layout, plan, snapshot, data, crcs, attempt=attempt, updated_step=updated_step, frozen=frozen)


def receipt_of(
    layout: Layout,
    plan: RankPlan,
    snapshot: Snapshot,
    data: memoryview,
    crcs: Sequence[int],
    *,
    attempt: Attempt,
    updated_step: Step | None,
    frozen: Collection[int],
) -> Receipt:
    """What the rank says of its snapshot, with the CRC of every span in plan order; see `write_rank` for the rest."""
    return Receipt(
        rank=plan.rank,
        attempt=attempt,
        step=snapshot.step,
        write_id=snapshot.write_id,
        layout_digest=layout.digest,
        spans=tuple(
            WrittenSpan(span.array, span.chunk, span.offset, span.length, crc, is_zero(payload_of(data, span), crc))
            for span, crc in zip(plan.spans, crcs, strict=True)
            if span.is_owned
        ),
        freshness=msgspec.UNSET
        if updated_step is None
        else Freshness(
            updated_step=updated_step,
            held_crc=held_crc(layout, plan.spans, crcs, frozen),
            frozen=tuple(sorted(frozen)),
        ),
    )


def _write(job: _Job, plan: RankPlan, sealing: Sealing, *, threads: int) -> list[int]:
    """The CRC of every span, all written. What is complete is sealed meanwhile."""
    turns = Turns(plan.spans)
    more = MoreWriters()
    crcs: list[list[int]] = [[] for _ in range(turns.num_batches)]

    def work(thread: int) -> None:
        try:
            if thread >= threads:
                more.wait()
            while (batch := turns.take()) is not None:
                job.until_there(batch.spans)
                passed_s, computed_s = time.monotonic(), time.thread_time()
                crcs[batch.number] = job.run(batch.spans)
                more.wrote(
                    passed_s=time.monotonic() - passed_s,
                    computed_s=time.thread_time() - computed_s,
                    is_whole=job.is_whole(),
                )
                if turns.done(batch):
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

    def __init__(
        self,
        store: WritesRanges,
        prefix: str,
        layout: Layout,
        plan: RankPlan,
        data: memoryview,
        follower: Follower,
        cancelled: Callable[[], bool],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._grids = grids(layout)
        self._paths = layout.paths
        self._plan = plan
        self._data = data
        self._follower = follower
        self._cancelled = cancelled
        self._written: dict[int, set[str]] = {span.array: set() for span in plan.spans}

    def until_there(self, batch: Sequence[Span]) -> None:
        """Blocks until the program has copied the batch. Raises Conflict when cancelled."""
        if self._cancelled():
            raise Conflict(f"rank {self._plan.rank}: its save was cancelled", code="save-cancelled")
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
                key = self._shard_key(array, shard)
                self._store_parts(array, key, grid.file_bytes, self._parts(grid, of_shard))
            if ends_array(grid, owned[-1][0]):
                data = grid.zarr_json()
                whole = Part(offset_bytes=0, buffers=[data])
                self._store_parts(array, self._metadata_key(array), len(data), [whole])
        return crcs

    def keys(self, array: int) -> list[str]:
        """Every object of an array that the rank wrote to. Asked once all of its batches are done."""
        return sorted(self._written[array])

    def _store_parts(self, array: int, key: str, size_bytes: int, parts: Iterable[Part]) -> None:
        self._store.write_parts(key, size_bytes=size_bytes, parts=list(parts))
        self._written[array].add(key)

    def _shard_key(self, array: int, shard: int) -> str:
        return f"{self._prefix}/{self._paths[array]}/{self._grids[array].shard_key(shard)}"

    def _metadata_key(self, array: int) -> str:
        return f"{self._prefix}/{self._paths[array]}/{METADATA}"

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


def payload_of(data: memoryview, span: Span) -> memoryview:
    """A span's bytes in the arena's data."""
    return data[span.arena_offset : span.arena_offset + span.length]


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


def chunk_tail(grid: Grid, data_crc: int, data_bytes: int) -> bytes:
    """What follows a chunk's data in the file: padding, the CRC-32C of data and padding, and the gap's zeros."""
    padding = grid.payload_bytes - data_bytes
    return bytes(padding) + trailer(payload_crc(grid, data_crc, data_bytes)) + bytes(grid.gap_bytes)


def payload_crc(grid: Grid, data_crc: int, data_bytes: int) -> int:
    """CRC-32C of a whole payload from that of its data, which comes first."""
    padding = grid.payload_bytes - data_bytes
    return combine(data_crc, crc_of_zeros(padding), padding) if padding else data_crc


def check_fit(layout: Layout, plan: RankPlan, arena: Arena) -> None:
    """Raises Invalid unless all three are of one layout and rank."""
    digests = {layout.digest, plan.layout_digest, arena.layout_digest}
    if len(digests) > 1 or arena.rank != plan.rank:
        raise Invalid(
            f"rank {plan.rank}: expected layout, plan and arena of one layout and rank, got "
            f"{sorted(digest[:12] for digest in digests)} and an arena of rank {arena.rank}",
            code="arena-layout",
        )
