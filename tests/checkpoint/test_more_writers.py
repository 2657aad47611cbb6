"""Further writers of a save join when they cost the program nothing, and never wait for ever."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from behemoth.base.errors import Conflict
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint import turns
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.more_writers import WAITING_SHARE, MoreWriters
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.staging import Stager
from behemoth.checkpoint.writer import THREADS_PER_WRITER, write_rank
from behemoth.ports import Part
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import arena_of, local_arrays, logical_arrays

LAYOUT = Layout(
    mesh=Mesh(), arrays=tuple(ArraySpec(name=f"array{number:02}", dtype="uint8", shape=(64,)) for number in range(40))
)
PLAN = plan_rank(LAYOUT, Rank(0))
LOCAL = local_arrays(LAYOUT, PLAN.rank, logical_arrays(LAYOUT, 1))
NAMES = [piece.name for piece in PLAN.pieces]
NUM_FIRST = 2
"""Threads that write while the program copies."""
LIMIT_S = 30.0
SOON_S = 0.05
"""By then who joins wrongly has joined, unless the machine is busy; who joins rightly has all the time it needs."""


def joins(more: MoreWriters, *, within_s: float) -> bool:
    waiter = threading.Thread(target=more.wait, args=(lambda: None,), daemon=True)
    waiter.start()
    waiter.join(within_s)
    is_joined = not waiter.is_alive()
    more.end()
    waiter.join(LIMIT_S)
    return is_joined


@pytest.mark.parametrize(
    ("passed_s", "computed_s", "is_whole", "expected"),
    [
        (0.040, 0.004, False, True),  # a disk
        (0.004 * WAITING_SHARE, 0.004, False, True),
        (0.008, 0.004, False, False),  # a copy, on processors that others want too
        (0.008, 0.004, True, True),
    ],
)
def test_others_join_when_the_first_writers_mostly_wait_or_the_copy_is_complete(
    passed_s: float, computed_s: float, is_whole: bool, expected: bool
) -> None:
    more = MoreWriters()
    more.wrote(passed_s=passed_s, computed_s=computed_s, is_whole=is_whole)
    assert joins(more, within_s=LIMIT_S if expected else SOON_S) is expected


def test_what_counts_is_all_batches_together() -> None:
    more = MoreWriters()
    more.wrote(passed_s=0.01, computed_s=0.01, is_whole=False)
    more.wrote(passed_s=0.02, computed_s=0.001, is_whole=False)
    assert not joins(more, within_s=SOON_S)


def test_who_waits_to_join_ends_with_the_save_though_no_first_writer_returns() -> None:
    def given_up() -> None:
        raise Conflict("rank 0: its save was cancelled")

    with pytest.raises(Conflict, match="cancelled"):
        MoreWriters().wait(given_up)


class CountingWriters(MemoryStore):
    """Tells how many writes were under way at once. The first ones take a while, as on a disk, by which it is known for
    one; each later one waits until `enough` of them are under way."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self._condition = threading.Condition()
        self._enough = enough
        self._num_begun = self._writing = self.most = 0

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        with self._condition:
            self._num_begun += 1
            timeout_s = 0.2 if self._num_begun <= 2 * NUM_FIRST else LIMIT_S  # an array and its metadata
            self._writing += 1
            self.most = max(self.most, self._writing)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self.most >= self._enough, timeout=timeout_s)
            self._writing -= 1
        super().write_parts(key, size_bytes=size_bytes, parts=parts)


def test_a_disk_gets_all_writers_while_the_program_still_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BATCH_SPANS", 1)
    store = CountingWriters(enough=2 * THREADS_PER_WRITER)
    with arena_of(PLAN) as arena:
        np.frombuffer(arena.filling(0), dtype=np.uint8)[:] = 0
        stager = Stager(arena, PLAN, LOCAL, write_id=WriteId("a1-1"), step=Step(1))
        stager.begin(generation=0)
        monkeypatch.setattr("behemoth.checkpoint.staging.BLOCK_BYTES", 1)
        stager.copy(NAMES[:-1])  # the copy is not complete until many write at once
        write = RankWrite(
            prefix="steps/000000001-a1-1",
            layout=LAYOUT,
            plan=PLAN,
            arena=arena,
            generation=0,
            attempt=Attempt(1),
            threads=NUM_FIRST,
            cancelled=lambda: False,
            following=stager.sequence,
        )
        writer = threading.Thread(target=write_rank, args=(store, write), daemon=True)
        writer.start()
        with store._condition:
            seen = store._condition.wait_for(lambda: store.most >= 2 * THREADS_PER_WRITER, timeout=LIMIT_S)
        stager.seal()
        writer.join(LIMIT_S)
    assert seen
    assert not writer.is_alive()
