"""Reads a checkpoint back, into the arena of a rank of any mesh or as logical arrays; no byte without its CRC.

It never falls back to another commit and never repairs: the caller decides what to do about Corrupt. A missing object
is an error, never a fill value. Neighbours: `opened` checks the metadata, `chunk_reader` and `reshard_reader` read,
`verify` looks at every bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Invalid, NotFound
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.box import Interval
from behemoth.checkpoint.chunk_reader import DIRECT_BYTES, ChunkReader, ChunkReaders
from behemoth.checkpoint.conversion import AS_SAVED, Intake
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import DTYPES, Layout
from behemoth.checkpoint.matching import Origin, origins
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.reshard import plan_box, plan_resharding
from behemoth.checkpoint.reshard_reader import read_resharded, read_slabs
from behemoth.checkpoint.scale_waves import RANK_KEPT_BYTES
from behemoth.checkpoint.seen_chunks import SeenChunks
from behemoth.checkpoint.threads import batched, run_all
from behemoth.ports import ObjectStore


def read_rank(
    store: ObjectStore,
    commit: Commit,
    layout: Layout,
    plan: RankPlan,
    arena: Arena,
    generation: int,
    *,
    threads: int,
    intake: Intake = AS_SAVED,
    kept_bytes: int = RANK_KEPT_BYTES,
) -> Snapshot:
    """Fill `generation` with all that the plan's rank of `layout` holds, and seal it as a verified snapshot.

    The commit may lie on any mesh, shared in any way: what counts is that its arrays are those of `layout`, or that
    `intake` says how they become them (of what it leaves out the generation holds zeros). Every chunk that a piece
    touches is read whole and checked. `kept_bytes` of values that wait for computed scales are held at most, beside the
    arena; what is beyond is read again. Raises Invalid for another model before the arena is touched, and for values
    that cannot be converted; Corrupt naming array, chunk and file. After an error the generation holds no snapshot.
    """
    found = origins(commit.layout, layout, step=commit.record.step, intake=intake)
    data = arena.begin(generation, commit.record.write_id, commit.record.step, plan.layout_digest)
    crcs = _read_plan(store, commit, layout, plan, found, data, threads=threads, kept_bytes=kept_bytes)
    arena.record_crcs(generation, arena.seal(generation).sequence, crcs)
    return arena.snapshot(generation)


def read_rank_into(
    store: ObjectStore,
    commit: Commit,
    layout: Layout,
    plan: RankPlan,
    data: memoryview,
    *,
    threads: int,
    intake: Intake = AS_SAVED,
    kept_bytes: int = RANK_KEPT_BYTES,
    seen: SeenChunks | None = None,
) -> None:
    """As `read_rank`, with the same errors, into plain memory of at least `plan.data_bytes` bytes instead of an arena.
    `seen`: the chunks that other ranks of the same restore have read."""
    found = origins(commit.layout, layout, step=commit.record.step, intake=intake)
    _read_plan(store, commit, layout, plan, found, data, threads=threads, kept_bytes=kept_bytes, seen=seen)


def read_spans(
    store: ObjectStore,
    commit: Commit,
    spans: Sequence[Span],
    data: memoryview,
    *,
    threads: int,
    seen: SeenChunks | None = None,
) -> list[int]:
    """Read spans of a plan of the commit's own layout to their places in the plan's `data`, each chunk whole and
    checked. Returns the CRC-32C of each span. Blocks. Raises Corrupt naming array, chunk and file."""
    job = _RankRead(store, commit, data, seen)
    parts = run_all(job.run, batched(spans, threads=threads), threads=threads, name="ckpt-read")
    job.readers.require_committed()
    return [crc for part in parts for crc in part]


def read_array(store: ObjectStore, commit: Commit, name: str, into: Buffer | None = None) -> npt.NDArray[np.generic]:
    """One whole logical array, of its own dtype (ml_dtypes' for bfloat16 and float8), in `into` when that is given.

    Every byte of the array's files is checked: chunk CRCs, padding, gaps, indexes, and that the chunks are those that
    were committed. Raises NotFound for an unknown name, Invalid for an `into` of another size, Corrupt for the rest.
    """
    position = _position(commit, name)
    grid = grids(commit.layout)[position]
    target = np.frombuffer(bytearray(grid.spec.num_bytes) if into is None else memoryview(into), dtype=np.uint8)
    if target.nbytes != grid.spec.num_bytes or not target.flags.writeable:
        raise Invalid(f"array {name!r}: expected a writable buffer of {grid.spec.num_bytes} bytes, got {target.nbytes}")
    logical = target.reshape(*grid.spec.shape, grid.spec.itemsize)
    readers = ChunkReaders(store, commit)
    reader = readers.mine()
    for chunk in range(grid.num_chunks):
        payload, _ = reader.stride(position, chunk)
        box = grid.chunk_box(chunk)
        sizes = [part.stop - part.start for part in box]
        data = np.frombuffer(payload, dtype=np.uint8, count=grid.data_bytes(chunk))
        logical[box] = data.reshape(*sizes, grid.spec.itemsize)
    readers.require_committed()
    reader.check_indexes(position)
    return target.view(DTYPES[grid.spec.dtype]).reshape(grid.spec.shape)


def read_box(
    store: ObjectStore, commit: Commit, name: str, box: Sequence[Interval], *, threads: int = 1
) -> npt.NDArray[np.generic]:
    """A part of a logical array, (start, stop) for each dim: some experts of a stack, some rows of what is too large.

    Only chunks that the box meets are read, each whole and checked; memory is the box and a chunk per thread. Raises
    NotFound for an unknown name, Invalid for a box that is empty or not within the array, Corrupt for the rest.
    """
    position = _position(commit, name)
    grid = grids(commit.layout)[position]
    shape = grid.spec.shape
    if len(box) != len(shape) or not all(0 <= low < high <= size for (low, high), size in zip(box, shape, strict=True)):
        raise Invalid(
            f"array {name!r}: expected a box of (start, stop) within its shape {shape}, got {list(box)}",
            code="array-box",
        )
    work = plan_box(grid, position, tuple(box))
    (slab,) = work.slabs
    area = np.empty(slab.nbytes, dtype=np.uint8)
    read_slabs(store, commit, work, area, threads=threads)
    return area.view(DTYPES[grid.spec.dtype]).reshape(slab.shape)


def digest(store: ObjectStore, commit: Commit, *, cancelled: Callable[[], bool] = lambda: False) -> str:
    """SHA-256, hex, of all arrays as read back from the store; the same for two runs exactly when their state is.

    Over every array in order of name (by code point): one line of UTF-8, the compact JSON `[name,dtype,[shape..]]` and
    a newline, then the array's bytes, little-endian in C order. Blocks for reading the checkpoint; holds one array.
    `cancelled` is asked before each; raises Conflict then.
    """
    total = hashlib.sha256()
    for array in commit.layout.arrays:
        if cancelled():
            raise Conflict(f"digest of step {commit.record.step}: cancelled", code="cancelled")
        head = json.dumps([array.name, array.dtype, list(array.shape)], separators=(",", ":"), ensure_ascii=False)
        total.update(head.encode() + b"\n")
        total.update(read_array(store, commit, array.name).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _read_plan(
    store: ObjectStore,
    commit: Commit,
    layout: Layout,
    plan: RankPlan,
    found: Sequence[Origin],
    data: memoryview,
    *,
    threads: int,
    kept_bytes: int,
    seen: SeenChunks | None = None,
) -> list[int]:
    """Fill `data` by the plan; returns the CRC-32C of each span."""
    is_as_saved = list(found) == list(range(len(layout.arrays)))
    if is_as_saved and commit.layout.digest == layout.digest:
        return read_spans(store, commit, plan.spans, data, threads=threads, seen=seen)
    work = plan_resharding(commit.layout, layout, plan, found)
    return read_resharded(store, commit, plan, work, data, threads=threads, kept_bytes=kept_bytes, seen=seen)


def _position(commit: Commit, name: str) -> int:
    position = commit.layout.positions.get(name)
    if position is None:
        raise NotFound(
            f"checkpoint of step {commit.record.step}: expected array {name!r} in it, got none", code="array-unknown"
        )
    return position


class _RankRead:
    """Reads spans on several threads."""

    def __init__(self, store: ObjectStore, commit: Commit, data: memoryview, seen: SeenChunks | None) -> None:
        self._data = data
        self._grids: Sequence[Grid] = grids(commit.layout)
        self.readers = ChunkReaders(store, commit, seen=seen)

    def run(self, spans: Sequence[Span]) -> list[int]:
        """Read these spans; returns the CRC-32C of each."""
        chunks = self.readers.mine()
        return [self._read(chunks, span) for span in spans]

    def _read(self, chunks: ChunkReader, span: Span) -> int:
        target = self._data[span.arena_offset : span.arena_offset + span.length]
        is_whole = span.length == self._grids[span.array].payload_bytes
        if is_whole and span.length >= DIRECT_BYTES:
            return chunks.payload_into(span.array, span.chunk, target)
        payload, crc = chunks.payload(span.array, span.chunk)
        target[:] = payload[span.offset : span.offset + span.length]
        return crc if is_whole else crc32c(target)
