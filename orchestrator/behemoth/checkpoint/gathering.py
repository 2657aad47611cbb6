"""Fills a generation of a rank's arena from several places: each span from the nearest one that is valid for it.

No byte is believed before its CRC. What arrived and was proven stays, whatever becomes of the place that it came from;
what is missing comes from the next. Any place may change or vanish at any time: that makes a restore slow, never wrong.
The caller knows the places and their order. Neighbours: `arena`, `copying` (one place alone), and whoever implements
SnapshotSource.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from behemoth.base.errors import Conflict
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.plan import RankPlan, Span
from behemoth.checkpoint.threads import run_all

BLOCK_BYTES = 8 << 20
"""Most bytes of one `read_into`."""


class SnapshotSource(Protocol):
    """A verified snapshot of one rank's plan in another place, or parts of one.

    Exactly these methods, because CRCs and bytes are all that a copy needs, whatever memory or file they come from.
    Both may be called from several threads and raise Behemoth's errors."""

    def crcs(self) -> Sequence[int | None]:
        """CRC-32C of every span, in plan order; None for those that are not there. Called once, first."""
        ...

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        """Fill `into` with bytes of the data area from `offset_bytes` on. The range begins with a span and ends with
        the same or a later one, all of which `crcs` has told. Blocks. The bytes may be wrong: the caller checks
        them."""
        ...


class HeldSnapshot:
    """Implements `SnapshotSource` for a verified generation of an arena, to fill its other one."""

    def __init__(self, arena: Arena, generation: int) -> None:
        self._arena = arena
        self._generation = generation

    def crcs(self) -> Sequence[int]:
        return self._arena.crcs(self._generation).tolist()  # type: ignore[no-any-return]

    def read_into(self, offset_bytes: int, into: memoryview) -> None:
        into[:] = self._arena.data(self._generation)[offset_bytes : offset_bytes + len(into)]


