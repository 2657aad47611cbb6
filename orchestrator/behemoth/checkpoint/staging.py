"""Copies a rank's arrays into its arena and back: the only part of a save that blocks training.

Progress is marked in the arena, so that the copy can be written out while it is made. On two cores of one machine one
thread copied 18 GB/s between warm pages, two 34. Arrays on a device take one copy too, made by the device. Nothing is
converted, and nothing is read from storage. Neighbours: `arena` for the memory, `plan` for the places, `held` for the
program's memory, the SDK as the caller.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.held import Held, Memory, matched, settle
from behemoth.checkpoint.plan import RankPlan
from behemoth.checkpoint.threads import run_all

Bytes = npt.NDArray[np.uint8]
BLOCK_BYTES = 8 << 20
"""What is copied between two looks at the mark; about 1 ms."""
CAN_BE_FOLLOWED = platform.machine() == "x86_64"
"""Whether the mark tells another process what it may read: Python has no barriers for processors that reorder."""
CHECKED_BYTES = 2 << 20
"""What is checked and then copied while it is in a core's caches; with less, handing over the interpreter lock costs
more than the caches save."""
THREADS_PER_DEVICE = 2
"""At least, where a device copies: while one of them waits for it, the next copy is under way."""


class _Block(NamedTuple):
    """Bytes [start, stop) of piece `number` of the plan."""

    number: int
    source: Held
    start: int
    stop: int


class Stager:
    """One save in parts: what may change in the forward pass first, the rest until `fence()`, then sealed.

    `arrays` maps each array that the plan's rank holds to its memory, C-contiguous. All sizes are checked
    before the arena is touched. Dropped without `seal`, it leaves no snapshot. Up to `threads` threads copy, at least
    THREADS_PER_DEVICE where a device holds something; none of them outlives a call.
    """

    def __init__(
        self,
        arena: Arena,
        plan: RankPlan,
        arrays: Mapping[str, Memory],
        *,
        write_id: WriteId,
        step: Step,
        threads: int = 1,
    ) -> None:
        self._arena = arena
        self._plan = plan
        self._arrays = arrays
        self._write_id = write_id
        self._step = step
        self._threads = threads
        self._left: dict[str, list[_Block]] = {}
        self._is_on_device = False
        self._data: memoryview | None = None
        self._generation = -1
        self._done_bytes: dict[int, int] = {}
        self._front = 0
        self._told_bytes = 0

    def begin(self, *, generation: int | None = None) -> None:
        """Check every buffer and take the generation; by default the one that holds nothing, or the older snapshot.

        The caller knows when the older one is still being written out, and waits for it. Raises Invalid, naming array,
        expected and got bytes.
        """
        self._left = {}
        pieces = matched(self._plan, self._arrays, is_out=False)
        self._is_on_device = any(held.lane is not None for held in pieces)
        for number, held in enumerate(pieces):
            whole = _Block(number, held, 0, held.piece.nbytes)
            self._left.setdefault(held.piece.name, []).append(whole)
        self._generation = self._arena.oldest_generation() if generation is None else generation
        self._data = self._arena.begin(self._generation, self._write_id, self._step, self._plan.layout_digest)
        self._done_bytes = {}
        self._front = self._told_bytes = 0

    @property
    def sequence(self) -> int:
        """The sequence of this filling, for a Follower. Only after `begin`."""
        return self._arena.sequence(self._generation)

    def copy(self, names: Iterable[str] | None = None) -> None:
        """Copy these arrays, or all that are left. Raises Invalid for a name that is unknown or was copied."""
        if self._data is None:
            self.begin()
        assert self._data is not None
        wanted = list(self._left) if names is None else list(names)
        self._expect_left(wanted)
        batches = list(_batches(whole for name in wanted for whole in self._left[name]))
        target = np.frombuffer(self._data, dtype=np.uint8)
        work = _copy_settled if self._is_on_device else _copy_blocks
        threads = max(self._threads, THREADS_PER_DEVICE) if self._is_on_device else self._threads
        if threads == 1 or len(batches) == 1:
            for batch in batches:
                work(batch, target)
                self._move_front(batch)
        else:
            self._copy_together(work, batches, target, threads)
        for name in wanted:
            del self._left[name]

    def _copy_together(
        self,
        work: Callable[[Sequence[_Block], Bytes], None],
        batches: Sequence[Sequence[_Block]],
        target: Bytes,
        threads: int,
    ) -> None:
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="stage") as pool:
            copying = [pool.submit(work, batch, target) for batch in batches]
            try:
                for batch, copied in zip(batches, copying, strict=True):
                    copied.result()
                    self._move_front(batch)
            finally:
                for copied in copying:
                    copied.cancel()  # behind a first error; does nothing to those that run or are done

    def _expect_left(self, names: Sequence[str]) -> None:
        seen: set[str] = set()
        for name in names:
            if name not in self._left or name in seen:
                raise Invalid(f"staging: expected an array that is still to copy, got {name!r}", code="stage-array")
            seen.add(name)

    def _move_front(self, batch: Sequence[_Block]) -> None:
        """The batch is in place, and all batches before it are: advance the progress mark, at most once per block,
        since many pieces are small."""
        for block in batch:
            self._done_bytes[block.number] = block.stop
        pieces = self._plan.pieces
        while self._front < len(pieces) and self._done_bytes.get(self._front) == pieces[self._front].nbytes:
            self._front += 1
        if self._front == len(pieces):
            num_bytes = self._arena.data_bytes
        else:
            piece = pieces[self._front]
            num_bytes = piece.arena_offset + self._done_bytes.get(self._front, 0)
        if num_bytes - self._told_bytes >= BLOCK_BYTES:
            self._told_bytes = num_bytes
            self._arena.advance(self._generation, num_bytes)

    def seal(self) -> Snapshot:
        """Copy what is left, and make the generation a snapshot."""
        self.copy()
        return self._arena.seal(self._generation)


def stage(
    arena: Arena,
    plan: RankPlan,
    arrays: Mapping[str, Memory],
    write_id: WriteId,
    step: Step,
    *,
    generation: int | None = None,
) -> Snapshot:
    """Copy all arrays at once; see `Stager`. Blocks for one copy of the rank's bytes."""
    stager = Stager(arena, plan, arrays, write_id=write_id, step=step)
    stager.begin(generation=generation)
    return stager.seal()


