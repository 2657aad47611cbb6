"""Who holds the same pieces as a rank, against what the plans of all ranks say, and what their memory gives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint import gathering as module
from behemoth.checkpoint.gathering import Gathering
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.plan import RankPlan, Span, plan_rank
from behemoth.checkpoint.replicas import ReplicaSnapshot, common_arrays, replicated
from behemoth.checkpoint.staging import stage
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from checkpoint.checkpoint_rig import arena_of, local_arrays, logical_arrays
from checkpoint.other_memory import OtherMemory, commit_of, payload
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks

WRITE = WriteId("a1-1")


def held_pieces(plan: RankPlan) -> dict[int, tuple[object, ...]]:
    """What a rank holds of each array: boxes and ranges of elements. An empty piece is nothing."""
    found: dict[int, tuple[object, ...]] = {}
    for piece in plan.pieces:
        if piece.nbytes:
            found[piece.array] = (*found.get(piece.array, ()), (piece.box, piece.flat))
    return found


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), data=st.data())
def test_replicas_are_the_ranks_whose_plans_have_the_same_pieces(layout: Layout, data: st.DataObject) -> None:
    ranks = [Rank(rank) for rank in range(layout.mesh.num_ranks)]
    rank = data.draw(st.sampled_from(ranks))
    mine = held_pieces(plan_rank(layout, rank))
    holders: dict[int, set[int]] = {}
    for group in replicated(layout, rank):
        for array in group.arrays:
            holders[array] = set(group.others.tolist())
        assert sorted(group.shuffled(rank)) == sorted(group.others.tolist())
    for other in set(ranks) - {rank}:
        theirs = held_pieces(plan_rank(layout, other))
        same = {array for array in mine if mine[array] == theirs.get(array)}
        assert {array for array in mine if other in holders.get(array, ())} == same
        assert {array for array in common_arrays(layout, rank, other) if array in mine} == same


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), chunk_bytes=CHUNK_BYTES, block_bytes=st.sampled_from([64, 300, 8 << 20]), data=st.data())
def test_a_rank_s_state_is_put_together_from_other_ranks_and_the_store(
    layout: Layout, chunk_bytes: int, block_bytes: int, data: st.DataObject
) -> None:
    """From the memory of every other rank in some order; what nobody has is read, and nothing else."""
    with small_chunks(chunk_bytes), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", block_bytes)
        ranks = [Rank(rank) for rank in range(layout.mesh.num_ranks)]
        rank = data.draw(st.sampled_from(ranks))
        plan, expected, asked = plan_rank(layout, rank), area_of(layout, rank), list[Span]()
        others = data.draw(st.permutations(sorted(set(ranks) - {rank})))
        with arena_of(plan) as arena:
            filling = Gathering(plan, arena, 0, write_id=WRITE, step=Step(1), threads=1)
            for other in others:
                theirs = plan_rank(layout, other)
                memory = OtherMemory(theirs, data=area_of(layout, other))
                filling.take(ReplicaSnapshot(memory, plan, theirs, common_arrays(layout, rank, other)))
            filling.complete(commit_of(expected, asked))
            area = arena.data(0)
            assert all(payload(area, span) == payload(expected, span) for span in plan.spans)
        mine, theirs_all = held_pieces(plan), [held_pieces(plan_rank(layout, other)) for other in others]
        alone = {array for array in mine if all(mine[array] != theirs.get(array) for theirs in theirs_all)}
        assert {span.array for span in asked} == alone


def area_of(layout: Layout, rank: Rank) -> bytes:
    """A rank's data area of one and the same logical state."""
    plan = plan_rank(layout, rank)
    with arena_of(plan) as arena:
        local = local_arrays(layout, rank, logical_arrays(layout, seed=1))
        generation = stage(arena, plan, local, WRITE, Step(1)).generation
        return bytes(arena.data(generation))


def test_small_neighbours_come_in_one_question() -> None:
    """In both memories they lie side by side, behind what each holds alone: a question each would take as long as the
    bytes."""
    arrays = tuple(ArraySpec(name=f"norm{number:03}", dtype="float32", shape=(100,)) for number in range(200))
    own = ArraySpec(name="large", dtype="float32", shape=(4000,), flat_over="dp")
    layout = Layout(mesh=Mesh(dp=2, edp=2), arrays=(own, *arrays))
    mine, theirs = plan_rank(layout, Rank(0)), plan_rank(layout, Rank(1))
    memory = OtherMemory(theirs, data=area_of(layout, Rank(1)))
    with arena_of(mine) as arena:
        filling = Gathering(mine, arena, 0, write_id=WRITE, step=Step(1), threads=1)
        filling.take(ReplicaSnapshot(memory, mine, theirs, common_arrays(layout, Rank(0), Rank(1))))
        assert [mine.spans[number].array for number in filling.missing] == [layout.positions["large"]]
    assert len(memory.asked) == 1


def test_neighbours_that_lie_further_apart_in_one_memory_than_in_the_other_keep_their_places() -> None:
    """What is before them is larger on one rank, and a large piece begins at a page on both."""
    arrays = (
        ArraySpec(name="a", dtype="float32", shape=(33,), flat_over="dp"),
        ArraySpec(name="b", dtype="float32", shape=(25,)),
        ArraySpec(name="c", dtype="float32", shape=(1 << 18,)),
    )
    layout = Layout(mesh=Mesh(dp=2, edp=2), arrays=arrays)
    mine, theirs = plan_rank(layout, Rank(0)), plan_rank(layout, Rank(1))
    memory, expected = OtherMemory(theirs, data=area_of(layout, Rank(1))), area_of(layout, Rank(0))
    with arena_of(mine) as arena:
        filling = Gathering(mine, arena, 0, write_id=WRITE, step=Step(1), threads=1)
        filling.take(ReplicaSnapshot(memory, mine, theirs, common_arrays(layout, Rank(0), Rank(1))))
        assert [mine.spans[number].array for number in filling.missing] == [0]
        filling.complete(commit_of(expected, []))
        area = arena.data(0)
        assert all(payload(area, span) == payload(expected, span) for span in mine.spans)


def test_ranks_that_are_lost_together_ask_different_replicas() -> None:
    """Of the reference Behemoth with whole weights on every replica: a rack of 36 nodes, of 8 ranks each."""
    mesh = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
    layout = model_layout(named_inventory("behemoth-ref"), Recipe(weights="bfloat16"), mesh)
    asked: Counter[Rank] = Counter()
    for rank in range(4000, 4000 + 36 * 8):
        first, *_ = replicated(layout, Rank(rank))
        asked[first.shuffled(Rank(rank))[0]] += 1
    assert max(asked.values()) <= 5
    assert len(asked) > 100
