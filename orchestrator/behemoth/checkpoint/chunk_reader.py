"""Reads chunks of an opened checkpoint, and believes no byte without its CRC.

The one place that knows what damage of a chunk looks like and how it is called: array, chunk, file. Whoever reads
arrays reads through it. Neighbours: `opened`, `grid` for the offsets, `reader` and `reshard_reader` as its callers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np

from behemoth.base.errors import Corrupt, NotFound
from behemoth.checkpoint.commit_record import DAMAGED_HINT
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.own_memory import own_memory
from behemoth.checkpoint.seen_chunks import SeenChunks
from behemoth.ports import Into, ObjectStore

DIRECT_BYTES = 1 << 20
"""Payloads of at least this size are read straight into place, followed by a read of the CRC; smaller ones in one read
and copied."""


class Lent:
    """Read-only bytes that several readers share. Where they are a chunk, its CRC is computed once for all of them.
    Thread-safe."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self._lock = threading.Lock()
        self._crc: int | None = None

    def checked(self, check: Callable[[], int]) -> int:
        """The CRC-32C of the chunk. The first caller computes it by `check`, and the others block for that. Raises what
        `check` raises; the next caller then checks again."""
        with self._lock:
            if self._crc is None:
                self._crc = check()
            return self._crc


@runtime_checkable
class LendsRanges(Protocol):
    """A store that may have a range in memory already, or be reading it, for other ranks that need the same range."""

    def lent(
        self, key: str, *, offset_bytes: int, length_bytes: int, room: Callable[[int], memoryview]
    ) -> AbstractContextManager[Lent]:
        """These bytes of an object, valid within the context: shared ones, or read into `room(length_bytes)` where
        nobody else needs them. One call for both, so that a chunk which only one rank needs costs no second request.
        Blocks for the read, and raises what reading raises."""
        ...


class ChunkReaders:
    """One ChunkReader per thread. `seen`: the chunks that other ranks of the same restore have read."""

    def __init__(self, store: ObjectStore, commit: Commit, *, seen: SeenChunks | None = None) -> None:
        self._store = store
        self._commit = commit
        self._seen = SeenChunks(commit) if seen is None else seen
        self._own = threading.local()

    def mine(self) -> ChunkReader:
        """The calling thread's own reader."""
        if not hasattr(self._own, "reader"):
            self._own.reader = ChunkReader(self._store, self._commit, self._seen)
        reader: ChunkReader = self._own.reader
        return reader

    def require_committed(self) -> None:
        """Raises Corrupt when an array of which all chunks were read has some of another checkpoint."""
        self._seen.require_committed()


