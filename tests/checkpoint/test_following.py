"""A save that is written out while it is copied: what is missing is not read, and nothing counts before the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from behemoth.base.errors import Conflict
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint import staging
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.following import FIRST_POLL_S, LONGEST_POLL_S, Follower
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.staging import Stager, stage
from behemoth.checkpoint.writer import write_rank
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import arena_of, local_arrays, logical_arrays, raw_bytes, unstaged

LAYOUT = Layout(
    mesh=Mesh(),
    arrays=tuple(ArraySpec(name=f"array{number}", dtype="uint8", shape=(1000 + number,)) for number in range(6)),
)
PLAN = plan_rank(LAYOUT, Rank(0))
LOCAL = local_arrays(LAYOUT, PLAN.rank, logical_arrays(LAYOUT, 1))
NAMES = [piece.name for piece in PLAN.pieces]
PREFIX = "steps/000000001-a1-1"
LIMIT_S = 30.0
Write = Callable[..., "Future[Receipt]"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BLOCK_BYTES", 7)


@pytest.fixture
def arena() -> Iterator[Arena]:
    with arena_of(PLAN) as made:
        np.frombuffer(made.filling(0), dtype=np.uint8)[:] = 0xEE  # what an older save has left
        yield made


@pytest.fixture
def write(arena: Arena) -> Iterator[Write]:
    is_over = threading.Event()  # a test that fails halfway leaves a writer that follows for ever
    with ThreadPoolExecutor(max_workers=1) as pool:

        def begin(
            store: MemoryStore, *, following: int | None, cancelled: Callable[[], bool] = lambda: False
        ) -> Future[Receipt]:
            return pool.submit(
                write_rank,
                store,
                RankWrite(
                    prefix=PREFIX,
                    layout=LAYOUT,
                    plan=PLAN,
                    arena=arena,
                    generation=0,
                    attempt=Attempt(1),
                    threads=2,
                    cancelled=lambda: is_over.is_set() or cancelled(),
                    following=following,
                ),
            )

        yield begin
        is_over.set()


def stager_of(arena: Arena, *, threads: int = 1) -> Stager:
    stager = Stager(arena, PLAN, LOCAL, write_id=WriteId("a1-1"), step=Step(1), threads=threads)
    stager.begin(generation=0)
    return stager


def objects(store: MemoryStore) -> dict[str, bytes]:
    found = {}
    for info in store.list(PREFIX):
        content = bytearray(info.size_bytes)
        store.read_into(info.key, offset_bytes=0, into=content)
        found[info.key] = bytes(content)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_order_of_copying_the_same_bytes_and_receipts_come_out(
    arena: Arena, write: Write, seed: int
) -> None:
    order = NAMES.copy()
    if seed:
        random.Random(seed).shuffle(order)
    store, after = MemoryStore(), MemoryStore()
    stager = stager_of(arena, threads=1 + seed % 3)
    writing = write(store, following=stager.sequence)
    while order:
        stager.copy(order[:2])
        del order[:2]
    stager.seal()
    receipt = writing.result(LIMIT_S)
    assert unstaged(arena, PLAN, 0) == {name: raw_bytes(array) for name, array in LOCAL.items()}
    assert receipt == write(after, following=None).result(LIMIT_S)
    assert objects(store) == objects(after)


def shards(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list(PREFIX) if info.key.endswith("/c/0")]


def test_what_is_in_place_is_written_before_the_copy_ends(arena: Arena, write: Write) -> None:
    store = MemoryStore()
    stager = stager_of(arena)
    writing = write(store, following=stager.sequence)
    stager.copy(NAMES[:3])
    deadline_s = time.monotonic() + LIMIT_S
    while len(shards(store)) < 3:
        assert not writing.done()
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    assert len(shards(store)) == 3
    stager.seal()
    assert len(writing.result(LIMIT_S).spans) == len(PLAN.spans)


def test_the_mark_never_passes_what_is_missing(arena: Arena) -> None:
    stager = stager_of(arena)
    stager.copy(NAMES[1:4])
    assert arena.filled_bytes(0, stager.sequence) == 0
    stager.copy(NAMES[:1])
    assert arena.filled_bytes(0, stager.sequence) == PLAN.pieces[4].arena_offset
    stager.seal()
    assert arena.filled_bytes(0, stager.sequence) == PLAN.data_bytes


def test_a_copy_that_ends_halfway_gives_no_receipt(arena: Arena, write: Write) -> None:
    is_cancelled = False
    stager = stager_of(arena)
    writing = write(MemoryStore(), following=stager.sequence, cancelled=lambda: is_cancelled)
    stager.copy(NAMES[:5])
    is_cancelled = True
    with pytest.raises(Conflict, match="cancelled"):
        writing.result(LIMIT_S)
    assert arena.held() == ()


def test_memory_that_is_given_to_another_save_gives_no_receipt(arena: Arena, write: Write) -> None:
    stager = stager_of(arena)
    writing = write(MemoryStore(), following=stager.sequence)
    stager.copy(NAMES[:5])
    stage(arena, PLAN, LOCAL, WriteId("a2-1"), Step(1), generation=0)
    with pytest.raises(Conflict, match="its snapshot was replaced"):
        writing.result(LIMIT_S)
    assert not arena.snapshot(0).is_verified


def test_who_waits_long_looks_ever_less_often(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    stager = stager_of(arena)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 100:
            stager.copy()

    monkeypatch.setattr(time, "sleep", sleep)
    Follower(arena, 0, stager.sequence, cancelled=lambda: False).until(1)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (FIRST_POLL_S, LONGEST_POLL_S)
