"""Staged checkpoints of one rank in shared memory: two generations, each whole or not there.

The agent owns the memory (an anonymous memfd) and passes it as a descriptor to the worker, which copies in and out, and
to the store process, which writes it to storage or fills it. Any of them may be killed between two instructions, so a
generation counts only while its header is intact and says so, and the header changes before the first byte of data is
touched and after the last one. In between a progress mark tells a process that reads along (`following`) how many bytes
are in place. The module never creates or closes the descriptor. Neighbours: `arena_format` (the byte layout),
`arena_memory` (the mapping), `staging`, `writer`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena_format import (
    ARENA_HEADER_BYTES,
    CRC_BYTES,
    GENERATION_HEADER_BYTES,
    MARK_OFFSET,
    MAX_WRITE_ID_BYTES,
    NUM_GENERATIONS,
    PAGE_BYTES,
    ArenaHeader,
    GenerationHeader,
    Snapshot,
    State,
    arena_size_bytes,
    data_offset,
    head_offset,
)
from behemoth.checkpoint.arena_memory import enter, map_shared, take
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.plan import RankPlan


class Arena:
    """A mapping of one rank's arena. Not thread-safe: one thread of one process fills a generation at a time."""

    def __init__(self, memory: memoryview, *, num_spans: int, data_bytes: int, layout_digest: str, rank: int) -> None:
        self._memory = memory
        self._num_spans = num_spans
        self.data_bytes = data_bytes
        self.layout_digest = layout_digest
        self.rank = rank

    @staticmethod
    def size_bytes(plan: RankPlan) -> int:
        """Size of the memfd for a plan."""
        return arena_size_bytes(len(plan.spans), plan.data_bytes)

    @staticmethod
    def format(fd: int, plan: RankPlan) -> Arena:
        """Size the memfd, write both empty generations and fault every page in, once, so that no save pays for it.

        Blocks as `arena_memory.take`. What the memory held before is lost. Raises Unavailable when memory is short.
        """
        size_bytes = Arena.size_bytes(plan)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, size_bytes)
        memory = map_shared(fd, size_bytes)
        take(memory)
        header = ArenaHeader(
            rank=plan.rank,
            num_spans=len(plan.spans),
            data_bytes=plan.data_bytes,
            size_bytes=size_bytes,
            digest=plan.layout_digest,
        )
        memory[:ARENA_HEADER_BYTES] = header.encode()
        return Arena(
            memory,
            num_spans=len(plan.spans),
            data_bytes=plan.data_bytes,
            layout_digest=plan.layout_digest,
            rank=plan.rank,
        )

    @staticmethod
    def open(fd: int) -> Arena:
        """Map an arena that another process formatted. Blocks as `arena_memory.enter`. Raises Corrupt when it is none.
        The descriptor may be closed afterwards."""
        size_bytes = os.fstat(fd).st_size
        if size_bytes < PAGE_BYTES:
            raise Corrupt(f"arena: expected at least {PAGE_BYTES} bytes, got {size_bytes}", code="arena-header")
        memory = map_shared(fd, size_bytes)
        header = ArenaHeader.decode(bytes(memory[:ARENA_HEADER_BYTES]))
        if header is None or header.size_bytes != size_bytes:
            got = "a damaged one or none" if header is None else f"one of {header.size_bytes} bytes"
            raise Corrupt(f"arena of {size_bytes} bytes: expected its intact header, got {got}", code="arena-header")
        enter(memory)
        return Arena(
            memory,
            num_spans=header.num_spans,
            data_bytes=header.data_bytes,
            layout_digest=header.digest,
            rank=header.rank,
        )

    @property
    def memory(self) -> memoryview:
        """The whole mapping, to be pinned for a device. The mapping stays for as long as anybody keeps this view."""
        return self._memory

    def begin(self, generation: int, write_id: WriteId, step: Step, layout_digest: str) -> memoryview:
        """Give up what `generation` held and return its data area for filling. Raises Invalid for another layout."""
        if layout_digest != self.layout_digest:
            raise Invalid(
                f"arena of rank {self.rank}: expected layout {self.layout_digest[:12]}, got {layout_digest[:12]}",
                hint="the arrays or the mesh changed: format the arena for the new plan",
                code="arena-layout",
            )
        if not 1 <= len(write_id.encode()) <= MAX_WRITE_ID_BYTES or step < 0:
            raise Invalid(
                f"arena of rank {self.rank}: expected a write id of 1 .. {MAX_WRITE_ID_BYTES} bytes and a step >= 0, "
                f"got {write_id!r} and {step}",
                code="arena-write-id",
            )
        # The progress marks count too: a header may be torn at this moment, and no sequence may be given twice.
        used = [header.sequence for header in self._headers() if header is not None]
        used += [int(self._mark(index)[0]) for index in range(NUM_GENERATIONS)]
        sequence = 1 + max(used)
        self._mark(generation)[:] = (sequence, 0)
        self._put(
            generation,
            GenerationHeader(
                state=State.COPYING,
                table_crc=0,
                sequence=sequence,
                step=step,
                digest=layout_digest,
                write_id=write_id,
            ),
        )
        return self._data(generation)

    def advance(self, generation: int, num_bytes: int) -> None:
        """The first `num_bytes` of the data of a begun generation are in place. Never goes back.

        Another process may read them as soon as it sees the number: on x86 stores become visible in order. Elsewhere
        nobody may follow (`staging.CAN_BE_FOLLOWED`).
        """
        self._mark(generation)[1] = num_bytes

    def sequence(self, generation: int) -> int:
        """The number of the newest filling of `generation`; each filling of an arena has a higher one than those
        before. Raises NotFound when none was begun, or its header is damaged."""
        self._check(generation)
        header = self._header(generation)
        if header is None:
            raise NotFound(
                f"arena of rank {self.rank}: expected generation {generation} to be begun, got one without a header",
                code="arena-empty",
            )
        return header.sequence

    def filled_bytes(self, generation: int, sequence: int) -> int:
        """How many bytes of the data are in place, from the first one on without a gap. Raises Conflict once the
        generation has another sequence.

        0 while the header is being changed, and after `discard`: whoever discards also ends the waits for it.
        """
        self._check(generation)
        header = self._header(generation)
        if header is None:
            return 0
        if header.sequence != sequence:
            raise Conflict(
                f"arena of rank {self.rank}, generation {generation}: its snapshot was replaced: expected sequence "
                f"{sequence}, got {header.sequence} of write {header.write_id}",
                code="snapshot-replaced",
            )
        marked, filled_bytes = self._mark(generation).tolist()
        if header.is_whole:
            return self.data_bytes
        return int(filled_bytes) if marked == sequence else 0

    def sealed(self, generation: int, sequence: int) -> Snapshot | None:
        """The snapshot, or None while it is being filled. Raises Conflict once the generation has another sequence."""
        self.filled_bytes(generation, sequence)
        header = self._header(generation)
        return None if header is None else header.snapshot(generation)

    def filling(self, generation: int) -> memoryview:
        """The data area of a generation that may be unfinished; only what is filled may be read."""
        return self._data(generation)

    def seal(self, generation: int) -> Snapshot:
        """All data is in place: from now on `generation` is a snapshot. Raises Conflict when nobody began one."""
        header = self._expect(generation, State.COPYING)
        self._put(generation, replace(header, state=State.STAGED, table_crc=0))
        return self.snapshot(generation)

    def discard(self, generation: int) -> None:
        """Forget what `generation` holds, as before its memory is given to something else."""
        start = self._head(generation)
        self._memory[start : start + GENERATION_HEADER_BYTES] = bytes(GENERATION_HEADER_BYTES)

    def held(self) -> tuple[Snapshot, ...]:
        """The snapshots, oldest first. A generation that was being copied when its writer died is not among them."""
        found = [header.snapshot(index) for index, header in enumerate(self._headers()) if header is not None]
        return tuple(sorted((one for one in found if one is not None), key=lambda one: one.sequence))

    def snapshot(self, generation: int) -> Snapshot:
        """Raises NotFound when `generation` holds none."""
        self._check(generation)
        header = self._header(generation)
        found = None if header is None else header.snapshot(generation)
        if found is None:
            raise self._empty(generation)
        return found

    def oldest_generation(self) -> int:
        """The generation to overwrite next: one without a snapshot, else the older of the two."""
        held = self.held()
        free = [index for index in range(NUM_GENERATIONS) if index not in {one.generation for one in held}]
        return free[0] if free else held[0].generation

    def data(self, generation: int) -> memoryview:
        """The data area of a snapshot; NotFound when there is none. Valid until the next `begin` of `generation`."""
        self.snapshot(generation)
        return self._data(generation)

    def data_offset_bytes(self, generation: int) -> int:
        """Offset of the data area of `generation` in the memfd, from which sendfile(2) can send it."""
        self._check(generation)
        return data_offset(self._num_spans, self.data_bytes, generation)

    def record_crcs(self, generation: int, sequence: int, crcs: Sequence[int]) -> None:
        """Keep the CRC of every span, in plan order, and mark the snapshot verified. Raises Invalid on a wrong count,
        NotFound when the generation holds no snapshot, Conflict when it has another sequence by now."""
        if len(crcs) != self._num_spans:
            raise Invalid(f"arena of rank {self.rank}: expected {self._num_spans} CRCs, got {len(crcs)}")
        if self.sealed(generation, sequence) is None:
            raise self._empty(generation)
        header = self._headers()[generation]
        assert header is not None
        table = np.asarray(crcs, dtype="<u4").tobytes()
        start = self._head(generation) + PAGE_BYTES
        # A torn table is harmless in either state: STAGED does not use it, VERIFIED has its CRC in the header.
        self._memory[start : start + len(table)] = table
        self._put(generation, replace(header, state=State.VERIFIED, table_crc=crc32c(table)))

    def disprove(self, generation: int) -> None:
        """Drop the CRCs of a verified snapshot, so that nobody takes it for the content of its write: a restore has
        left some of its arrays out. Raises NotFound when `generation` is not verified."""
        self._put(generation, replace(self._expect(generation, State.VERIFIED), state=State.STAGED, table_crc=0))

    def crcs(self, generation: int) -> npt.NDArray[np.uint32]:
        """The recorded CRCs. Raises NotFound before `record_crcs`, Corrupt when the table was damaged."""
        header = self._expect(generation, State.VERIFIED)
        start = self._head(generation) + PAGE_BYTES
        table = bytes(self._memory[start : start + self._num_spans * CRC_BYTES])
        if (crc := crc32c(table)) != header.table_crc:
            raise Corrupt(
                f"arena of rank {self.rank}, generation {generation}: expected CRC-32C {header.table_crc:08x} over its "
                f"table of CRCs, got {crc:08x}",
                code="arena-crcs",
            )
        return np.frombuffer(table, dtype="<u4")

    def close(self) -> None:
        """Give up the mapping. Idempotent. Views that are still in use keep it until they go."""
        with suppress(BufferError):  # a view of it is in use
            self._memory.release()

    def _headers(self) -> list[GenerationHeader | None]:
        return [self._header(generation) for generation in range(NUM_GENERATIONS)]

    def _header(self, generation: int) -> GenerationHeader | None:
        start = self._head(generation)
        return GenerationHeader.decode(bytes(self._memory[start : start + GENERATION_HEADER_BYTES]))

    def _expect(self, generation: int, state: State) -> GenerationHeader:
        self._check(generation)
        header = self._header(generation)
        if header is None or header.state is not state:
            got = "empty" if header is None else header.state.name.lower()
            kind = NotFound if state is State.VERIFIED else Conflict
            raise kind(
                f"arena of rank {self.rank}, generation {generation}: expected it {state.name.lower()}, got {got}",
                code="arena-state",
            )
        return header

    def _empty(self, generation: int) -> NotFound:
        message = f"arena of rank {self.rank}: expected a snapshot in generation {generation}, got none"
        return NotFound(message, code="arena-empty")

    def _mark(self, generation: int) -> npt.NDArray[np.uint64]:
        self._check(generation)
        return np.frombuffer(self._memory, dtype="<u8", count=2, offset=self._head(generation) + MARK_OFFSET)

    def _put(self, generation: int, header: GenerationHeader) -> None:
        self._check(generation)
        encoded = header.encode()
        start = self._head(generation)
        self._memory[start : start + len(encoded)] = encoded

    def _check(self, generation: int) -> None:
        if not 0 <= generation < NUM_GENERATIONS:
            raise Invalid(f"arena of rank {self.rank}: expected generation 0 or 1, got {generation}")

    def _head(self, generation: int) -> int:
        return head_offset(self._num_spans, self.data_bytes, generation)

    def _data(self, generation: int) -> memoryview:
        start = self.data_offset_bytes(generation)
        return self._memory[start : start + self.data_bytes]
