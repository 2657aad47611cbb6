"""Arrays in several objects, one for each box that a rank holds: where their bytes lie, and that whoever reads
checkpoints finds all of them, and all damage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.diff import Side, diff
from behemoth.checkpoint.forecast import Rates, forecast
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.problem import Problem
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.verify import verify
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, raw_bytes, save, toy_layout
from checkpoint.interop.tensor_trees import read
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks

MIB = 1 << 20
MESH = Mesh(tp=4, dp=2, ep=4, etp=2)


def box_layout(*arrays: ArraySpec, mesh: Mesh = MESH) -> Layout:
    return Layout(mesh=mesh, arrays=arrays, sharding="box")


def saved(seed: int = 1, *, step: int = 1, store: MemoryStore | None = None) -> tuple[MemoryStore, Commit]:
    store, layout = store or MemoryStore(), toy_layout("box")
    record = save(store, layout, logical_arrays(layout, seed), step=step, write_id=f"a1-{step}")
    return store, open_commit(store, record.ref)


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), chunk_bytes=CHUNK_BYTES)
def test_shards_tile_the_array_and_each_chunk_has_a_place_of_its_own(layout: Layout, chunk_bytes: int) -> None:
    with small_chunks(chunk_bytes):
        for grid in grids(layout):
            shards, slots = grid.place(np.arange(grid.num_chunks))
            assert np.bincount(shards).tolist() == [grid.num_slots] * grid.num_shards
            for shard in range(grid.num_shards):
                chunks = grid.chunks_of(shard)
                assert (shards[chunks] == shard).all()
                assert slots[chunks].tolist() == list(range(grid.num_slots))
                for slot, chunk in enumerate(chunks.tolist()):
                    assert grid.place(chunk) == (shard, slot)
            assert len(set(grid.shard_keys)) == grid.num_shards


@pytest.mark.parametrize(
    ("spec", "shards"),
    [
        (ArraySpec(name="w", dtype="uint8", shape=()), ()),
        (ArraySpec(name="w", dtype="uint8", shape=(12, 8), flat_over="dp"), (1, 1)),
        (ArraySpec(name="w", dtype="uint8", shape=(12, 8), dims=((1, "tp"),)), (1, 4)),
        (ArraySpec(name="w", dtype="uint8", shape=(4, 6, 8), dims=((0, "ep"), (2, "etp"))), (4, 1, 2)),
        # Both halves of a packed dim; q, k and v by their common measure, 1 / 24 of them, where that is worth it.
        (ArraySpec(name="w", dtype="uint8", shape=(24,), dims=((0, "tp"),), packed=(0, (12, 12))), (8,)),
        (ArraySpec(name="w", dtype="uint8", shape=(24, MIB), dims=((0, "tp"),), packed=(0, (16, 4, 4))), (24, 1)),
        (ArraySpec(name="w", dtype="uint8", shape=(24,), dims=((0, "tp"),), packed=(0, (16, 4, 4))), (1,)),
        # Uneven shares have no measure that chunks respect.
        (ArraySpec(name="w", dtype="uint8", shape=(13, MIB), dims=((0, "tp"),)), (1, 1)),
        (ArraySpec(name="w", dtype="uint8", shape=(50_021, 64), dims=((0, "tp"),)), (1, 1)),
    ],
)
def test_a_shard_is_a_box_where_boxes_have_a_common_measure(spec: ArraySpec, shards: tuple[int, ...]) -> None:
    (grid,) = grids(box_layout(spec))
    assert grid.shards_per_dim == shards


@settings(max_examples=100, deadline=None)
@given(layout=layouts())
def test_where_shards_lie_within_one_box_a_rank_has_one_range_of_each(layout: Layout) -> None:
    """Which is what they are for: a range of an object can be uploaded, a set of ranges cannot."""
    with small_chunks(64):
        layout = replace(layout, sharding="box")
        of = grids(layout)
        for rank in range(layout.mesh.num_ranks):
            ends: dict[tuple[int, int], tuple[int, int]] = {}
            for span in plan_rank(layout, Rank(rank)).spans:
                grid, slot = of[span.array], span.shard_offset // of[span.array].stride_bytes
                if is_cut_everywhere(layout, grid):
                    begin = slot, span.offset
                    assert ends.setdefault((span.array, span.shard), begin) == begin
                    end = span.offset + span.length
                    is_end = end == grid.data_bytes(span.chunk)
                    ends[span.array, span.shard] = (slot + 1, 0) if is_end else (slot, end)


def is_cut_everywhere(layout: Layout, grid: Grid) -> bool:
    """Whether every dim that several ranks share is cut into shards."""
    split = [dim for dim, axis in grid.spec.dims if layout.axis_size(axis) > 1 or grid.spec.packed is not None]
    return all(grid.shards_per_dim[dim] > 1 or grid.spec.shape[dim] == 1 for dim in split)


def test_the_same_state_in_one_object_an_array_and_in_boxes_does_not_differ() -> None:
    """Chunks are the same, so the CRCs over them are, and nothing is read."""
    store, boxes = saved()
    layout = toy_layout()
    record = save(store, layout, logical_arrays(layout, 1), step=2)
    whole = open_commit(store, record.ref)
    assert boxes.index.content_crcs == whole.index.content_crcs
    assert {one.how for one in diff(Side(store=store, commit=boxes), Side(store=store, commit=whole), threads=1)} == {
        "same"
    }


def test_an_export_reads_all_objects_of_an_array() -> None:
    store, commit = saved(seed=4)
    tensors = stored_tensors(store, commit, threads=1)
    for name, array in logical_arrays(commit.layout, 4).items():
        assert raw_bytes(read(tensors[name])) == raw_bytes(array)


def test_damage_in_any_object_is_named_with_its_chunk_and_file() -> None:
    store, commit = saved()
    position = commit.layout.positions["model/experts"]
    for shard, key in enumerate(commit.shard_keys(position)):
        store._objects[key][3] ^= 1
        problem = only(store, commit)
        chunk = int(grids(commit.layout)[position].chunks_of(shard)[0])
        assert (problem.kind, problem.object_key, problem.chunk) == ("chunk", key, chunk)
        with pytest.raises(Corrupt, match=f"'model/experts', chunk {chunk}, file {key}"):
            read_array(store, commit, "model/experts")
        store._objects[key][3] ^= 1
        index_at = grids(commit.layout)[position].index_offset_bytes
        store._objects[key][index_at] ^= 1
        assert only(store, commit).kind == "shard-index"
        with pytest.raises(Corrupt, match=f"'model/experts', index of file {key}"):
            read_array(store, commit, "model/experts")
        store._objects[key][index_at] ^= 1
    assert verify(store, commit.record.ref, threads=2, deep=True).is_intact


def test_a_missing_and_an_exchanged_object_are_found() -> None:
    store, commit = saved()
    first, second, *_ = commit.shard_keys(commit.layout.positions["model/experts"])
    whole = store._objects[first]
    store._objects[first] = store._objects[second]
    problem = only(store, commit)
    assert (problem.kind, problem.array) == ("content", "model/experts")
    with pytest.raises(Corrupt, match=r"'model/experts', 2 files below .*: expected the chunks that were committed"):
        read_array(store, commit, "model/experts")
    del store._objects[first]
    problem = only(store, commit)
    assert (problem.kind, problem.object_key) == ("missing", first)
    store._objects[first] = whole
    assert verify(store, commit.record.ref, threads=1, deep=True).is_intact


def test_a_forecast_counts_every_object() -> None:
    layout = toy_layout("box")
    whole = replace(layout, sharding="array")
    told = [forecast(one, ranks_per_node=2, rates=Rates()).num_files for one in (layout, whole)]
    assert told[0] - told[1] == sum(grid.num_shards for grid in grids(layout)) - len(layout.arrays) > 0


def test_another_sharding_is_another_layout_and_an_unknown_one_is_refused() -> None:
    layout = toy_layout("box")
    assert Layout.decode(layout.encode()) == layout
    assert layout.digest != toy_layout().digest
    with pytest.raises(Invalid, match="expected sharding array or box, got 'rows'"):
        replace(layout, sharding="rows")  # type: ignore[arg-type]


def only(store: MemoryStore, commit: Commit) -> Problem:
    (problem,) = verify(store, commit.record.ref, threads=1, deep=True).problems
    return problem
