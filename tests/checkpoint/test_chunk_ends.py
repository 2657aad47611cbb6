"""The CRC behind a chunk that several ranks write: who writes it, from whose CRCs, and what is left to the leader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, Invalid, Timeout, Unavailable
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint import chunk_ends as chunk_ends_module
from behemoth.checkpoint import end_proof, writer
from behemoth.checkpoint.chunk_ends import ChunkEnds, chunk_ends
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.exchange import Exchange, Given, LocalExchange, OpenWrite, OpenWrites
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.part_plan import Fragment
from behemoth.checkpoint.paths import INDEX
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.sealing import KEYS_PER_CALL
from behemoth.checkpoint.staging import stage
from behemoth.ports import Part
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import (
    arena_of,
    commit_receipts,
    local_arrays,
    logical_arrays,
    toy_layout,
    write_all_ranks,
)
from checkpoint.company_rig import World, staged_world
from checkpoint.random_layouts import layouts, small_chunks

LAYOUT = toy_layout()
Rows = list[tuple[int, int, int]]


def rows_of(ends: ChunkEnds) -> dict[tuple[int, int], Rows]:
    """Of each chunk: rank, offset and length of its spans."""
    columns = zip(ends.rank.tolist(), ends.offset.tolist(), ends.length.tolist(), strict=True)
    rows, bounds = list(columns), ends.first.tolist()
    return {
        (span.array, span.chunk): rows[low:high]
        for span, low, high in zip(ends.spans, bounds[:-1], bounds[1:], strict=True)
    }


def objects_of(store: MemoryStore) -> dict[str, bytes]:
    return {key: bytes(data) for key, data in store._objects.items()}


@contextmanager
def few_spans(most: int) -> Iterator[None]:
    """The leader ends chunks of more than so many spans."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (chunk_ends_module, end_proof):
            patch.setattr(module, "MAX_SPANS", most)
        yield


class Noting(MemoryStore):
    """Notes which files are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        super().write_parts(key, size_bytes=size_bytes, parts=parts)
        self.written.append(key)


class OfOneRank:
    """A rank's way to a common store. `unsealed`: what it wrote and has not made durable itself."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.unsealed: set[str] = set()
        self._sealed: list[str] = []

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        self._store.write_parts(key, size_bytes=size_bytes, parts=parts)
        self.unsealed.add(key)

    def seal(self, keys: Sequence[str]) -> None:
        self._store.seal(keys)
        self.unsealed.difference_update(keys)
        assert not set(keys).intersection(self._sealed)
        self._sealed += keys


class Answering:
    """An exchange among ranks of one process of which a question may fail, or be waited for."""

    def __init__(self, world: World, before: Callable[[Rank, Given], None]) -> None:
        self._local = LocalExchange(world.open_writes, world.write_id)
        self._before = before

    def crcs(self, rank: Rank, fragments: Sequence[Fragment], *, cancelled: Given) -> Sequence[int]:
        self._before(rank, cancelled)
        return self._local.crcs(rank, fragments, cancelled=cancelled)

    fetch = upload_ids = receipts = None  # only CRCs are asked for


@pytest.fixture
def world() -> Iterator[World]:
    with staged_world(LAYOUT, logical_arrays(LAYOUT, 1)) as staged:
        yield staged


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), chunk_bytes=st.sampled_from([16, 64]), most=st.sampled_from([2, 3, 64]))
def test_each_shared_chunk_has_one_end_made_of_the_spans_that_ranks_write(
    layout: Layout, chunk_bytes: int, most: int
) -> None:
    with small_chunks(chunk_bytes), few_spans(most):
        of_chunks: dict[tuple[int, int], Rows] = {}
        plans = [plan_rank(layout, Rank(rank)) for rank in range(layout.mesh.num_ranks)]
        for plan in plans:
            for span in plan.writes:
                of_chunks.setdefault((span.array, span.chunk), []).append((plan.rank, span.offset, span.length))
        expected = {
            key: sorted(rows, key=lambda row: row[1]) for key, rows in of_chunks.items() if 1 < len(rows) <= most
        }
        found: dict[tuple[int, int], Rows] = {}
        for plan in plans:
            ends = chunk_ends(layout, plan)
            told = rows_of(ends)
            assert not told.keys() & found.keys()
            assert all(rows[-1][0] == plan.rank for rows in told.values())
            found.update(told)
            of_ranks = {rank: ends.fragments(rows) for rank, rows in ends.by_rank()}
            assert sum(map(len, of_ranks.values())) == sum(map(len, told.values()))
            for rank, fragments in of_ranks.items():
                owned = {(rank, *span[:4]) for span in plans[rank].writes}
                assert owned.issuperset(fragments)
        assert found == expected


