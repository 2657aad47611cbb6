"""Reads a checkpoint back, into a rank's arena or as logical arrays, and believes no byte without its CRC.

It never falls back to another commit and never repairs: the caller decides what to do about Corrupt. A missing object
is an error, never a fill value. Neighbours: `commit_log` finds commits, `arena` receives, `verify` looks at every bit.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.checkpoint.arena import Arena, Snapshot
from behemoth.checkpoint.commit_index import CommitIndex, metadata_objects
from behemoth.checkpoint.commit_log import read_record
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import DTYPES, Layout
from behemoth.checkpoint.paths import INDEX
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.threads import run_all
from behemoth.ports import ObjectStore
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef

DIRECT_BYTES = 1 << 20
"""From here on a payload is read straight into place and its CRC by a second read; below, one read and a copy."""
BATCH_SPANS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """An opened checkpoint: its record is intact, and so is all of its metadata."""

    record: CommitRecord
    layout: Layout
    index: CommitIndex

    def shard_key(self, array: int) -> str:
        """Key of the object that holds an array, counted in the layout's order."""
        return f"{self.record.prefix}/{self.layout.paths[array]}/{grids(self.layout)[array].chunk_key}"


def open_commit(store: ObjectStore, ref: CommitRef) -> Commit:
    """Read and check the metadata: the record, the index against it, each zarr.json against the index.

    Blocks for one small read per array. Raises NotFound when the commit is gone, Corrupt naming the file, Invalid for a
    newer format.
    """
    record = read_record(store, ref)
    index = CommitIndex.decode(_metadata(store, f"{record.prefix}/{INDEX}", record.index_bytes, record.index_crc))
    if index.layout.digest != record.layout_digest or index.layout.mesh != record.mesh:
        raise Corrupt(f"file {record.prefix}/{INDEX}: its layout is not that of the commit", code="index-layout")
    # Keys only: a later minor version may say more in its zarr.json, and the CRC covers whatever that is.
    if [one.key for one in index.metadata] != sorted(metadata_objects(index.layout)):
        raise Corrupt(f"file {record.prefix}/{INDEX}: its metadata is not that of its layout", code="index-layout")
    for one in index.metadata:
        _metadata(store, f"{record.prefix}/{one.key}", one.size_bytes, one.crc)
    return Commit(record=record, layout=index.layout, index=index)


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
    reader = _ChunkReader(store, commit)
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


