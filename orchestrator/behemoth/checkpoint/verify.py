"""Reads a checkpoint back and says of every damaged byte where it is: tensor, chunk, file, range.

Covers every bit below the checkpoint's prefix and its commit record: the record has a CRC, it holds that of the index,
the index those of all metadata, each chunk its own; the shards' indexes follow from the layout; gaps are zero; what is
missing or extra shows in the listing. Never repairs and never writes. Neighbours: `verify_store` checks what lies
beside the checkpoints; `reader` refuses at the first fault because a run waits, this one finds all of them.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import BehemothError, NotFound
from behemoth.base.ids import Step
from behemoth.checkpoint.commit_index import CommitIndex
from behemoth.checkpoint.commit_log import BadCommit, read_record
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import INDEX_ENTRY_BYTES, Grid, Ints, grids
from behemoth.checkpoint.opened import METADATA_MISSING, read_index
from behemoth.checkpoint.paths import INDEX, METADATA, commit_key
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef

READ_BYTES = 8 << 20
"""Bytes per read where chunks are smaller: what fits a core's share of the cache is summed before it leaves it."""

Kind = Literal[
    "owner",
    "marker",
    "commit-record",
    "index",
    "metadata",
    "missing",
    "extra",
    "size",
    "unreadable",
    "shard-index",
    "chunk",
    "gap",
    "content",
]
Progress = Callable[[int, int], None]
"""Told bytes done and bytes to do, from the thread that called `verify`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One damaged place: bytes [offset, offset + length) of an object, whose key is below the run's root.

    `array` and `chunk` (C order of the chunk grid) are None where it is not in an array, or not in one chunk."""

    kind: Kind
    object_key: str
    offset_bytes: int
    length_bytes: int
    message: str
    array: str | None = None
    chunk: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What verification found, in the order of the objects. `num_bytes` were read; a check that is not `deep` did not
    read the payloads."""

    step: Step | None
    deep: bool
    num_objects: int
    num_chunks: int
    num_bytes: int
    problems: tuple[Problem, ...]

    @property
    def is_intact(self) -> bool:
        """No problem was found."""
        return not self.problems


def verify(
    store: ObjectStore,
    commit: CommitRef | BadCommit,
    *,
    threads: int,
    deep: bool,
    progress: Progress | None = None,
) -> Report:
    """Check one checkpoint. Blocks: deep for about 0.2 s per GiB and thread from memory, else for a small read a chunk.

    Damage never raises, it is reported; errors of the store on single objects are problems of kind `unreadable`. Not
    deep, payloads and gaps are not read: sizes, metadata, shard indexes and the CRCs beside the chunks are.
    """
    if isinstance(commit, BadCommit):
        return _report(commit.step, deep, [_of_record(commit.key, commit.error)])
    try:
        record = read_record(store, commit)
    except BehemothError as error:
        return _report(commit.step, deep, [_of_record(commit_key(commit.step), error)])
    listed = {info.key: info.size_bytes for info in store.list(record.prefix)}
    problems: list[Problem] = []
    index = _read_index(store, record, problems)
    if index is None:
        return _report(commit.step, deep, problems, num_objects=len(listed) + 1)
    problems += _check_listing(record, index, listed)
    problems += _check_metadata(store, record, index)
    shards = [shard for shard in _shards(record, index) if listed.get(shard.key) == shard.grid.file_bytes]
    found = list(_Check(store, shards, deep=deep).run(max(1, threads), progress))
    problems += [problem for one in found for problem in one.problems]
    problems += _check_contents(record, index, shards, found)
    return _report(commit.step, deep, problems, found, num_objects=len(listed) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """One object of an array, which counts in the layout's order. `chunks`: those of its slots."""

    key: str
    array: int
    grid: Grid
    chunks: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one job found out. `crcs` are those of its slots, from `first` on, as the content CRC counts them."""

    shard: int
    first: int
    crcs: npt.NDArray[np.uint32]
    problems: tuple[Problem, ...]
    num_bytes: int


def _report(
    step: Step | None, deep: bool, problems: Sequence[Problem], found: Sequence[_Found] = (), *, num_objects: int = 1
) -> Report:
    return Report(
        step=step,
        deep=deep,
        num_objects=num_objects,
        num_chunks=sum(len(one.crcs) for one in found),
        num_bytes=sum(one.num_bytes for one in found),
        problems=tuple(sorted(problems, key=lambda problem: (problem.object_key, problem.offset_bytes))),
    )


def _of_record(key: str, error: BehemothError) -> Problem:
    kind: Kind = "missing" if isinstance(error, NotFound) else "commit-record"
    return _problem(kind, key, 0, 0, error.message)


def _read_index(store: ObjectStore, record: CommitRecord, problems: list[Problem]) -> CommitIndex | None:
    """The index, or None with the reason in `problems`: without it nobody knows what else to look at."""
    try:
        return read_index(store, record)
    except BehemothError as error:
        kind: Kind = "missing" if error.code == METADATA_MISSING else "index"
        problems.append(_problem(kind, f"{record.prefix}/{INDEX}", 0, record.index_bytes, error.message))
    return None


def _check_bytes(store: ObjectStore, key: str, size_bytes: int, crc: int, *, kind: Kind) -> Problem | None:
    """A small object against its CRC."""
    data = bytearray(size_bytes)
    try:
        store.read_into(key, offset_bytes=0, into=data)
    except BehemothError as error:
        of = "missing" if isinstance(error, NotFound) else kind
        return Problem(kind=of, object_key=key, offset_bytes=0, length_bytes=size_bytes, message=error.message)
    if crc32c(data) == crc:
        return None
    message = f"{kind}: expected CRC-32C {crc:08x} over {size_bytes} bytes, got {crc32c(data):08x}"
    return Problem(kind=kind, object_key=key, offset_bytes=0, length_bytes=size_bytes, message=message)


def _check_listing(record: CommitRecord, index: CommitIndex, listed: Mapping[str, int]) -> list[Problem]:
    """Every object there, of its size, and no other."""
    shards = {shard.key: shard for shard in _shards(record, index)}
    sizes = {key: shard.grid.file_bytes for key, shard in shards.items()}
    sizes |= {f"{record.prefix}/{one.key}": one.size_bytes for one in index.metadata}
    sizes[f"{record.prefix}/{INDEX}"] = record.index_bytes
    problems = [
        _of_size(key, size, listed[key], shards.get(key))
        for key, size in sizes.items()
        if key in listed and listed[key] != size
    ]
    for key in sorted(shards.keys() - listed.keys()):
        grid = shards[key].grid
        message = f"array {grid.spec.name!r}: expected an object of {grid.file_bytes} bytes, got none"
        problems.append(_problem("missing", key, 0, grid.file_bytes, message, grid))
    for key in sorted(listed.keys() - sizes.keys()):
        message = "expected no such object in a checkpoint, got one"
        problems.append(_problem("extra", key, 0, listed[key], message))
    return problems


def _of_size(key: str, expected_bytes: int, got_bytes: int, shard: _Shard | None) -> Problem:
    low, high = sorted((expected_bytes, got_bytes))
    message = f"expected {expected_bytes} bytes, got {got_bytes} bytes"
    if shard is None:
        return _problem("size", key, low, high - low, message)
    grid = shard.grid
    chunk = int(shard.chunks[low // grid.stride_bytes]) if low < grid.index_offset_bytes else None
    return _problem("size", key, low, high - low, message, grid, chunk)


def _check_metadata(store: ObjectStore, record: CommitRecord, index: CommitIndex) -> list[Problem]:
    arrays = zip(index.layout.paths, index.layout.arrays, strict=True)
    names = {f"{path}/{METADATA}": array.name for path, array in arrays}
    problems = []
    for one in index.metadata:
        problem = _check_bytes(store, f"{record.prefix}/{one.key}", one.size_bytes, one.crc, kind="metadata")
        if problem is not None:
            problems.append(replace(problem, array=names.get(one.key)))
    return problems


def _shards(record: CommitRecord, index: CommitIndex) -> list[_Shard]:
    arrays = enumerate(zip(index.layout.paths, grids(index.layout), strict=True))
    return [
        _Shard(
            key=f"{record.prefix}/{path}/{grid.shard_key(shard)}", array=array, grid=grid, chunks=grid.chunks_of(shard)
        )
        for array, (path, grid) in arrays
        for shard in range(grid.num_shards)
    ]


def _problem(
    kind: Kind, key: str, offset: int, length: int, message: str, grid: Grid | None = None, chunk: int | None = None
) -> Problem:
    return Problem(
        kind=kind,
        object_key=key,
        offset_bytes=offset,
        length_bytes=length,
        message=message,
        array=None if grid is None else grid.spec.name,
        chunk=chunk,
    )


class _Check:
    """The chunks of all shards that are there in full size, a batch a job. Jobs share buffers, one per thread."""

    def __init__(self, store: ObjectStore, shards: Sequence[_Shard], *, deep: bool) -> None:
        self._store = store
        self._shards = shards
        self._deep = deep
        self._buffers: queue.SimpleQueue[npt.NDArray[np.uint8]] = queue.SimpleQueue()

    def run(self, threads: int, progress: Progress | None) -> Iterator[_Found]:
        """What each job found, in order of the chunks. Progress is told as jobs end."""
        jobs = list(self._jobs())
        total_bytes = sum(num_bytes for *_, num_bytes in jobs)
        for _ in range(threads):
            self._buffers.put(np.empty(0, np.uint8))
        pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="ckpt-verify")
        try:
            asked = [pool.submit(self._job, position, first, last) for position, first, last, _ in jobs]
            done_bytes = 0
            for future in as_completed(asked):
                done_bytes += future.result().num_bytes
                if progress is not None:
                    progress(done_bytes, total_bytes)
            yield from (future.result() for future in asked)
        finally:
            pool.shutdown(cancel_futures=True)

    def _jobs(self) -> Iterator[tuple[int, int, int, int]]:
        """Shard, first slot, last slot + 1, bytes to read; the index of a shard goes with its first slots."""
        for position, shard in enumerate(self._shards):
            grid = shard.grid
            step = max(1, READ_BYTES // grid.stride_bytes)
            for first in range(0, grid.num_slots, step):
                last = min(first + step, grid.num_slots)
                each = grid.stride_bytes if self._deep else TRAILER_BYTES
                yield position, first, last, (last - first) * each + (grid.index_bytes if first == 0 else 0)

    def _job(self, position: int, first: int, last: int) -> _Found:
        shard = self._shards[position]
        problems: list[Problem] = []
        num_bytes = 0
        if first == 0:
            problems += _check_shard_index(self._store, shard)
            num_bytes = shard.grid.index_bytes
        buffer = self._buffers.get()
        try:
            num_bytes += (last - first) * (shard.grid.stride_bytes if self._deep else TRAILER_BYTES)
            if buffer.nbytes < num_bytes:
                buffer = np.empty(num_bytes, np.uint8)
            check = _deep if self._deep else _trailers
            crcs = check(self._store, shard, first, last, buffer, problems)
        finally:
            self._buffers.put(buffer)
        return _Found(shard=position, first=first, crcs=crcs, problems=tuple(problems), num_bytes=num_bytes)


def _check_shard_index(store: ObjectStore, shard: _Shard) -> list[Problem]:
    grid = shard.grid
    data = bytearray(grid.index_bytes)
    try:
        store.read_into(shard.key, offset_bytes=grid.index_offset_bytes, into=data)
    except BehemothError as error:
        return [_problem("unreadable", shard.key, grid.index_offset_bytes, len(data), error.message, grid)]
    expected = grid.index()
    if data == expected:
        return []
    differ = [at for at in range(len(expected)) if data[at] != expected[at]]
    message = f"array {grid.spec.name!r}: {len(differ)} bytes of the shard's index are not those that the layout gives"
    offset_bytes = grid.index_offset_bytes + differ[0]
    entry = differ[0] // INDEX_ENTRY_BYTES
    chunk = int(shard.chunks[entry]) if entry < grid.num_slots else None
    return [_problem("shard-index", shard.key, offset_bytes, differ[-1] - differ[0] + 1, message, grid, chunk)]


def _deep(
    store: ObjectStore, shard: _Shard, first: int, last: int, buffer: npt.NDArray[np.uint8], problems: list[Problem]
) -> npt.NDArray[np.uint32]:
    """CRCs of the payloads, computed; each compared with the one beside it, each gap with zeros."""
    grid = shard.grid
    data = buffer[: (last - first) * grid.stride_bytes]
    crcs = np.zeros(last - first, np.uint32)
    try:
        store.read_into(shard.key, offset_bytes=first * grid.stride_bytes, into=data.data)
    except BehemothError as error:
        problems.append(_unreadable(shard, first, last, error))
        return crcs
    for number, chunk in enumerate(data.reshape(last - first, grid.stride_bytes)):
        crcs[number] = crc32c(chunk[: grid.payload_bytes].data)
        problems += _check_chunk(shard, first + number, chunk, int(crcs[number]))
    return crcs


def _check_chunk(shard: _Shard, slot: int, chunk: npt.NDArray[np.uint8], crc: int) -> Iterator[Problem]:
    grid, number = shard.grid, int(shard.chunks[slot])
    offset_bytes = slot * grid.stride_bytes
    name = f"array {grid.spec.name!r}, chunk {number}"
    covered_bytes = grid.payload_bytes + TRAILER_BYTES
    stored = int.from_bytes(chunk[grid.payload_bytes : covered_bytes].tobytes(), "little")
    if stored != crc:
        state = ", all zero" if not chunk[:covered_bytes].any() else ""
        message = f"{name}: stored CRC-32C {stored:08x}, its {grid.payload_bytes} bytes have {crc:08x}{state}"
        yield _problem("chunk", shard.key, offset_bytes, covered_bytes, message, grid, number)
    if chunk[covered_bytes:].any():
        message = f"{name}: expected zeros in the gap behind it"
        at = int(np.flatnonzero(chunk[covered_bytes:])[0])
        yield _problem("gap", shard.key, offset_bytes + covered_bytes + at, 1, message, grid, number)


def _trailers(
    store: ObjectStore, shard: _Shard, first: int, last: int, buffer: npt.NDArray[np.uint8], problems: list[Problem]
) -> npt.NDArray[np.uint32]:
    """CRCs of the payloads, as they stand beside them."""
    grid = shard.grid
    trailers = buffer[: (last - first) * TRAILER_BYTES]
    try:
        for number in range(last - first):
            offset_bytes = (first + number) * grid.stride_bytes + grid.payload_bytes
            into = trailers[number * TRAILER_BYTES : (number + 1) * TRAILER_BYTES].data
            store.read_into(shard.key, offset_bytes=offset_bytes, into=into)
    except BehemothError as error:
        problems.append(_unreadable(shard, first, last, error))
        trailers[:] = 0
    return trailers.view("<u4").copy()


def _unreadable(shard: _Shard, first: int, last: int, error: BehemothError) -> Problem:
    grid = shard.grid
    length_bytes = (last - first) * grid.stride_bytes
    chunk = int(shard.chunks[first]) if last - first == 1 else None
    return _problem("unreadable", shard.key, first * grid.stride_bytes, length_bytes, error.message, grid, chunk)


def _check_contents(
    record: CommitRecord, index: CommitIndex, shards: Sequence[_Shard], found: Sequence[_Found]
) -> Iterator[Problem]:
    """Chunks that are whole but not those of this commit: the CRC over all CRCs tells. Says nothing of arrays of which
    an object is missing or a chunk was found damaged already."""
    of_array: dict[int, list[_Found]] = {}
    for one in found:
        of_array.setdefault(shards[one.shard].array, []).append(one)
    for array, parts in of_array.items():
        grid = shards[parts[0].shard].grid
        is_damaged = any(problem.kind in ("chunk", "unreadable") for part in parts for problem in part.problems)
        if is_damaged or sum(len(part.crcs) for part in parts) < grid.num_chunks:
            continue
        crcs = np.empty(grid.num_chunks, "<u4")
        for part in parts:
            crcs[shards[part.shard].chunks[part.first : part.first + len(part.crcs)]] = part.crcs
        crc, expected = crc32c(crcs.tobytes()), index.content_crcs[array]
        if crc != expected:
            told = f"expected CRC-32C {expected:08x} over the CRCs of all chunks, got {crc:08x}"
            message = f"array {grid.spec.name!r}: {told}: chunks of another checkpoint, or damaged CRCs"
            key = f"{record.prefix}/{index.layout.paths[array]}" if grid.num_shards > 1 else shards[parts[0].shard].key
            yield _problem("content", key, 0, grid.num_shards * grid.index_offset_bytes, message, grid)