@settings(max_examples=40, deadline=None)
@given(layout=layouts(), chunk_bytes=st.sampled_from([16, 64]), most=st.sampled_from([2, 64]), seed=st.integers(0, 99))
def test_ranks_in_company_write_what_the_leader_would_and_leave_it_only_chunks_of_many_spans(
    layout: Layout, chunk_bytes: int, most: int, seed: int
) -> None:
    with small_chunks(chunk_bytes), few_spans(most):
        alone, together, arrays = MemoryStore(), Noting(), logical_arrays(layout, seed)
        commit_receipts(alone, layout, write_all_ranks(alone, layout, arrays, step=1), step=1)
        with staged_world(layout, arrays) as staged:
            receipts = staged.write_all(together)
        assert together.after_power_loss(seed=seed)._objects == together._objects
        together.written.clear()
        commit_receipts(together, layout, receipts, step=1)
        assert most < 64 or all(key.endswith(("zarr.json", INDEX)) for key in together.written)
        assert objects_of(together) == objects_of(alone)


def test_each_rank_makes_durable_all_that_it_wrote_and_does_so_once(world: World) -> None:
    store = MemoryStore()
    ways: dict[Rank, Any] = {rank: OfOneRank(store) for rank in world.arenas}
    with ThreadPoolExecutor(len(ways)) as pool:
        receipts = list(pool.map(lambda rank: world.write(ways[rank], rank), ways))
    assert any(receipt.ends for receipt in receipts)
    assert {rank: way.unsealed for rank, way in ways.items()} == {rank: set() for rank in ways}


def test_arrays_that_get_ends_are_made_durable_by_many_calls_at_a_time() -> None:
    flat = ArraySpec(name="of-all", dtype="float32", shape=(33,), flat_over="dp")
    layout = replace(LAYOUT, arrays=tuple(replace(flat, name=f"{flat.name}-{number}") for number in range(100)))
    store, sizes = MemoryStore(), list[int]()

    class Counting(OfOneRank):
        def seal(self, keys: Sequence[str]) -> None:
            sizes.append(len(keys))
            super().seal(keys)

    with staged_world(layout, logical_arrays(layout, 1)) as staged, ThreadPoolExecutor(len(staged.arenas)) as pool:
        receipts = list(pool.map(lambda rank: staged.write(cast(Any, Counting(store)), rank), staged.arenas))
    assert any(receipt.ends for receipt in receipts)
    assert max(sizes) <= KEYS_PER_CALL


def test_a_wrong_crc_behind_a_chunk_is_refused_and_so_is_one_too_many(world: World) -> None:
    store = MemoryStore()
    receipts = world.write_all(store)
    at = next(at for at, receipt in enumerate(receipts) if receipt.ends)
    told = receipts[at].ends
    assert isinstance(told, bytes)
    wrong = np.frombuffer(told, dtype="<i8").copy()
    wrong[-1] ^= 1

    def commit_with(ends: bytes) -> None:
        commit_receipts(store, LAYOUT, [*receipts[:at], replace(receipts[at], ends=ends), *receipts[at + 1 :]], step=1)

    expected = rf"array '[a-z/]+', chunk \d+, rank {at}: expected the CRC [0-9a-f]{{8}} of all ranks' bytes behind it"
    with pytest.raises(Corrupt, match=expected) as refused:
        commit_with(wrong.tobytes())
    assert refused.value.code == "chunk-end"
    for ends in (told + bytes(8), told[:-8], told[:-1]):
        with pytest.raises(Invalid, match=rf"rank {at}: expected the ends of {len(told) // 8} chunks") as other:
            commit_with(ends)
        assert other.value.code == "receipt-ends"
    assert commits(store) == []
    commit_with(told)


@pytest.mark.parametrize("kind", [Unavailable, Timeout, Denied])
def test_ends_that_a_rank_does_not_tell_are_left_to_the_leader_and_no_others(
    world: World, caplog: pytest.LogCaptureFixture, kind: type[BehemothError]
) -> None:
    asker, silent = one_of_several(world)

    def refuse(rank: Rank, _cancelled: Given) -> None:
        if rank == silent:
            raise kind("node n1: expected a connection, got none")

    receipts, store = receipts_of(world, asker, refuse)
    told = ends_of(receipts[asker])
    of_chunks = rows_of(chunk_ends(LAYOUT, plan_rank(LAYOUT, asker))).values()
    assert [crc < 0 for crc in told.tolist()] == [silent in {row[0] for row in rows} for rows in of_chunks]
    assert 0 < (told < 0).sum() < len(told)
    left = int((told < 0).sum())
    expected = f"rank {asker}: the ends of {left} of {len(told)} chunks are left to the leader, since 1 ranks"
    assert f"{expected} did not tell their CRCs: rank {silent}: node n1: expected a connection" in caplog.text
    assert_whole(store, receipts)


