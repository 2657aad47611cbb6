"""A snapshot is copied from another memory whole and proven, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Conflict, NotFound, Unavailable
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint import gathering
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.copying import copy_snapshot
from behemoth.checkpoint.plan import RankPlan, plan_rank
from checkpoint.checkpoint_rig import arena_of
from checkpoint.other_memory import OtherMemory, payload
from checkpoint.saved_checkpoint import big_layout, small_layout

OLD, NEW = WriteId("a1-1"), WriteId("a1-2")
PLANS = [plan_rank(small_layout(), Rank(0)), plan_rank(small_layout(), Rank(1)), plan_rank(big_layout(), Rank(0))]


def held(arena: Arena) -> list[WriteId]:
    return [one.write_id for one in arena.held()]


def copy(source: OtherMemory, plan: RankPlan, arena: Arena, write_id: WriteId, *, threads: int = 1) -> int:
    generation = arena.oldest_generation()
    copy_snapshot(source, plan, arena, generation, write_id=write_id, step=Step(7), threads=threads)
    return generation


@pytest.mark.parametrize("plan", PLANS, ids=["small-0", "small-1", "big"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_copy_is_a_verified_snapshot_of_the_same_bytes(plan: RankPlan, threads: int) -> None:
    with arena_of(plan) as arena:
        source = OtherMemory(plan)
        generation = copy(source, plan, arena, OLD, threads=threads)
        snapshot = arena.snapshot(generation)
        assert (snapshot.write_id, snapshot.step, snapshot.is_verified) == (OLD, 7, True)
        assert arena.crcs(generation).tolist() == source.crcs()
        data = arena.data(generation)
        assert all(payload(data, span) == payload(source.data, span) for span in plan.spans)


@settings(max_examples=60, deadline=None)
@given(plan=st.sampled_from(PLANS[:2]), where=st.integers(0, 1 << 20))
def test_one_wrong_bit_makes_no_snapshot_and_the_older_copy_stays(plan: RankPlan, where: int) -> None:
    span = plan.spans[where % len(plan.spans)]
    with arena_of(plan) as arena:
        copy(OtherMemory(plan), plan, arena, OLD)
        damaged = OtherMemory(plan, damaged={span.arena_offset + where % span.length})
        with pytest.raises(Conflict, match=rf"rank {plan.rank}, write a1-2, array '\S+': expected CRC-32C"):
            copy(damaged, plan, arena, NEW)
        assert held(arena) == [OLD]
        copy(OtherMemory(plan), plan, arena, NEW)
        assert held(arena) == [OLD, NEW]


def test_a_source_that_vanishes_leaves_the_older_copy_and_the_next_try_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "BLOCK_BYTES", 1 << 20)
    plan = PLANS[2]
    with arena_of(plan) as arena:
        copy(OtherMemory(plan), plan, arena, OLD)
        with pytest.raises(Unavailable):
            copy(OtherMemory(plan, ends_after=2), plan, arena, NEW)
        assert held(arena) == [OLD]
        assert arena.snapshot(copy(OtherMemory(plan), plan, arena, NEW)).write_id == NEW


def test_a_source_that_has_nothing_costs_no_generation() -> None:
    class Empty(OtherMemory):
        def crcs(self) -> Sequence[int | None]:
            raise NotFound("no snapshot")

    plan = PLANS[0]
    with arena_of(plan) as arena:
        copy(OtherMemory(plan), plan, arena, OLD)
        copy(OtherMemory(plan), plan, arena, NEW)
        with pytest.raises(NotFound):
            copy(Empty(plan), plan, arena, WriteId("a1-3"))
        assert held(arena) == [OLD, NEW]


def test_each_block_is_paced_with_its_size_and_a_pace_that_raises_ends_the_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "BLOCK_BYTES", 8 << 20)
    plan, asked = PLANS[2], []

    def pace(num_bytes: int) -> None:
        asked.append(num_bytes)
        if len(asked) == 3:
            raise Conflict("cancelled")

    with arena_of(plan) as arena, pytest.raises(Conflict, match="cancelled"):
        copy_snapshot(OtherMemory(plan), plan, arena, 0, write_id=OLD, step=Step(1), threads=1, pace=pace)
    assert all(0 < size <= 8 << 20 for size in asked)
