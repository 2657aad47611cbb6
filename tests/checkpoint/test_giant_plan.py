"""The reference Behemoth on 32,000 ranks: every byte has one writer, and no rank writes much more than another."""

from __future__ import annotations

import numpy as np
import pytest

from behemoth.base.ids import Rank, Step
from behemoth.checkpoint.conversion import AS_SAVED
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.over_read import over_read
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reshard import plan_resharding
from behemoth.spec.mesh import Mesh
from checkpoint.giant_layout import (
    MESH,
    MOMENTS_LEFT,
    READER_MESHES,
    TRAINING_CHANGES,
    TRAINING_MESHES,
    giant,
    giant_bfloat16,
    giant_experts,
    giant_float8,
    giant_weights,
    to_float8,
    to_float8_by_matrix,
)


def test_a_sample_of_ranks_writes_evenly_metadata_is_small_and_no_chunk_is_large() -> None:
    layout = giant()
    written = [plan_rank(layout, Rank(rank)).written_bytes for rank in range(0, MESH.num_ranks, 997)]
    assert sum(array.num_bytes for array in layout.arrays) == 2_015_461_958_144 * 12
    mean = sum(array.num_bytes for array in layout.arrays) / MESH.num_ranks
    assert max(written) <= 1.02 * mean
    assert sum(len(grid.zarr_json()) for grid in grids(layout)) <= 8_000_000
    assert max(grid.payload_bytes for grid in grids(layout)) == 8 << 20


def test_a_restore_with_fewer_replicas_plans_what_its_rank_meets_and_the_fleet_reads_each_chunk_once() -> None:
    """From 32,000 ranks to 30,720: 20 replicas of each stage fewer."""
    saved, layout = giant(), giant(Mesh(tp=8, dp=480, pp=8, ep=16, etp=2, edp=120))
    positions = origins(saved, layout, step=Step(1))
    plan = plan_rank(layout, Rank(4711))
    work = plan_resharding(saved, layout, plan, positions)
    assert sum(slab.nbytes for slab in work.slabs) == sum(piece.nbytes for piece in plan.pieces)
    assert len(work.reads) < sum(grid.num_chunks for grid in grids(saved)) / 1000
    figures = over_read(saved, layout, positions, ranks=range(0, layout.mesh.num_ranks, 997))
    assert figures.needed_bytes == 2_015_461_958_144 * 12
    assert figures.once <= 1.1