class Gathering:
    """One filling of `generation`, which nobody else fills meanwhile. Not thread-safe; `take` uses `threads` of them.

    Nothing is touched until a place has told its CRCs. From then on the generation holds no snapshot until `seal`, so
    that after an error it has none. Places that tell different CRCs of a span cannot both be right, and no memory can
    judge between them: then the span is taken from neither, but from `complete`, whose CRCs are the commit's own.
    """

    def __init__(
        self, plan: RankPlan, arena: Arena, generation: int, *, write_id: WriteId, step: Step, threads: int
    ) -> None:
        self._plan = plan
        self._arena = arena
        self._generation = generation
        self._write_id = write_id
        self._step = step
        self._threads = threads
        self._data: memoryview | None = None  # None until the filling begins
        self._told: list[int | None] = [None] * len(plan.spans)
        self._missing = set(range(len(plan.spans)))
        self._disputed: set[int] = set()
        self._lock = threading.Lock()  # of what the threads of `take` change
        self.received_bytes = 0
        """Bytes of spans that `take` has received, those with a wrong CRC included."""

    @property
    def missing(self) -> list[int]:
        """The spans, by number in the plan, that no source has given so far."""
        return sorted(self._missing)

    @property
    def wanted(self) -> list[int]:
        """The missing spans that another source may still give: all but the disputed ones."""
        return sorted(self._missing - self._disputed)

    @property
    def has_any(self) -> bool:
        """Whether some source has given a span."""
        return len(self._missing) < len(self._plan.spans)

    @property
    def is_settled(self) -> bool:
        """Whether a source was found, and no other one can give more."""
        return self._data is not None and self._missing <= self._disputed

    @property
    def is_whole(self) -> bool:
        """Whether a source was found, and nothing is missing."""
        return self._data is not None and not self._missing

    def take(self, source: SnapshotSource, *, pace: Callable[[int], None] = lambda _num_bytes: None) -> None:
        """Take what is missing and `source` has. `pace` is called before each block with its size, and may wait or
        raise. Raises the source's errors and those of `pace`, when as much was taken as came before them; Conflict when
        bytes are not what was saved, or the places disagree about some, when all others were taken."""
        told = source.crcs()
        data = self._begin()
        num_disputed = len(self._disputed)
        self._compare(told)
        wanted = [index for index in self.wanted if told[index] is not None]

        def copy(block: Sequence[int]) -> None:
            start, end = self._plan.spans[block[0]].arena_offset, _end(self._plan.spans[block[-1]])
            pace(end - start)
            source.read_into(start, data[start:end])
            proven = [index for index in block if self._is_proven(index, data)]
            with self._lock:
                self.received_bytes += sum(self._plan.spans[index].length for index in block)
                self._missing.difference_update(proven)

        run_all(copy, self._blocks(wanted), threads=self._threads, name="ckpt-copy")
        if damaged := [index for index in wanted if index in self._missing]:
            raise self._damage(damaged, data)
        if len(self._disputed) > num_disputed:
            raise self._dispute()

    def complete(self, read: Callable[[Sequence[Span], memoryview], Sequence[int]]) -> Snapshot:
        """Let `read` put the spans that are still missing into the data area, proven by the commit, and return the CRC
        of each; then seal. Raises its errors: what was taken before stays for another call."""
        data, missing = self._begin(), self.missing
        crcs = read([self._plan.spans[index] for index in missing], data)
        for index, crc in zip(missing, crcs, strict=True):
            self._told[index] = crc
        self._missing.clear()
        return self.seal()

    def seal(self) -> Snapshot:
        """The generation as a verified snapshot. Raises Conflict when it is not whole."""
        if not self.is_whole:
            raise Conflict(
                f"rank {self._plan.rank}, write {self._write_id}: expected all of {len(self._told)} spans, got "
                f"{len(self._told) - len(self._missing)}",
                code="copy-incomplete",
            )
        crcs = [crc for crc in self._told if crc is not None]  # all: what was not told could not be proven
        self._arena.record_crcs(self._generation, self._arena.seal(self._generation).sequence, crcs)
        return self._arena.snapshot(self._generation)

    def _begin(self) -> memoryview:
        if self._data is None:
            self._data = self._arena.begin(self._generation, self._write_id, self._step, self._plan.layout_digest)
        return self._data

    def _compare(self, told: Sequence[int | None]) -> None:
        for index, (before, now) in enumerate(zip(self._told, told, strict=True)):
            if before is None:
                self._told[index] = now
            elif now is not None and now != before:
                self._disputed.add(index)
                self._missing.add(index)

    def _is_proven(self, index: int, data: memoryview) -> bool:
        span = self._plan.spans[index]
        return crc32c(data[span.arena_offset : _end(span)]) == self._told[index]

    def _blocks(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """Spans that lie side by side, some MiB together."""
        block: list[int] = []
        for index in wanted:
            start = self._plan.spans[block[0] if block else index].arena_offset
            if block and (index > block[-1] + 1 or _end(self._plan.spans[index]) - start > BLOCK_BYTES):
                yield block
                block = []
            block.append(index)
        if block:
            yield block

    def _damage(self, damaged: Sequence[int], data: memoryview) -> Conflict:
        span, expected = self._plan.spans[damaged[0]], self._told[damaged[0]] or 0
        got = crc32c(data[span.arena_offset : _end(span)])
        return Conflict(
            f"rank {self._plan.rank}, write {self._write_id}, array {self._plan.pieces[span.piece].name!r}: expected "
            f"CRC-32C {expected:08x}, got {got:08x} over {span.length} bytes at {span.arena_offset}; "
            f"{len(damaged)} of {len(self._told)} spans are damaged in all",
            hint="the memory that it came from was filled anew, or is damaged",
            code="copy-crc",
        )

    def _dispute(self) -> Conflict:
        return Conflict(
            f"rank {self._plan.rank}, write {self._write_id}: expected one CRC-32C for each span, got two for "
            f"{len(self._disputed)} of them, from two places",
            hint="one of the memories that they came from is damaged: the checkpoint in the store decides",
            code="copy-disputed",
        )


def _end(span: Span) -> int:
    return span.arena_offset + span.length
