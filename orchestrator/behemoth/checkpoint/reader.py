"""Reads a checkpoint back, into a rank's arena or as logical arrays, and believes no byte without its CRC.

It never falls back to another commit and never repairs: the caller decides what to do about Corrupt. A missing object
is an error, never a fill value. Neighbours: `commit_log` finds commits, `arena` receives, `verify` looks at every bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.checkpoint.arena import Arena, Snapshot
from behemoth.checkpoint.chunk_reader import DIRECT_BYTES, ChunkReader, ChunkReaders
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import DTYPES, Layout
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.threads import run_all
from behemoth.ports import ObjectStore
from behemoth.spec.mesh import Mesh

__all__ = ["Commit", "digest", "open_commit", "read_array", "read_rank"]

BATCH_SPANS = 64


def read_rank(
    store: ObjectStore,
    commit: Commit,
    layout: Layout,
    plan: RankPlan,
    arena: Arena,
    generation: int,
    *,
    threads: int,
) -> Snapshot:
    """Fill `generation` with all that the plan's rank holds, and seal it as a verified snapshot of the commit.

    Every chunk that a piece touches is read whole and checked. Raises Invalid for another model or mesh before the
    arena is touched; Corrupt naming array, chunk and file. After an error the generation holds no snapshot.
    """
    check_same_layout(commit, layout)
    record = commit.record
    data = arena.begin(generation, record.write_id, record.step, plan.layout_digest)
    job = _RankRead(store, commit, data)
    batches = [plan.spans[at : at + BATCH_SPANS] for at in range(0, len(plan.spans), BATCH_SPANS)]
    if len(plan.spans) < BATCH_SPANS * threads:
        batches = [plan.spans[at : at + 1] for at in range(len(plan.spans))]
    crcs = [crc for part in run_all(job.run, batches, threads=threads, name="ckpt-read") for crc in part]
    arena.record_crcs(generation, arena.seal(generation).sequence, crcs)
    return arena.snapshot(generation)


def check_same_layout(commit: Commit, layout: Layout) -> None:
    """Raises Invalid, saying what differs, unless the checkpoint was saved with this very layout."""
    saved = commit.layout
    if saved.digest == layout.digest:
        return
    if saved.mesh != layout.mesh:
        raise Invalid(
            f"checkpoint of step {commit.record.step}: expected the mesh of this run ({_mesh(layout.mesh)}), got one "
            f"saved on {_mesh(saved.mesh)}: resharding is not supported yet",
            hint="run on the mesh of the checkpoint, or start from scratch in another directory",
            code="mesh-mismatch",
        )
    missing = sorted(layout.positions.keys() - saved.positions.keys())
    extra = sorted(saved.positions.keys() - layout.positions.keys())
    changed = sorted({one.name for one in set(saved.arrays) ^ set(layout.arrays)} - {*missing, *extra})
    raise Invalid(
        f"checkpoint of step {commit.record.step}: of another model: {len(missing)} arrays are missing {missing[:3]}, "
        f"{len(extra)} are unknown {extra[:3]}, {len(changed)} differ {_changes(saved, layout, changed[:3])}".rstrip(),
        hint="restore it with the program that saved it, or start from scratch in another directory",
        code="model-mismatch",
    )


def read_array(store: ObjectStore, commit: Commit, name: str, into: Buffer | None = None) -> npt.NDArray[np.generic]:
    """One whole logical array, of its own dtype (ml_dtypes' for bfloat16 and float8), in `into` when that is given.

    Every byte of the array's file is checked: chunk CRCs, padding, gaps, the index, and that the chunks are those that
    were committed. Raises NotFound for an unknown name, Invalid for an `into` of another size, Corrupt for the rest.
    """
    position = commit.layout.positions.get(name)
    if position is None:
        raise NotFound(f"checkpoint of step {commit.record.step}: no array {name!r}", code="array-unknown")
    grid = grids(commit.layout)[position]
    target = np.frombuffer(bytearray(grid.spec.num_bytes) if into is None else memoryview(into), dtype=np.uint8)
    if target.nbytes != grid.spec.num_bytes or not target.flags.writeable:
        raise Invalid(f"array {name!r}: expected a writable buffer of {grid.spec.num_bytes} bytes, got {target.nbytes}")
    logical = target.reshape(*grid.spec.shape, grid.spec.itemsize)
    reader = ChunkReader(store, commit)
    crcs = np.empty(grid.num_chunks, dtype="<u4")
    for chunk in range(grid.num_chunks):
        payload, crcs[chunk] = reader.stride(position, chunk)
        box = grid.chunk_box(chunk)
        sizes = [part.stop - part.start for part in box]
        data = np.frombuffer(payload, dtype=np.uint8, count=grid.data_bytes(chunk))
        logical[box] = data.reshape(*sizes, grid.spec.itemsize)
    if crc32c(crcs.tobytes()) != commit.index.content_crcs[position]:
        raise Corrupt(
            f"array {name!r}, file {commit.shard_key(position)}: whole, but not what was committed",
            code="array-content",
        )
    reader.check_index(position)
    return target.view(DTYPES[grid.spec.dtype]).reshape(grid.spec.shape)


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


class _RankRead:
    """Reads spans on several threads."""

    def __init__(self, store: ObjectStore, commit: Commit, data: memoryview) -> None:
        self._data = data
        self._grids: Sequence[Grid] = grids(commit.layout)
        self._readers = ChunkReaders(store, commit)

    def run(self, spans: Sequence[Span]) -> list[int]:
        """The CRC of each span, whose bytes are then in place."""
        chunks = self._readers.mine()
        return [self._read(chunks, span) for span in spans]

    def _read(self, chunks: ChunkReader, span: Span) -> int:
        target = self._data[span.arena_offset : span.arena_offset + span.length]
        is_whole = span.length == self._grids[span.array].payload_bytes
        if is_whole and span.length >= DIRECT_BYTES:
            return chunks.payload_into(span.array, span.chunk, target)
        payload, crc = chunks.payload(span.array, span.chunk)
        target[:] = payload[span.offset : span.offset + span.length]
        return crc if is_whole else crc32c(target)


def _mesh(mesh: Mesh) -> str:
    sizes = [f"{field.name}={getattr(mesh, field.name)}" for field in fields(mesh) if getattr(mesh, field.name) > 1]
    return " ".join(sizes) or "one rank"


def _changes(saved: Layout, layout: Layout, names: Sequence[str]) -> str:
    old = [saved.arrays[saved.positions[name]] for name in names]
    new = [layout.arrays[layout.positions[name]] for name in names]
    return "; ".join(
        f"{one.name!r}: saved {one.dtype}{list(one.shape)}, this run has {two.dtype}{list(two.shape)}"
        + ("" if (one.dtype, one.shape) != (two.dtype, two.shape) else " shared differently")
        for one, two in zip(old, new, strict=True)
    )
