"""A small real checkpoint for tests: two ranks, split, flat and replicated arrays, made by the engine itself."""

import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import CommitRecord, commit
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.staging import stage
from behemoth.checkpoint.writer import write_rank
from behemoth.ports import SavesTo, UploadsParts, WritesRanges
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import logical_arrays
from checkpoint.company_rig import upload_all_ranks

ATTEMPT = Attempt(1)


def small_layout() -> Layout:
    """Two ranks: `model/w` in two column blocks, `optim/m` as flat ranges, `model/norm` on both, a scalar."""
    arrays = (
        ArraySpec(name="model/norm", dtype="float32", shape=(5,)),
        ArraySpec(name="model/w", dtype="bfloat16", shape=(6, 8), dims=((1, "tp"),)),
        ArraySpec(name="optim/m", dtype="float32", shape=(7, 3), flat_over="dp"),
        ArraySpec(name="state/count", dtype="int64", shape=()),
    )
    return Layout(mesh=Mesh(tp=2, edp=2), arrays=arrays)


def big_layout() -> Layout:
    """One rank, several chunks, and a gap behind each of them: chunks of 1 MiB and more begin at pages."""
    return Layout(mesh=Mesh(), arrays=(ArraySpec(name="model/big", dtype="float32", shape=(5, 1 << 20)),))


def save(
    store: SavesTo,
    layout: Layout,
    *,
    step: int,
    write_id: str,
    seed: int | None = None,
    publish: bool = True,
    committed_us: int = 0,
) -> CommitRecord | None:
    """Save bytes from a seed (by default the step) by every rank, and commit unless told not to."""
    if isinstance(store, UploadsParts):
        layout = replace(layout, sharding="box")
        arrays = logical_arrays(layout, step if seed is None else seed)
        receipts = upload_all_ranks(store, layout, arrays, step=step, write_id=write_id)
    else:
        receipts = [_write(store, layout, rank, step, write_id, seed) for rank in range(layout.mesh.num_ranks)]
    if not publish:
        return None
    return commit(
        store,
        Candidate(run="test", step=Step(step), write_id=WriteId(write_id), attempt=ATTEMPT, committed_us=committed_us),
        layout,
        receipts,
        previous=None,
    )


def _write(store: WritesRanges, layout: Layout, rank: int, step: int, write_id: str, seed: int | None) -> Receipt:
    plan = plan_rank(layout, Rank(rank))
    fd = os.memfd_create("test-arena")
    try:
        os.ftruncate(fd, Arena.size_bytes(plan))
        arena = Arena.format(fd, plan)
        try:
            taken = stage(arena, plan, _pieces(plan, step if seed is None else seed), WriteId(write_id), Step(step))
            return write_rank(
                store,
                RankWrite(
                    prefix=step_prefix(Step(step), WriteId(write_id)),
                    layout=layout,
                    plan=plan,
                    arena=arena,
                    generation=taken.generation,
                    attempt=ATTEMPT,
                    threads=2,
                    cancelled=lambda: False,
                ),
            )
        finally:
            arena.close()
    finally:
        os.close(fd)


def _pieces(plan: RankPlan, seed: int) -> Mapping[str, np.ndarray]:
    """Bytes that depend on the array only, so that replicas agree."""
    return {
        piece.name: np.random.default_rng([seed, piece.array]).integers(1, 100, piece.nbytes, dtype=np.uint8)
        for piece in plan.pieces
    }