class _ChunkReader:
    """Chunks of one commit, checked, through a scratch buffer. Not thread-safe: one per thread."""

    def __init__(self, store: ObjectStore, commit: Commit) -> None:
        self._store = store
        self._commit = commit
        self._scratch = memoryview(bytearray(0))

    def payload(self, array: int, chunk: int) -> tuple[memoryview, int]:
        """A chunk's payload, padding included, and its CRC. Valid until the next call."""
        grid = grids(self._commit.layout)[array]
        raw = self._room(grid.payload_bytes + TRAILER_BYTES)
        self._read(array, chunk, grid.chunk_offset_bytes(chunk), raw)
        return raw[: grid.payload_bytes], self._checked(
            array, chunk, raw[: grid.payload_bytes], raw[grid.payload_bytes :]
        )

    def payload_into(self, array: int, chunk: int, into: memoryview) -> int:
        """Read a payload straight into place; its CRC."""
        grid = grids(self._commit.layout)[array]
        start = grid.chunk_offset_bytes(chunk)
        self._read(array, chunk, start, into)
        tail = self._room(TRAILER_BYTES)
        self._read(array, chunk, start + grid.payload_bytes, tail)
        return self._checked(array, chunk, into, tail)

    def stride(self, array: int, chunk: int) -> tuple[memoryview, int]:
        """Like `payload`, and checks that padding and gap are zeros."""
        grid = grids(self._commit.layout)[array]
        raw = self._room(grid.stride_bytes)
        self._read(array, chunk, grid.chunk_offset_bytes(chunk), raw)
        end = grid.payload_bytes + TRAILER_BYTES
        crc = self._checked(array, chunk, raw[: grid.payload_bytes], raw[grid.payload_bytes : end])
        for what, start, stop in (
            ("padding", grid.data_bytes(chunk), grid.payload_bytes),
            ("gap", end, grid.stride_bytes),
        ):
            if np.frombuffer(raw[start:stop], dtype=np.uint8).any():
                raise Corrupt(f"{self._where(array, chunk)}: expected zeros in its {what}", code="chunk-gap")
        return raw[: grid.payload_bytes], crc

    def check_index(self, array: int) -> None:
        """The shard's index must be the one that its shape gives."""
        grid = grids(self._commit.layout)[array]
        raw = self._room(grid.index_bytes)
        self._read(array, -1, grid.index_offset_bytes, raw)
        if raw != grid.index():
            name, key = grid.spec.name, self._commit.shard_key(array)
            raise Corrupt(f"array {name!r}, index of file {key}: not that of its shape", code="shard-index")

    def _room(self, num_bytes: int) -> memoryview:
        if len(self._scratch) < num_bytes:
            self._scratch = memoryview(mmap.mmap(-1, num_bytes))  # from a page on: a disk can write into it
        return self._scratch[:num_bytes]

    def _read(self, array: int, chunk: int, offset_bytes: int, into: memoryview) -> None:
        try:
            self._store.read_into(self._commit.shard_key(array), offset_bytes=offset_bytes, into=into)
        except NotFound as error:
            raise Corrupt(f"{self._where(array, chunk)}: the file is missing", code="shard-missing") from error
        except Corrupt as error:
            raise Corrupt(f"{self._where(array, chunk)}: {error.message}", code="shard-short") from error

    def _checked(self, array: int, chunk: int, payload: memoryview, tail: memoryview) -> int:
        crc, stored = crc32c(payload), int.from_bytes(tail, "little")
        if crc != stored:
            raise Corrupt(
                f"{self._where(array, chunk)}: expected CRC-32C {stored:08x}, got {crc:08x} over {len(payload)} bytes",
                hint="go back to an older checkpoint",
                code="chunk-crc",
            )
        return crc

    def _where(self, array: int, chunk: int) -> str:
        name = self._commit.layout.arrays[array].name
        part = "index" if chunk < 0 else f"chunk {chunk}"
        return f"array {name!r}, {part}, file {self._commit.shard_key(array)}"


class _RankRead:
    """Reads spans on several threads; each thread has its own scratch buffer."""

    def __init__(self, store: ObjectStore, commit: Commit, data: memoryview) -> None:
        self._store = store
        self._commit = commit
        self._data = data
        self._grids: Sequence[Grid] = grids(commit.layout)
        self._own = threading.local()

    def run(self, spans: Sequence[Span]) -> list[int]:
        """The CRC of each span, whose bytes are then in place."""
        if not hasattr(self._own, "chunks"):
            self._own.chunks = _ChunkReader(self._store, self._commit)
        return [self._read(self._own.chunks, span) for span in spans]

    def _read(self, chunks: _ChunkReader, span: Span) -> int:
        target = self._data[span.arena_offset : span.arena_offset + span.length]
        is_whole = span.length == self._grids[span.array].payload_bytes
        if is_whole and span.length >= DIRECT_BYTES:
            return chunks.payload_into(span.array, span.chunk, target)
        payload, crc = chunks.payload(span.array, span.chunk)
        target[:] = payload[span.offset : span.offset + span.length]
        return crc if is_whole else crc32c(target)


def _metadata(store: ObjectStore, key: str, size_bytes: int, crc: int) -> bytes:
    data = bytearray(size_bytes)
    try:
        store.read_into(key, offset_bytes=0, into=data)
    except NotFound as error:
        raise Corrupt(f"file {key}: missing", code="metadata-missing") from error
    except Corrupt as error:
        raise Corrupt(f"file {key}: {error.message}", code="metadata-short") from error
    if crc32c(data) != crc:
        raise Corrupt(f"file {key}: expected CRC-32C {crc:08x}, got {crc32c(data):08x}", code="metadata-crc")
    return bytes(data)


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
