"""Writes a rank's spans from its arena to storage, with a CRC for each: the background part of a save.

It must not hold up training (it runs in the store process), must not decide anything (the plan did), and copies no
payload: buffers go from the arena to the store. Whoever writes a shard's last byte also writes its index, and with the
array's last byte its zarr.json, which follow from the layout alone: left to the leader, that would be two small durable
files for each of thousands of arrays while everybody waits. What several ranks share, a chunk's CRC, is left to
`commit`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec
import numpy as np
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Attempt, Step
from behemoth.checkpoint.arena import Arena, Snapshot
from behemoth.checkpoint.crc import combine, crc32c, trailer
from behemoth.checkpoint.following import Follower
from behemoth.checkpoint.freshness import held_crc
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import METADATA
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.receipt import Freshness, Receipt, WrittenSpan
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.zeros import crc_of_zeros
from behemoth.ports import Part, WritesRanges

BATCH_BYTES = 32 << 20
"""One call of the store: large enough to drown its cost, small enough to share a shard among threads."""
BATCH_SPANS = 256
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
    batches = list(_batches(plan.spans))
    crcs = [crc for part in run_all(job.run, batches, threads=threads, name="ckpt-write") for crc in part]
    follower.whole()
    seal_all(store, job.keys())
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
            WrittenSpan(span.array, span.chunk, span.offset, span.length, crc, _is_zero(data, span, crc))
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


class _Job:
    """What all batches share. Batches run on several threads and only read it."""

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

    def run(self, batch: Sequence[Span]) -> list[int]:
        """CRCs of the batch's spans, which are all of one array; the owned ones are written."""
        if self._cancelled():
            raise Conflict(f"rank {self._plan.rank}: its save was cancelled", code="save-cancelled")
        self._follower.until(batch[-1].arena_offset + batch[-1].length)
        grid = self._grids[batch[0].array]
        crcs = [crc32c(self._payload(span)) for span in batch]
        owned = [(span, crc) for span, crc in zip(batch, crcs, strict=True) if span.is_owned]
        if owned:
            for shard, of_shard in _by_shard(owned).items():
                key = self._shard_key(batch[0].array, shard)
                self._store.write_parts(key, size_bytes=grid.file_bytes, parts=list(self._parts(grid, of_shard)))
            if ends_array(grid, owned[-1][0]):
                key, data = self._metadata_key(batch[0].array), grid.zarr_json()
                self._store.write_parts(key, size_bytes=len(data), parts=[Part(offset_bytes=0, buffers=[data])])
        return crcs

    def keys(self) -> list[str]:
        """Every object that the rank wrote to."""
        owned = [span for span in self._plan.spans if span.is_owned]
        ended = [span.array for span in owned if ends_array(self._grids[span.array], span)]
        shards = [self._shard_key(*each) for each in sorted({(span.array, span.shard) for span in owned})]
        return shards + [self._metadata_key(array) for array in ended]

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


def _is_zero(data: memoryview, span: Span, crc: int) -> bool:
    """Whether a span's bytes are all zero; read again only when the CRC says that they may be."""
    return crc == crc_of_zeros(span.length) and not np.frombuffer(payload_of(data, span), dtype=np.uint8).any()


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


def _batches(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Consecutive spans of one array, up to a size."""
    batch: list[Span] = []
    num_bytes = 0
    for span in spans:
        is_full = len(batch) >= BATCH_SPANS or num_bytes + span.length > BATCH_BYTES
        if batch and (is_full or span.array != batch[0].array):
            yield batch
            batch, num_bytes = [], 0
        batch.append(span)
        num_bytes += span.length
    if batch:
        yield batch


def check_fit(layout: Layout, plan: RankPlan, arena: Arena) -> None:
    """Raises Invalid unless all three are of one layout and rank."""
    digests = {layout.digest, plan.layout_digest, arena.layout_digest}
    if len(digests) > 1 or arena.rank != plan.rank:
        raise Invalid(
            f"rank {plan.rank}: expected layout, plan and arena of one layout and rank, got "
            f"{sorted(digest[:12] for digest in digests)} and an arena of rank {arena.rank}",
            code="arena-layout",
        )