class ChunkReader:
    """Chunks of one commit, checked, through a scratch buffer. Not thread-safe: one per thread. Made by
    `ChunkReaders`."""

    def __init__(self, store: ObjectStore, commit: Commit, seen: SeenChunks) -> None:
        self._store = store
        self._lender = store if isinstance(store, LendsRanges) else None
        self._commit = commit
        self._seen = seen
        self._scratch = memoryview(bytearray(0))

    @contextmanager
    def lent(self, array: int, chunk: int) -> Iterator[memoryview]:
        """A chunk's payload, padding included, for as long as this lasts: without a copy where the store lends it."""
        if self._lender is None:
            yield self.payload(array, chunk)[0]
            return
        grid = grids(self._commit.layout)[array]
        end = grid.payload_bytes
        key, offset_bytes = self._commit.shard_of(array, chunk), grid.chunk_offset_bytes(chunk)
        with ExitStack() as stack:
            lent = self._lender.lent(key, offset_bytes=offset_bytes, length_bytes=grid.stored_bytes, room=self._room)
            with _damage_named(partial(self._where, array, chunk)):
                found = stack.enter_context(lent)
            crc = found.checked(partial(self._crc, array, chunk, found.data[:end], found.data[end:]))
            self._seen.note(array, chunk, crc)
            yield found.data[:end]

    def payload(self, array: int, chunk: int) -> tuple[memoryview, int]:
        """A chunk's payload, padding included, and its CRC. Valid until the next call."""
        grid = grids(self._commit.layout)[array]
        raw = self._room(grid.stored_bytes)
        self._read(array, chunk, grid.chunk_offset_bytes(chunk), raw)
        return raw[: grid.payload_bytes], self._checked(
            array, chunk, raw[: grid.payload_bytes], raw[grid.payload_bytes :]
        )

    def payload_into(self, array: int, chunk: int, into: memoryview) -> int:
        """Read a payload straight into place; its CRC."""
        grid = grids(self._commit.layout)[array]
        tail = self._room(TRAILER_BYTES)
        self._read(array, chunk, grid.chunk_offset_bytes(chunk), (into, tail))
        return self._checked(array, chunk, into, tail)

    def stride(self, array: int, chunk: int) -> tuple[memoryview, int]:
        """Like `payload`, and checks that padding and gap are zeros."""
        grid = grids(self._commit.layout)[array]
        raw = self._room(grid.stride_bytes)
        self._read(array, chunk, grid.chunk_offset_bytes(chunk), raw)
        crc = self._checked(array, chunk, raw[: grid.payload_bytes], raw[grid.payload_bytes : grid.stored_bytes])
        for what, start, stop in (
            ("padding", grid.data_bytes(chunk), grid.payload_bytes),
            ("gap", grid.stored_bytes, grid.stride_bytes),
        ):
            if np.frombuffer(raw[start:stop], dtype=np.uint8).any():
                raise Corrupt(
                    f"{self._where(array, chunk)}: expected zeros in its {what}, got others",
                    hint=DAMAGED_HINT,
                    code="chunk-gap",
                )
        return raw[: grid.payload_bytes], crc

    def stored_crc(self, array: int, chunk: int) -> int:
        """The CRC that stands beside a chunk; its payload is not read."""
        grid = grids(self._commit.layout)[array]
        tail = self._room(TRAILER_BYTES)
        self._read(array, chunk, grid.chunk_offset_bytes(chunk) + grid.payload_bytes, tail)
        return int.from_bytes(tail, "little")

    def check_indexes(self, array: int) -> None:
        """The index of each shard must be the one that its shape gives."""
        grid = grids(self._commit.layout)[array]
        raw = self._room(grid.index_bytes)
        for key in self._commit.shard_keys(array):
            self._check_index(grid, key, raw)

    def _check_index(self, grid: Grid, key: str, raw: memoryview) -> None:
        with _damage_named(lambda: f"array {grid.spec.name!r}, index, file {key}"):
            self._store.read_into(key, offset_bytes=grid.index_offset_bytes, into=raw)
        if raw != grid.index():
            raise Corrupt(
                f"array {grid.spec.name!r}, index of file {key}: expected that of its shape, got another",
                hint=DAMAGED_HINT,
                code="shard-index",
            )

    def _room(self, num_bytes: int) -> memoryview:
        if len(self._scratch) < num_bytes:
            self._scratch = own_memory(num_bytes)  # from a page on: a disk can write into it
        return self._scratch[:num_bytes]

    def _read(self, array: int, chunk: int, offset_bytes: int, into: Into) -> None:
        with _damage_named(partial(self._where, array, chunk)):
            self._store.read_into(self._commit.shard_of(array, chunk), offset_bytes=offset_bytes, into=into)

    def _checked(self, array: int, chunk: int, payload: memoryview, tail: memoryview) -> int:
        crc = self._crc(array, chunk, payload, tail)
        self._seen.note(array, chunk, crc)
        return crc

    def _crc(self, array: int, chunk: int, payload: memoryview, tail: memoryview) -> int:
        crc, stored = crc32c(payload), int.from_bytes(tail, "little")
        if crc != stored:
            raise Corrupt(
                f"{self._where(array, chunk)}: expected CRC-32C {stored:08x}, got {crc:08x} over {len(payload)} bytes",
                hint=DAMAGED_HINT,
                code="chunk-crc",
            )
        return crc

    def _where(self, array: int, chunk: int) -> str:
        name = self._commit.layout.arrays[array].name
        return f"array {name!r}, chunk {chunk}, file {self._commit.shard_of(array, chunk)}"


@contextmanager
def _damage_named(where: Callable[[], str]) -> Iterator[None]:
    """What a read finds missing is damage of what `where()` tells, which is asked only then."""
    try:
        yield
    except NotFound as error:
        raise Corrupt(f"{where()}: expected the file, got none", hint=DAMAGED_HINT, code="shard-missing") from error
    except Corrupt as error:
        raise Corrupt(f"{where()}: {error.message}", hint=DAMAGED_HINT, code="shard-short") from error
