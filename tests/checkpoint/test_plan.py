"""Pieces and owners: each byte has exactly one writer, and every rank gets the same answer."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings

from behemoth.base.errors import Internal, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint import cuts
from behemoth.checkpoint import plan as plan_module
from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import ALIGNMENT_BYTES, plan_rank, prove_coverage
from behemoth.checkpoint.sharing import kinds
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import toy_layout
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), chunk_bytes=CHUNK_BYTES)
def test_every_byte_has_exactly_one_writer(layout: Layout, chunk_bytes: int) -> None:
    with small_chunks(chunk_bytes, poor_bytes=cuts.POOR_CHUNK_BYTES):
        prove_coverage(layout)
        # The same by brute force, without the interval arithmetic.
        counts = [np.zeros((grid.num_shards, grid.file_bytes), dtype=np.uint8) for grid in grids(layout)]
        for rank in range(layout.mesh.num_ranks):
            for span in plan_rank(layout, Rank(rank)).writes:
                counts[span.array][span.shard, span.shard_offset : span.shard_offset + span.length] += 1
        for grid, count in zip(grids(layout), counts, strict=True):
            expected = np.zeros_like(count)
            for chunk in range(grid.num_chunks):
                start = grid.chunk_offset_bytes(chunk)
                expected[grid.place(chunk)[0], start : start + grid.data_bytes(chunk)] = 1
            assert (count == expected).all()
            assert grid.all_data_bytes().tolist() == [grid.data_bytes(k) for k in range(grid.num_chunks)]
            assert int(grid.all_data_bytes().sum()) == grid.spec.num_bytes


def test_spans_lie_within_their_piece_and_pieces_are_aligned() -> None:
    layout = toy_layout()
    for rank in range(4):
        plan = plan_rank(layout, Rank(rank))
        for piece in plan.pieces:
            spans = [span for span in plan.spans if span.array == piece.array]
            assert piece.arena_offset % ALIGNMENT_BYTES == 0
            assert sum(span.length for span in spans) == piece.nbytes
            ends = [piece.arena_offset, *(span.arena_offset + span.length for span in spans)]
            assert [span.arena_offset for span in spans] == ends[:-1]


def test_replicated_bytes_are_shared_out_evenly() -> None:
    mesh = Mesh(dp=4, edp=4)
    arrays = tuple(ArraySpec(name=f"w{index}", dtype="float32", shape=(2048, 1024)) for index in range(8))
    written = [plan_rank(Layout(mesh=mesh, arrays=arrays), Rank(rank)).written_bytes for rank in range(4)]
    assert written == [2 * 2048 * 1024 * 4] * 4


def test_bytes_that_only_one_rank_holds_weigh_before_anything_is_chosen() -> None:
    mesh = Mesh(tp=2, edp=2)
    alone = ArraySpec(name="z", dtype="uint8", shape=(1 << 20,), stage=0)
    layout = Layout(
        mesh=Mesh(pp=2),
        arrays=(alone, ArraySpec(name="a", dtype="uint8", shape=(1 << 18,))),
    )
    assert mesh.num_ranks == 2
    assert [plan_rank(layout, Rank(rank)).written_bytes for rank in range(2)] == [1 << 20, 1 << 18]


def test_a_flat_range_may_be_empty() -> None:
    layout = Layout(mesh=Mesh(dp=4, edp=4), arrays=(ArraySpec(name="w", dtype="int8", shape=(5,), flat_over="dp"),))
    assert [plan_rank(layout, Rank(rank)).pieces[0].nbytes for rank in range(4)] == [2, 2, 1, 0]


def test_a_rank_of_another_stage_holds_nothing() -> None:
    layout = Layout(mesh=Mesh(pp=2), arrays=(ArraySpec(name="w", dtype="int8", shape=(5,), stage=1),))
    assert plan_rank(layout, Rank(0)).pieces == ()
    assert plan_rank(layout, Rank(0)).data_bytes == 0


def test_a_rank_outside_of_the_mesh_is_refused() -> None:
    with pytest.raises(Invalid, match="a rank below 4, got 4"):
        plan_rank(toy_layout(), Rank(4))


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([(0, 0, 0, 10)], None),
        ([(0, 0, 4, 6), (0, 0, 0, 4)], None),
        ([(0, 0, 0, 9)], "span-missing"),
        ([], "span-missing"),
        ([(0, 0, 0, 6), (0, 0, 5, 5)], "span-twice"),
        ([(0, 0, 0, 10), (0, 0, 0, 10)], "span-twice"),
        ([(0, 0, 0, 4), (0, 0, 6, 4)], "span-missing"),
        ([(0, 0, 0, 11)], "span-outside"),
        ([(0, 1, 0, 10)], "span-outside"),
        ([(0, -1, 0, 10)], "span-outside"),
        ([(1, 0, 0, 10)], "span-outside"),
        ([(0, 0, 0, 10), (0, 0, 10, 0)], "span-outside"),
    ],
)
def test_coverage_finds_what_is_missing_doubled_or_outside(rows: list[tuple[int, ...]], code: str | None) -> None:
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="int8", shape=(10,)),))
    fault = check_coverage(layout, Extents.of(rows))
    assert (fault.code if fault else None) == code


def test_a_plan_that_leaves_bytes_out_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = toy_layout()
    whole = plan_rank(layout, Rank(0))

    def broken(_: Layout, rank: Rank) -> object:
        return (
            plan_rank(layout, rank)
            if rank
            else type(whole)(rank=whole.rank, layout_digest="", pieces=(), spans=(), data_bytes=0)
        )

    monkeypatch.setattr(plan_module, "plan_rank", broken)
    with pytest.raises(Internal, match="covered by nobody"):
        prove_coverage(layout)


def test_the_plan_of_one_rank_costs_no_more_in_a_larger_world() -> None:
    assert plan_s(Mesh(tp=8, dp=64, pp=4, ep=16, etp=2, edp=16)) < 5 * plan_s(
        Mesh(tp=8, dp=1, pp=4, ep=4, etp=2, edp=1)
    )


def plan_s(mesh: Mesh) -> float:
    """CPU seconds of this thread for the plan of one rank, once the owners of the layout are known."""
    arrays = [
        ArraySpec(
            name=f"l{index}/w", dtype="float32", shape=(8192, 8192), dims=((0, "tp"),), flat_over="dp", stage=index % 4
        )
        for index in range(100)
    ]
    arrays += [
        ArraySpec(name=f"l{index}/norm", dtype="bfloat16", shape=(8192,), stage=index % 4) for index in range(100)
    ]
    layout = Layout(mesh=mesh, arrays=tuple(arrays))
    plan_rank(layout, Rank(0))
    seconds = []
    for rank in range(1, 6):  # another each time: plans are kept
        start = time.thread_time()
        plan_rank(layout, Rank(rank))
        seconds.append(time.thread_time() - start)
    return min(seconds)


def test_arrays_that_differ_by_name_only_are_of_one_kind_and_every_array_of_one() -> None:
    layout = toy_layout()
    assert sorted(position for kind in kinds(layout) for position in kind.positions) == list(range(len(layout.arrays)))
    twins = [ArraySpec(name=name, dtype=dtype, shape=(8, 4)) for name, dtype in (("b", "float32"), ("a", "int32"))]
    other = ArraySpec(name="c", dtype="float32", shape=(8, 4), dims=((0, "tp"),))
    layout = Layout(mesh=Mesh(tp=2, edp=2), arrays=(*twins, other))
    assert [kind.positions for kind in kinds(layout)] == [(0, 1), (2,)]