def test_whoever_takes_much_longer_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LEAST_WAIT_S", 0.1)
    asker, silent = one_of_several(world)

    def wait(rank: Rank, cancelled: Given) -> None:
        while rank == silent and not cancelled():
            threading.Event().wait(0.01)

    receipts, store = receipts_of(world, asker, wait)
    assert -1 in ends_of(receipts[asker])
    assert_whole(store, receipts)


def test_a_cancelled_write_waits_no_longer_for_the_others(world: World) -> None:
    asker, silent = one_of_several(world)

    def cancel(rank: Rank, cancelled: Given) -> None:
        if rank == silent:
            world.cancelled.set()
            assert cancelled()

    with pytest.raises(Conflict) as refused:
        receipts_of(world, asker, cancel)
    assert refused.value.code == "save-cancelled"


@pytest.mark.parametrize("error", [Conflict("snapshot gone"), Corrupt("nonsense"), Invalid("no such span")])
def test_what_else_a_rank_answers_ends_the_write(world: World, error: BehemothError) -> None:
    asker, silent = one_of_several(world)

    def answer(rank: Rank, _cancelled: Given) -> None:
        if rank == silent:
            raise error

    with pytest.raises(type(error), match=error.message):
        receipts_of(world, asker, answer)


def ends_of(receipt: Receipt) -> npt.NDArray[np.int64]:
    assert isinstance(receipt.ends, bytes)
    return np.frombuffer(receipt.ends, dtype="<i8")


def one_of_several(world: World) -> tuple[Rank, Rank]:
    """A rank that asks another one for some of the chunks that it ends, and not for others; and that other one."""
    for asker in world.arenas:
        ended = rows_of(chunk_ends(LAYOUT, plan_rank(LAYOUT, asker)))
        of_chunks = [{row[0] for row in rows} for rows in ended.values()]
        for other in world.arenas:
            if other != asker and 0 < sum(other in ranks for ranks in of_chunks) < len(of_chunks):
                return asker, other
    raise AssertionError("no such rank")


def receipts_of(
    world: World, asker: Rank, before: Callable[[Rank, Given], None]
) -> tuple[dict[Rank, Receipt], MemoryStore]:
    """The questions of `asker` go through `before`, which decides what becomes of them."""
    local = LocalExchange(world.open_writes, world.write_id)
    theirs: Any = Answering(world, before)

    def place(rank: Rank) -> tuple[OpenWrites, Exchange]:
        return world.open_writes, theirs if rank == asker else local

    world.place = place
    store = MemoryStore()
    return {Rank(receipt.rank): receipt for receipt in world.write_all(store)}, store


def assert_whole(store: MemoryStore, receipts: Mapping[Rank, Receipt]) -> None:
    alone = MemoryStore()
    commit_receipts(alone, LAYOUT, write_all_ranks(alone, LAYOUT, logical_arrays(LAYOUT, 1), step=1), step=1)
    commit_receipts(store, LAYOUT, list(receipts.values()), step=1)
    assert objects_of(store) == objects_of(alone)


def test_crcs_are_told_as_they_were_written_without_the_memory() -> None:
    plan = plan_rank(LAYOUT, Rank(1))
    with arena_of(plan) as arena:
        snapshot = stage(arena, plan, local_arrays(LAYOUT, 1, logical_arrays(LAYOUT, 1)), WriteId("a1-1"), Step(1))
        write = OpenWrite(plan, arena, snapshot.generation, snapshot.sequence)
        asked = [Fragment(Rank(1), *span[:4]) for span in plan.spans]
        write.summed(range(len(asked)))
        part = asked[0]._replace(length=asked[0].length - 1)
        assert write.crcs_of([part], cancelled=lambda: True) != [0]  # of bytes that are no span: computed
    writes = OpenWrites()
    writes.enter(WriteId("a1-1"), write)
    del arena
    told = LocalExchange(writes, WriteId("a1-1")).crcs(Rank(1), asked, cancelled=lambda: True)
    assert list(told) == list(range(len(asked)))
