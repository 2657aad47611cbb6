"""Reads the chunks of a checkpoint's objects back, some slots at a time, and says what is wrong with them.

Each span of slots is checked by itself, on any thread of any machine; what follows from all of them together is the
business of `verify`. Never repairs and never writes. Neighbours: `verify`, `problem`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import BehemothError
from behemoth.checkpoint.commit_index import CommitIndex
from behemoth.checkpoint.commit_log import is_away
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import INDEX_ENTRY_BYTES, Grid, Ints, grids
from behemoth.checkpoint.problem import Problem, kind_of, problem_at
from behemoth.ports import ObjectStore

READ_BYTES = 8 << 20
"""Bytes per read where chunks are smaller: small enough that the CRC is computed while they are in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One object of an array, `array` being its position in the layout. `chunks`: [slots], the chunk in each slot."""

    key: str
    array: int
    grid: Grid
    chunks: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of checking some slots of one shard, `shard` being its position in the list of shards. `crcs`:
    [slots], the CRC-32C of each slot's payload from slot `first` on. `num_bytes` were read."""

    shard: int
    first: int
    crcs: npt.NDArray[np.uint32]
    problems: tuple[Problem, ...]
    num_bytes: int


class SlotRange(NamedTuple):
    """Slots [first, last) of a shard, counted in a list of shards, and the bytes to read for them."""

    shard: int
    first: int
    last: int
    num_bytes: int


def shards_of(record: CommitRecord, index: CommitIndex) -> list[Shard]:
    """Every object of every array, whether it is there or not."""
    arrays = enumerate(zip(index.layout.paths, grids(index.layout), strict=True))
    return [
        Shard(
            key=f"{record.prefix}/{path}/{grid.shard_key(shard)}", array=array, grid=grid, chunks=grid.chunks_of(shard)
        )
        for array, (path, grid) in arrays
        for shard in range(grid.num_shards)
    ]


