"""Objects and parts of a save on object storage: every byte is sent once, by somebody who holds some of its part."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint import part_cuts
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.part_cuts import MAX_DATA_BYTES, cut_parts
from behemoth.checkpoint.part_plan import Fragment, PlannedPart, plan_parts
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.uploads import SINGLE_BYTES, Uploads, plan_uploads
from behemoth.ports import MIN_PART_BYTES
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from checkpoint.company_rig import small_parts
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks

MIB = 1 << 20


@settings(max_examples=150, deadline=None)
@given(
    layout=layouts(), chunk_bytes=CHUNK_BYTES, least=st.sampled_from([1, 8, 40]), single=st.sampled_from([1, 16, 100])
)
def test_every_byte_is_sent_once_by_somebody_who_holds_some_of_its_part(
    layout: Layout, chunk_bytes: int, least: int, single: int
) -> None:
    layout = replace(layout, sharding="box")
    with small_chunks(chunk_bytes), small_parts(least, single):
        plan, sent = plan_uploads(layout), np.zeros(layout.mesh.num_ranks, dtype=np.int64)
        exchanged, parts = 0, defaultdict[tuple[int, int], list[PlannedPart]](list)
        for rank in range(layout.mesh.num_ranks):
            mine = plan_parts(layout, Rank(rank))
            for part in mine.parts:
                sent[rank] += part.size_bytes
                exchanged += sum(one.length for one in part.data if not is_held(layout, rank, one))
                assert any(is_held(layout, rank, one) for one in part.data)
                assert all(is_held(layout, one.rank, one) for one in (*part.head, *part.data))
                parts[part.shard].append(part)
        for position, grid in enumerate(grids(layout)):
            for shard in range(grid.num_shards):
                of_shard = sorted(parts.pop((position, shard)), key=lambda part: part.number)
                expect_the_shard(grid, shard, of_shard)
                expect_sizes(grid, of_shard, least, single)
        assert not parts
        assert (sent == plan.sent_bytes).all()
        assert exchanged == plan.exchanged_bytes


def is_held(layout: Layout, rank: int, fragment: Fragment) -> bool:
    """Whether the rank has all of these bytes, in one span or several."""
    spans = (span for span in plan_rank(layout, Rank(rank)).spans if span[:2] == (fragment.array, fragment.chunk))
    begin, end = fragment.offset, fragment.offset + fragment.length
    common = (min(end, span.offset + span.length) - max(begin, span.offset) for span in spans)
    return sum(num_bytes for num_bytes in common if num_bytes > 0) == fragment.length


def expect_the_shard(grid: Grid, shard: int, parts: list[PlannedPart]) -> None:
    """All data of its chunks in their order, and what is sent is the whole object; heads are what came before."""
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert {part.num_parts for part in parts} == {len(parts)}
    covered = dict.fromkeys(grid.chunks_of(shard).tolist(), 0)
    order: list[int] = []
    for part in parts:
        begun = dict(covered)
        size_bytes = grid.index_bytes if part.is_last else 0
        for one in part.data:
            assert one.offset == covered[one.chunk]
            covered[one.chunk] += one.length
            size_bytes += one.length
            order.append(one.chunk)
            if covered[one.chunk] == grid.data_bytes(one.chunk):
                size_bytes += grid.stride_bytes - grid.data_bytes(one.chunk)
        first = part.data[0].chunk
        is_ended = covered[first] == grid.data_bytes(first) and begun[first] > 0
        assert sum(one.length for one in part.head) == (begun[first] if is_ended else 0)
        assert all(one.chunk == first for one in part.head)
        assert part.size_bytes == size_bytes
    assert list(dict.fromkeys(order)) == grid.chunks_of(shard).tolist()
    assert all(num_bytes == grid.data_bytes(chunk) for chunk, num_bytes in covered.items())
    assert sum(part.size_bytes for part in parts) == grid.file_bytes


def expect_sizes(grid: Grid, parts: list[PlannedPart], least: int, single: int) -> None:
    assert len(parts) == 1 or grid.file_bytes >= single
    assert all(part.size_bytes >= least for part in parts[:-1])


@settings(max_examples=50, deadline=None)
@given(layout=layouts(), least=st.sampled_from([1, 8, 40]))
def test_each_object_of_several_parts_has_one_completer_who_knows_whom_to_ask(layout: Layout, least: int) -> None:
    layout = replace(layout, sharding="box")
    with small_chunks(64), small_parts(least, 1):
        plans = [plan_parts(layout, Rank(rank)) for rank in range(layout.mesh.num_ranks)]
        parts = {(part.shard, part.number): (plan.rank, part) for plan in plans for part in plan.parts}
        completed = [shard for plan in plans for shard in plan.completes]
        assert len(set(completed)) == len(completed)
        assert set(completed) == {part.shard for _, part in parts.values() if part.num_parts > 1}
        for plan in plans:
            for shard, ranks in plan.completes.items():
                for number, rank in enumerate(ranks, 1):
                    uploader, part = parts[shard, number]
                    assert (uploader, part.completer, part.num_parts) == (rank, plan.rank, len(ranks))


@pytest.mark.parametrize(
    ("bounds", "num_holders", "parts"),
    [
        ((0, 4 * MIB, 8 * MIB), 1, [(0, 8 * MIB, 0, 1)]),  # merged until large enough
        (
            (0, 5 * MIB, 10 * MIB, 11 * MIB),
            1,
            [(0, 5 * MIB, 0, 0), (5 * MIB, 10 * MIB, 1, 1), (10 * MIB, 11 * MIB, 2, 2)],
        ),
        ((0, 1 * MIB, 9 * MIB), 1, [(0, 9 * MIB, 0, 1)]),  # a small one goes with the large one behind it
        (  # and takes no more of it than it needs where there is enough for both
            (0, 1 * MIB, 241 * MIB),
            1,
            [(0, 5 * MIB, 0, 1), (5 * MIB, 241 * MIB, 1, 1)],
        ),
        ((0, 12 * MIB), 500, [(0, 6 * MIB, 0, 0), (6 * MIB, 12 * MIB, 0, 0)]),  # replicas share it out
        ((0, 6 * MIB, 6 * MIB, 12 * MIB), 1, [(0, 6 * MIB, 0, 0), (6 * MIB, 12 * MIB, 2, 2)]),  # an empty piece
    ],
)
def test_parts_of_a_shard(bounds: tuple[int, ...], num_holders: int, parts: list[tuple[int, ...]]) -> None:
    assert [run[:4] for run in cut_parts(bounds, num_holders)] == parts


def test_a_small_piece_before_large_ones_makes_nobody_hand_over_a_large_one() -> None:
    """Megatron's bucket: the first rank that has some of the array may have the end of its share only."""
    share = 64 * MIB
    spec = ArraySpec(
        name="w", dtype="uint8", shape=(2 * share + MIB,), flat_over="dp", flat_bucket=(share - MIB, 4 * share)
    )
    plan = plan_uploads(Layout(mesh=Mesh(dp=4, edp=4), arrays=(spec,), sharding="box"))
    assert 0 < plan.exchanged_bytes < MIN_PART_BYTES
    assert plan.sent_bytes.tolist()[3] == 0
    assert plan.sent_bytes[1:3].min() >= share - MIN_PART_BYTES


