"""A rank's newest snapshots in two files on its node's own disk, written in turn: a good one is overwritten only while
the other is whole.

A file counts by its header, which is written last, after all else is durable, and taken back first. So a process that
is killed at any moment leaves the older snapshot, or the newer one. The arena may be filled anew while it is copied:
its sequence is looked at again after the last byte has been read, and the CRCs tell the rest. Neighbours:
`snapshot_format` (what stands where), `arena` (where snapshots come from), `gathering` (where they go to).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Invalid, NotFound, Unavailable
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import CRC_BYTES, PAGE_BYTES, Snapshot
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.plan import RankPlan
from behemoth.checkpoint.small_objects import find_listed
from behemoth.checkpoint.snapshot_format import (
    NO_HEADER,
    NUM_FILES,
    TABLE_OFFSET,
    SnapshotHeader,
    data_offset,
    file_bytes,
    table_bytes,
)
from behemoth.ports import ObjectStore, Part, WritesRanges

UNREADABLE = "snapshot-unreadable"
"""The code of NotFound when a file exists that could not be read and might hold the wanted snapshot."""
BLOCK_BYTES = 8 << 20
"""What is written at once, whole pages."""


def keys_of(prefix: str, rank: int) -> tuple[str, ...]:
    """The files of a rank."""
    return tuple(f"{prefix}/rank-{rank:05d}.{index}" for index in range(NUM_FILES))


class SnapshotFiles:
    """The files of the rank of `plan`, below `prefix` of a store. One thread at a time writes; others may read
    meanwhile."""

    def __init__(self, store: WritesRanges, prefix: str, plan: RankPlan, *, run_uid: RunUid) -> None:
        self._store = store
        self._plan = plan
        self._run_uid = run_uid
        self.keys = keys_of(prefix, plan.rank)

    def find(self, write_id: WriteId, step: Step) -> SnapshotInFile:
        """The snapshot of a write. Raises NotFound, which says what lies there instead."""
        said: list[str] = []
        code = "no-snapshot"
        for key in self.keys:
            name = key.rpartition("/")[2]
            try:
                header = self._header(key)
            except NotFound:
                continue
            except BehemothError as error:
                said.append(f"{name}: {error.message}")
                code = UNREADABLE
                continue
            if header is None:
                said.append(f"{name} is unfinished")
            elif not header.is_of(self._plan, self._run_uid):
                said.append(f"{name} is of another run, rank or layout")
            elif (header.write_id, header.step) == (write_id, step):
                return SnapshotInFile(self._store, key, self._plan, header)
            else:
                said.append(f"{name} holds write {header.write_id} of step {header.step}")
        raise NotFound(
            f"own disk: expected write {write_id} of step {step} of rank {self._plan.rank}, got "
            f"{'; '.join(said) or 'no file'}",
            code=code,
        )

    def holds(self, write_id: WriteId, step: Step) -> bool:
        """Whether a file says that it has the write."""
        return any(one is not None and (one.write_id, one.step) == (write_id, step) for _, one in self._held())

    def new_bytes(self) -> int:
        """How much more room the next `write` takes on the disk: nothing where it fills a file that is there."""
        key, _ = self._next()
        return 0 if self._size(key) == file_bytes(self._plan) else file_bytes(self._plan)

    def write(self, arena: Arena, snapshot: Snapshot, *, pace: Callable[[int], None]) -> None:
        """Copy a verified snapshot into the file whose turn it is, durably. `pace` is called before each block with its
        size, and may wait or raise: what was there is given up then, the other file stays.

        Raises Conflict when the arena was filled anew meanwhile, or holds other bytes than were saved, and the store's
        errors; one that has no room keeps nothing of the file."""
        key, turn = self._next()
        self._give_up(key)
        try:
            table_crc = self._fill(key, arena, snapshot, pace)
            self._store.seal([key])
            header = SnapshotHeader.of(
                self._plan,
                run_uid=self._run_uid,
                step=snapshot.step,
                write_id=snapshot.write_id,
                turn=turn,
                table_crc=table_crc,
            )
            self._put(key, 0, header.encode())
            self._store.seal([key])
        except Unavailable as error:
            if error.code == "no-space":  # others may need what is left
                self._store.delete([key])
            raise

    def drop(self, write_id: WriteId) -> None:
        """Forget a snapshot that has turned out to be damaged, so that it is written again."""
        for key, header in self._held():
            if header is not None and header.write_id == write_id:
                self._give_up(key)

    def _fill(self, key: str, arena: Arena, snapshot: Snapshot, pace: Callable[[int], None]) -> int:
        """All but the header; the CRC of the table."""
        crcs, data = arena.crcs(snapshot.generation), arena.data(snapshot.generation)
        num_checked = 0
        for at in range(0, self._plan.data_bytes, BLOCK_BYTES):
            end = min(at + BLOCK_BYTES, self._plan.data_bytes)
            pace(end - at)
            self._put(key, data_offset(self._plan) + at, data[at:end])
            _require_held(arena, snapshot)
            num_checked = self._checked(data, crcs, num_checked, end)
        table = crcs.tobytes()
        self._put(key, TABLE_OFFSET, table)
        _require_held(arena, snapshot)
        return crc32c(table)

    def _checked(self, data: memoryview, crcs: npt.NDArray[np.uint32], first: int, end: int) -> int:
        """Hold the spans from the `first` on that end within the first `end` bytes to their CRCs, while those are in
        the caches; the number of the next one."""
        for number in range(first, len(self._plan.spans)):
            span, expected = self._plan.spans[number], int(crcs[number])
            if span.arena_offset + span.length > end:
                return number
            got = crc32c(data[span.arena_offset : span.arena_offset + span.length])
            if got != expected:
                raise Conflict(
                    f"rank {self._plan.rank}, array {self._plan.pieces[span.piece].name!r}: expected CRC-32C "
                    f"{expected:08x}, got {got:08x} over {span.length} bytes at {span.arena_offset} of its staging "
                    "memory",
                    hint="it was filled anew meanwhile, or is damaged",
                    code="copy-crc",
                )
        return len(self._plan.spans)

    def _next(self) -> tuple[str, int]:
        """The file to overwrite: one without a snapshot, else the older; and the turn that its header will tell."""
        held = self._held()
        turns = [header.turn for _, header in held if header is not None]
        key, _ = min(held, key=lambda one: -1 if one[1] is None else one[1].turn)
        return key, 1 + max(turns, default=0)

    def _held(self) -> list[tuple[str, SnapshotHeader | None]]:
        """Each file with its header, None unless it is a snapshot of this rank."""
        found: list[tuple[str, SnapshotHeader | None]] = []
        for key in self.keys:
            try:
                header = self._header(key)
            except BehemothError as error:
                if not gives_nothing(error):
                    raise
                header = None
            found.append((key, header if header is not None and header.is_of(self._plan, self._run_uid) else None))
        return found

    def _header(self, key: str) -> SnapshotHeader | None:
        page = bytearray(PAGE_BYTES)
        self._store.read_into(key, offset_bytes=0, into=page)
        return SnapshotHeader.decode(bytes(page))

    def _give_up(self, key: str) -> None:
        """What the file held is no snapshot from now on, durably, before the first byte of it changes."""
        size_bytes = self._size(key)
        if size_bytes is None:
            return
        if size_bytes != file_bytes(self._plan):
            self._store.delete([key])
            return
        self._put(key, 0, NO_HEADER)
        self._store.seal([key])

    def _size(self, key: str) -> int | None:
        info = find_listed(self._store, key.rpartition("/")[0], key)
        return None if info is None else info.size_bytes

    def _put(self, key: str, offset_bytes: int, data: bytes | memoryview) -> None:
        part = Part(offset_bytes=offset_bytes, buffers=(data,))
        self._store.write_parts(key, size_bytes=file_bytes(self._plan), parts=(part,))


def gives_nothing(error: BehemothError) -> bool:
    """Whether a file has no snapshot for anybody, however often it is read: damage, or a device that cannot read it."""
    return isinstance(error, NotFound | Conflict | Corrupt | Invalid) or error.code == "io-error"


class SnapshotInFile:
    """Implements `gathering.SnapshotSource`."""

    def __init__(self, store: ObjectStore, key: str, plan: RankPlan, header: SnapshotHeader) -> None:
        self._store = store
        self._key = key
        self._plan = plan
        self._header = header

    def crcs(self) -> Sequence[int]:
        """Raises Corrupt when the table is damaged."""
        table = bytearray(table_bytes(self._plan))
        self._store.read_into(self._key, offset_bytes=TABLE_OFFSET, into=table)
        if (crc := crc32c(table)) != self._header.table_crc:
            raise Corrupt(
                f"own disk: {self._key}: expected CRC-32C {self._header.table_crc:08x} over its table of CRCs, got "
                f"{crc:08x}",
                code="snapshot-table",
            )
        return np.frombuffer(table, dtype=f"<u{CRC_BYTES}").tolist()  # type: ignore[no-any-return]

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        """In two reads where the range begins within a page: pages of file and arena coincide, so that the rest is
        aligned for direct I/O."""
        unaligned = min(-offset_bytes % PAGE_BYTES, into.nbytes)
        at = data_offset(self._plan) + offset_bytes
        if unaligned:
            self._store.read_into(self._key, offset_bytes=at, into=into[:unaligned])
        if unaligned < into.nbytes:
            self._store.read_into(self._key, offset_bytes=at + unaligned, into=into[unaligned:])


def _require_held(arena: Arena, snapshot: Snapshot) -> None:
    """Raises Conflict when the generation was given to something else, so that bytes read from it may be others."""
    if arena.sealed(snapshot.generation, snapshot.sequence) is None:
        raise Conflict(
            f"arena of rank {arena.rank}, generation {snapshot.generation}: its snapshot was replaced: expected write "
            f"{snapshot.write_id}, got it unsealed",
            code="snapshot-replaced",
        )