@pytest.mark.longer
@pytest.mark.parametrize("name", [*TRAINING_CHANGES, *READER_MESHES])
def test_the_fleet_reads_hardly_more_than_it_needs_on_any_mesh_of_the_list(name: str) -> None:
    """Figures of some ranks are those of the reads that they plan, and each chunk once is within the goal."""
    is_training = name in TRAINING_CHANGES
    if is_training:
        saved, layout = (giant(*run) for run in TRAINING_CHANGES[name])
    else:
        saved, layout = giant(), giant_weights(READER_MESHES[name])
    intake = AS_SAVED if is_training else MOMENTS_LEFT
    positions = origins(saved, layout, step=Step(1), intake=intake)
    ranks = sorted({0, layout.mesh.num_ranks // 3, layout.mesh.num_ranks - 1})
    figures = over_read(saved, layout, positions, ranks=ranks)
    held = read = 0
    for rank in ranks:
        plan = plan_rank(layout, Rank(rank))
        held += sum(piece.nbytes for piece in plan.pieces)
        reads = plan_resharding(saved, layout, plan, positions).reads
        read += sum(grids(saved)[one.array].payload_bytes + TRAILER_BYTES for one in reads)
    assert (figures.held_bytes, figures.alone_bytes) == (held, read)
    assert figures.needed_bytes == 2_015_461_958_144 * (12 if is_training else 4)
    assert figures.once <= 1.1


@pytest.mark.longer
@pytest.mark.parametrize("name", [*TRAINING_MESHES, *READER_MESHES])
def test_the_fleet_reads_hardly_more_than_it_needs_to_make_float8_with_scales_on_any_mesh(name: str) -> None:
    saved, layout = giant_bfloat16(), giant_float8((TRAINING_MESHES | READER_MESHES)[name])
    figures = over_read(saved, layout, origins(saved, layout, step=Step(1), intake=to_float8()), ranks=[0])
    assert figures.needed_bytes == 2_015_461_958_144 * 2
    assert figures.once == pytest.approx(1, abs=1e-5)
    assert figures.worst_alone < 2


@pytest.mark.parametrize("mesh", READER_MESHES.values(), ids=READER_MESHES)
def test_the_fleet_reads_hardly_more_than_some_experts_where_they_alone_are_wanted(mesh: Mesh) -> None:
    saved, (layout, intake) = giant(), giant_experts(mesh)
    figures = over_read(saved, layout, origins(saved, layout, step=Step(1), intake=intake), ranks=[0])
    assert figures.needed_bytes == 2 * sum(array.num_bytes for array in layout.arrays) > 10**12
    assert figures.once <= 1.1


@pytest.mark.longer
@pytest.mark.parametrize("stage", range(MESH.pp))
def test_every_rank_of_a_stage_is_planned_and_every_byte_has_exactly_one_writer(stage: int) -> None:
    """Per array a line of bytes, which the spans of all ranks must tile: interval arithmetic that knows no plan.

    One stage of the mesh in each test: an array lies in exactly one, so that together they prove the whole model.
    """
    layout = giant()
    per_stage = MESH.num_ranks // MESH.pp
    plan_rank.cache_clear()
    rows = [_owned(layout, rank) for rank in range(stage * per_stage, (stage + 1) * per_stage)]
    mean = sum(array.num_bytes for array in layout.arrays) / MESH.num_ranks
    assert max(table[:, 2].sum() for table in rows) <= 1.02 * mean
    table = np.concatenate(rows)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    held = [at for at, array in enumerate(layout.arrays) if array.stage == stage]
    assert np.unique(table[:, 0]).tolist() == held
    assert table[:, 2].sum() == sum(layout.arrays[at].num_bytes for at in held)
    bounds = np.searchsorted(table[:, 0], [*held, len(layout.arrays)])
    for at, low, high in zip(held, bounds, bounds[1:], strict=False):
        _expect_tiled(grids(layout)[at], table[low:high, 1], table[low:high, 2])


def _owned(layout: Layout, rank: int) -> np.ndarray:
    """[spans, 3]: array, first byte in its file, and length of what the rank writes."""
    spans = plan_rank(layout, Rank(rank)).spans
    return np.array([(span.array, span.shard_offset, span.length) for span in spans if span.is_owned], dtype=np.int64)


def _expect_tiled(grid: Grid, begin: np.ndarray, length: np.ndarray) -> None:
    """Byte ranges in order: each begins its chunk or where the one before ends, and the last ends the chunk's data."""
    end, chunk = begin + length, begin // grid.stride_bytes
    is_first = np.diff(chunk, prepend=-1) > 0
    assert chunk[is_first].tolist() == list(range(grid.num_chunks)), grid.spec.name
    assert (begin[is_first] == chunk[is_first] * grid.stride_bytes).all(), grid.spec.name
    assert (begin[~is_first] == np.roll(end, 1)[~is_first]).all(), grid.spec.name
    is_last = np.append(is_first[1:], True)
    assert (end[is_last] == chunk[is_last] * grid.stride_bytes + grid.all_data_bytes()).all(), grid.spec.name


@pytest.mark.longer
@pytest.mark.parametrize("mesh", [MESH, *TRAINING_MESHES.values(), *READER_MESHES.values()], ids=str)
def test_one_scale_for_each_matrix_is_found_as_the_values_are_read(mesh: Mesh) -> None:
    saved, (layout, intake) = giant_bfloat16(), to_float8_by_matrix(mesh)
    found = origins(saved, layout, step=Step(1), intake=intake)
    assert over_read(saved, layout, found, ranks=[0]).once <= 1.1