def test_limits_of_parts_hold_for_any_shard() -> None:
    many = cut_parts(tuple(range(0, 60_001 * MIN_PART_BYTES, MIN_PART_BYTES)), 1)
    assert len(many) <= 10_000
    large = cut_parts((0, 9 * MAX_DATA_BYTES), 1)
    assert [run.end - run.begin for run in large] == [MAX_DATA_BYTES] * 9


def test_a_shard_that_parts_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_cuts, "MAX_DATA_BYTES", 8 * MIB)  # at full size the shard has five million chunks
    huge = ArraySpec(name="w", dtype="uint8", shape=(8 * MIB * 10_001,))
    with (
        small_parts(MIN_PART_BYTES, SINGLE_BYTES),
        pytest.raises(Invalid, match="'w': expected a shard of at most 10000 parts"),
    ):
        plan_uploads(Layout(mesh=Mesh(), arrays=(huge,), sharding="box"))
    with pytest.raises(Invalid, match="expected a layout of box shards, got sharding 'array'"):
        plan_uploads(Layout(mesh=Mesh(), arrays=(huge,)))


def test_an_object_below_eight_mebibytes_is_one_request_whoever_holds_it() -> None:
    spec = ArraySpec(name="w", dtype="uint8", shape=(SINGLE_BYTES // 2 + 1,), flat_over="dp")
    for factor, num_parts, num_requests in ((1, 1, 1), (4, 3, 5)):
        wider = replace(spec, shape=(spec.shape[0] * factor,))
        (uploads,) = plan_uploads(Layout(mesh=Mesh(dp=4, edp=4), arrays=(wider,), sharding="box")).uploads
        assert uploads.num_parts == num_parts
        assert uploads.requests_per_array == num_requests


def test_a_save_of_the_reference_behemoth_keeps_its_bounds() -> None:
    """Of 24.2 TB: 4 M requests at most, 8% of the bytes exchanged, nobody more than 2% above the mean."""
    mesh = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
    layout = replace(model_layout(named_inventory("behemoth-ref"), Recipe(), mesh), sharding="box")
    plan = plan_uploads(layout)
    assert plan.sent_bytes.sum() == sum(grid.num_shards * grid.file_bytes for grid in grids(layout))
    assert 12 * 2_015_461_958_144 < plan.sent_bytes.sum() < 1.001 * 12 * 2_015_461_958_144
    assert all((np.diff(one.range, axis=1) >= MIN_PART_BYTES)[no_last(one)].all() for one in plan.uploads)
    assert plan.sent_bytes.max() <= 1.02 * plan.sent_bytes.mean()
    for one in plan.uploads:
        begin, end = one.range.T
        is_first, is_last = np.isin(np.arange(len(begin)), one.first_part[:-1]), ~no_last(one)
        assert not begin[is_first].any()
        assert (end[is_last] == one.kind.grid.file_bytes).all()
        assert (end[~is_last] == begin[~is_first]).all()
    assert plan.num_requests <= 4_000_000
    assert plan.exchanged_bytes <= 0.08 * plan.sent_bytes.sum()


def no_last(uploads: Uploads) -> np.ndarray:
    """Which parts are not the last of their shard."""
    chosen = np.ones(len(uploads.data), dtype=bool)
    chosen[uploads.first_part[1:] - 1] = False
    return chosen
