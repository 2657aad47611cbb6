"""A small real checkpoint for tests: two ranks, split, flat and replicated arrays, made by the engine itself."""

from dataclasses import replace

import numpy as np

from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.ports import SavesTo, UploadsParts
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import Logical, local_arrays, written_rank
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


def saved_arrays(layout: Layout, seed: int) -> Logical:
    """What `save` saves: bytes that depend on the seed and an array's place alone, none of them 0."""
    return {
        spec.name: np.random.default_rng([seed, position])
        .integers(1, 100, spec.num_bytes, dtype=np.uint8)
        .view(DTYPES[spec.dtype])
        .reshape(spec.shape)
        for position, spec in enumerate(layout.arrays)
    }


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
    """Save `saved_arrays` of a seed (by default the step) by every rank, and commit unless told not to."""
    arrays = saved_arrays(layout, step if seed is None else seed)
    if isinstance(store, UploadsParts):
        layout = replace(layout, sharding="box")
        receipts = upload_all_ranks(store, layout, arrays, step=step, write_id=write_id)
    else:
        receipts = [
            written_rank(
                store,
                layout,
                rank,
                lambda plan: local_arrays(layout, plan.rank, arrays),
                step=step,
                write_id=write_id,
            )
            for rank in range(layout.mesh.num_ranks)
        ]
    if not publish:
        return None
    return commit(
        store,
        Candidate(run="test", step=Step(step), write_id=WriteId(write_id), attempt=ATTEMPT, committed_us=committed_us),
        layout,
        receipts,
        previous=None,
    )
