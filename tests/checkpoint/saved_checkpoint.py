"""A small real checkpoint for tests: two ranks, split, flat and replicated arrays, made by the engine itself."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import CommitRecord, commit
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import RankPlan
from behemoth.ports import SavesTo, UploadsParts
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import logical_arrays, written_rank
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
        held = partial(_pieces, seed=step if seed is None else seed)
        ranks = range(layout.mesh.num_ranks)
        receipts = [written_rank(store, layout, rank, held, step=step, write_id=write_id) for rank in ranks]
    if not publish:
        return None
    return commit(
        store,
        Candidate(run="test", step=Step(step), write_id=WriteId(write_id), attempt=ATTEMPT, committed_us=committed_us),
        layout,
        receipts,
        previous=None,
    )


def _pieces(plan: RankPlan, seed: int) -> Mapping[str, np.ndarray]:
    """Bytes that depend on the array only, so that replicas agree."""
    return {
        piece.name: np.random.default_rng([seed, piece.array]).integers(1, 100, piece.nbytes, dtype=np.uint8)
        for piece in plan.pieces
    }