def slot_ranges_of(shards: Sequence[Shard], *, deep: bool) -> list[SlotRange]:
    """All slots of the shards, some at a time; the index of a shard goes with its first ones."""
    found = []
    for position, shard in enumerate(shards):
        grid = shard.grid
        step = max(1, READ_BYTES // grid.stride_bytes)
        for first in range(0, grid.num_slots, step):
            last = min(first + step, grid.num_slots)
            found.append(SlotRange(position, first, last, _slot_bytes(grid, first, last, deep)))
    return found


class ChunkCheck:
    """Checks spans of shards that are there in full size. Thread-safe; threads share no buffer."""

    def __init__(self, store: ObjectStore, shards: Sequence[Shard], *, deep: bool) -> None:
        self._store = store
        self._shards = shards
        self._deep = deep
        self._own = threading.local()

    def check(self, position: int, first: int, last: int) -> Found:
        """What is wrong with these slots of a shard, and the CRCs of their chunks. Damage is a problem, never raised,
        and so are the store's errors, but for those of a store that is away."""
        return self.read(position, first, last)[0]

    def read(self, position: int, first: int, last: int) -> tuple[Found, npt.NDArray[np.uint8]]:
        """As `check`, with what was read of these slots: all of their bytes in a deep check. The thread's next call
        overwrites them."""
        shard = self._shards[position]
        problems = _check_shard_index(self._store, shard) if first == 0 else []
        num_bytes = _slot_bytes(shard.grid, first, last, self._deep)
        check = _deep if self._deep else _trailers
        buffer = self._buffer(num_bytes)
        crcs = check(self._store, shard, first, last, buffer, problems)
        found = Found(shard=position, first=first, crcs=crcs, problems=tuple(problems), num_bytes=num_bytes)
        return found, buffer[: (last - first) * (shard.grid.stride_bytes if self._deep else TRAILER_BYTES)]

    def _buffer(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        buffer: npt.NDArray[np.uint8] | None = getattr(self._own, "buffer", None)
        if buffer is None or buffer.nbytes < num_bytes:
            buffer = self._own.buffer = np.empty(num_bytes, np.uint8)
        return buffer


class FoundCrcs:
    """The CRCs of all chunks of some shards as they are found out, four bytes each: the largest checkpoints have
    millions of chunks. Used by one thread."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._crcs: dict[int, npt.NDArray[np.uint32]] = {}

    def note(self, found: Found) -> None:
        """Keep the CRCs of some slots; a later call for the same slots replaces them."""
        shard = self._shards[found.shard]
        crcs = self._crcs.get(shard.array)
        if crcs is None:
            crcs = self._crcs[shard.array] = np.zeros(shard.grid.num_chunks, np.uint32)
        crcs[shard.chunks[found.first : found.first + len(found.crcs)]] = found.crcs

    def crc(self, array: int) -> int:
        """CRC-32C over the CRCs of all chunks of an array, all of which have been noted."""
        return crc32c(self._crcs[array].astype("<u4").tobytes())


def _slot_bytes(grid: Grid, first: int, last: int, deep: bool) -> int:
    each = grid.stride_bytes if deep else TRAILER_BYTES
    return (last - first) * each + (grid.index_bytes if first == 0 else 0)


def _check_shard_index(store: ObjectStore, shard: Shard) -> list[Problem]:
    grid = shard.grid
    data = bytearray(grid.index_bytes)
    try:
        store.read_into(shard.key, offset_bytes=grid.index_offset_bytes, into=data)
    except BehemothError as error:
        if is_away(error):
            raise
        kind = kind_of(error, "shard-index")
        return [problem_at(kind, shard.key, grid.index_offset_bytes, len(data), error.message, grid)]
    expected = grid.index()
    if data == expected:
        return []
    differ = [at for at in range(len(expected)) if data[at] != expected[at]]
    message = f"array {grid.spec.name!r}: {len(differ)} bytes of the shard's index are not those that the layout gives"
    offset_bytes = grid.index_offset_bytes + differ[0]
    entry = differ[0] // INDEX_ENTRY_BYTES
    chunk = int(shard.chunks[entry]) if entry < grid.num_slots else None
    return [problem_at("shard-index", shard.key, offset_bytes, differ[-1] - differ[0] + 1, message, grid, chunk)]


def _deep(
    store: ObjectStore, shard: Shard, first: int, last: int, buffer: npt.NDArray[np.uint8], problems: list[Problem]
) -> npt.NDArray[np.uint32]:
    """CRCs of the payloads, computed; each compared with the one beside it, each gap with zeros."""
    grid = shard.grid
    data = buffer[: (last - first) * grid.stride_bytes]
    crcs = np.zeros(last - first, np.uint32)
    try:
        store.read_into(shard.key, offset_bytes=first * grid.stride_bytes, into=data.data)
    except BehemothError as error:
        if is_away(error):
            raise
        problems.append(_not_read(shard, first, last, error))
        return crcs
    for number, chunk in enumerate(data.reshape(last - first, grid.stride_bytes)):
        crcs[number] = crc32c(chunk[: grid.payload_bytes].data)
        problems += _check_chunk(shard, first + number, chunk, int(crcs[number]))
    return crcs


def _check_chunk(shard: Shard, slot: int, chunk: npt.NDArray[np.uint8], crc: int) -> Iterator[Problem]:
    grid, number = shard.grid, int(shard.chunks[slot])
    offset_bytes = slot * grid.stride_bytes
    name = f"array {grid.spec.name!r}, chunk {number}"
    stored = int.from_bytes(chunk[grid.payload_bytes : grid.stored_bytes].tobytes(), "little")
    if stored != crc:
        state = ", all zero" if not chunk[: grid.stored_bytes].any() else ""
        message = f"{name}: stored CRC-32C {stored:08x}, its {grid.payload_bytes} bytes have {crc:08x}{state}"
        yield problem_at("chunk", shard.key, offset_bytes, grid.stored_bytes, message, grid, number)
    if chunk[grid.stored_bytes :].any():
        message = f"{name}: expected zeros in the gap behind it"
        at = int(np.flatnonzero(chunk[grid.stored_bytes :])[0])
        yield problem_at("gap", shard.key, offset_bytes + grid.stored_bytes + at, 1, message, grid, number)


def _trailers(
    store: ObjectStore, shard: Shard, first: int, last: int, buffer: npt.NDArray[np.uint8], problems: list[Problem]
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
        if is_away(error):
            raise
        problems.append(_not_read(shard, first, last, error))
        trailers[:] = 0
    return trailers.view("<u4").copy()


def _not_read(shard: Shard, first: int, last: int, error: BehemothError) -> Problem:
    grid = shard.grid
    length_bytes = (last - first) * grid.stride_bytes
    chunk = int(shard.chunks[first]) if last - first == 1 else None
    kind = kind_of(error, "chunk")
    return problem_at(kind, shard.key, first * grid.stride_bytes, length_bytes, error.message, grid, chunk)
