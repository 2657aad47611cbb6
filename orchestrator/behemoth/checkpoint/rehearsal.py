"""A restore that is thrown away: reads what ranks would read, with every check, and measures the time.

One rank after the other into the same memory, so that one machine can rehearse a restore of thousands of ranks. The
time of a rank is what it would take with the store to itself. Bytes are counted where they are read. Neighbours:
`reader`, whose reads these are, and `on_mesh`, which gives the layout.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from behemoth.base.errors import Corrupt, Unavailable
from behemoth.base.ids import Rank
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import loads
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.plan import PAGE_BYTES, plan_rank
from behemoth.checkpoint.reader import read_rank_into
from behemoth.checkpoint.seen_chunks import SeenChunks
from behemoth.ports import ObjectStore

Progress = Callable[[int, int], None]
"""Told bytes restored and bytes to restore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRehearsal:
    """One rank's restore: bytes that it holds once it is restored, bytes that were read, CRCs counted. `damage` is
    empty, or names the first fault, behind which nothing more was read."""

    rank: Rank
    held_bytes: int
    read_bytes: int
    seconds: float
    damage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """The rehearsals of at least one rank, in order."""

    ranks: tuple[RankRehearsal, ...]

    @property
    def held_bytes(self) -> int:
        return sum(one.held_bytes for one in self.ranks)

    @property
    def read_bytes(self) -> int:
        return sum(one.read_bytes for one in self.ranks)

    @property
    def seconds(self) -> float:
        """One rank after the other."""
        return sum(one.seconds for one in self.ranks)

    @property
    def over_read(self) -> float:
        """Bytes read for each byte that is held then; of ranks that read for themselves."""
        return self.read_bytes / self.held_bytes if self.held_bytes else 1.0

    @property
    def slowest(self) -> RankRehearsal:
        return max(self.ranks, key=lambda one: one.seconds)

    @property
    def is_intact(self) -> bool:
        return not any(one.damage for one in self.ranks)


def rehearse(
    store: ObjectStore,
    commit: Commit,
    layout: Layout,
    ranks: Sequence[Rank],
    *,
    threads: int,
    progress: Progress = lambda _done, _total: None,
    now: Callable[[], float] = time.monotonic,
) -> Rehearsal:
    """Restore `ranks` of `layout`, one after the other. Blocks for as long; memory is the largest rank's state and a
    chunk for each thread.

    Damage is reported, never raised. Raises Invalid for a layout of another model, Unavailable where there is no room
    for a rank's state, and the store's other errors.
    """
    sizes = {rank: int(size) for rank, size in zip(ranks, loads(layout).data_bytes[list(ranks)], strict=True)}
    counting = CountingStore(store)
    done, total = 0, sum(sizes.values())
    found = []
    seen = SeenChunks(commit)
    memory = _memory(max(PAGE_BYTES, *sizes.values()))
    for start in range(0, len(memory), PAGE_BYTES):
        memory[start] = 0  # an arena has its pages before a restore begins, so page faults must not be timed
    for rank in ranks:
        found.append(_restored(counting, commit, layout, rank, memoryview(memory), seen, threads=threads, now=now))
        done += sizes[rank]
        progress(done, total)
    return Rehearsal(ranks=tuple(found))


def _memory(num_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, num_bytes)
    except OSError as error:
        raise Unavailable(
            f"rehearsal: expected memory for the largest rank's state, {num_bytes} bytes, got none: {error.strerror}",
            hint="rehearse on a mesh of more ranks (--mesh), or on a larger machine",
            code="no-memory",
        ) from error


def _restored(
    store: CountingStore,
    commit: Commit,
    layout: Layout,
    rank: Rank,
    memory: memoryview,
    seen: SeenChunks,
    *,
    threads: int,
    now: Callable[[], float],
) -> RankRehearsal:
    began_s, before_bytes, damage = now(), store.read_bytes, ""
    plan = plan_rank(layout, rank)
    try:
        read_rank_into(store, commit, layout, plan, memory[: plan.data_bytes], threads=threads, seen=seen)
    except Corrupt as error:
        damage = error.message
    return RankRehearsal(
        rank=rank,
        held_bytes=sum(piece.nbytes for piece in plan.pieces),
        read_bytes=store.read_bytes - before_bytes,
        seconds=now() - began_s,
        damage=damage,
    )