def unstage(
    arena: Arena,
    plan: RankPlan,
    generation: int,
    arrays: Mapping[str, Memory],
    *,
    threads: int = 1,
    is_checked: bool = False,
    left_out: Collection[int] = (),
) -> Snapshot:
    """Copy a verified snapshot out into `arrays` (memory of the rank's pieces, to be overwritten). Blocks for one copy.

    The arrays `left_out`, counted in the layout's order, are not touched.
    Every CRC is computed again on the way, while the bytes are in a core's cache, unless somebody just did
    (`is_checked`). Raises Invalid when arena and plan are of different layouts or a buffer does not fit, NotFound
    without a snapshot or its CRCs: nothing is copied then. Raises Corrupt when memory was damaged: the arrays may
    hold a part of it then.
    """
    if arena.layout_digest != plan.layout_digest:
        raise Invalid(
            f"arena of rank {arena.rank}: expected layout {plan.layout_digest[:12]}, got {arena.layout_digest[:12]}",
            code="arena-layout",
        )
    snapshot = arena.snapshot(generation)
    work = _Unstaging(arena, plan, generation, matched(plan, arrays, is_out=True), is_checked=is_checked)
    skipped = frozenset(left_out)
    numbers = [number for number, span in enumerate(plan.spans) if span.array not in skipped]
    shares = [numbers[at::threads] for at in range(threads)]
    run_all(work.run, shares, threads=threads, name="unstage")
    return snapshot


class _Unstaging:
    """Copies spans out. Several threads share it, each with spans of its own."""

    def __init__(
        self, arena: Arena, plan: RankPlan, generation: int, targets: Sequence[Held], *, is_checked: bool
    ) -> None:
        self._plan = plan
        self._where = f"arena of rank {arena.rank}, generation {generation}"
        self._crcs = None if is_checked else arena.crcs(generation)
        self._data = np.frombuffer(arena.data(generation), dtype=np.uint8)
        self._targets = targets

    def run(self, numbers: Iterable[int]) -> None:
        try:
            for number in numbers:
                self._copy(number)
        finally:
            settle(self._targets)

    def _copy(self, number: int) -> None:
        span = self._plan.spans[number]
        target = self._targets[span.piece]
        source = self._data[span.arena_offset : span.arena_offset + span.length]
        start = span.arena_offset - target.piece.arena_offset
        if self._crcs is None:
            target.fill(source, start)
            return
        if _copied_crc(source, target, start) != self._crcs[number]:
            raise Corrupt(
                f"{self._where}, array {target.piece.name!r}: expected the {span.length} bytes at {span.arena_offset} "
                "that were staged, got others",
                hint="memory was damaged; restore from storage",
                code="arena-crc",
            )


def _copied_crc(source: Bytes, target: Held, start: int) -> int:
    """Copy to byte `start` of a piece, and compute the CRC-32C of what is copied, block by block, so that memory is
    read once."""
    crc = 0
    for at in range(0, len(source), CHECKED_BYTES):
        block = source[at : at + CHECKED_BYTES]
        crc = crc32c(block.data, crc)
        target.fill(block, start + at)
    return crc


def _batches(wholes: Iterable[_Block]) -> Iterator[list[_Block]]:
    """The pieces in their order, cut and gathered to batches of about BLOCK_BYTES."""
    batch: list[_Block] = []
    num_bytes = 0
    for whole in wholes:
        for start in range(0, max(whole.stop, 1), BLOCK_BYTES):
            batch.append(_Block(whole.number, whole.source, start, min(start + BLOCK_BYTES, whole.stop)))
            num_bytes += batch[-1].stop - start
            if num_bytes >= BLOCK_BYTES:
                yield batch
                batch, num_bytes = [], 0
    if batch:
        yield batch


def _copy_settled(batch: Sequence[_Block], target: Bytes) -> None:
    """As `_copy_blocks` where devices hold something. The bytes are there when it returns, since the mark moves then;
    nothing is under way after an error either."""
    try:
        _copy_blocks(batch, target)
    finally:
        settle(block.source for block in batch)


def _copy_blocks(batch: Sequence[_Block], target: Bytes) -> None:
    for block in batch:
        begin = block.source.piece.arena_offset
        block.source.take(block.start, block.stop, target[begin + block.start : begin + block.stop])
