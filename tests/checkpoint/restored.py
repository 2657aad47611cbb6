"""Restores a checkpoint on a mesh, every rank into an arena of its own as its agent does, where tests say "restores".

It compares nothing: what a rank should hold is `checkpoint_rig.local_arrays` of the logical arrays, on that mesh.
"""

from __future__ import annotations

import numpy as np

from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.on_mesh import on_mesh
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_rank
from behemoth.ports import ObjectStore
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef
from checkpoint.checkpoint_rig import Logical, arena_of, local_arrays, raw_bytes, unstaged

Held = list[dict[str, bytes]]
"""By rank: the bytes of what it holds of each array."""


def restored_on(store: ObjectStore, ref: CommitRef, mesh: Mesh) -> tuple[Layout, Held]:
    """What every rank of the mesh gets back, and the layout on which it does."""
    commit = open_commit(store, ref)
    layout = on_mesh(commit.layout, mesh)
    return layout, restored_to(store, commit, layout)


def restored_to(store: ObjectStore, commit: Commit, layout: Layout) -> Held:
    """What every rank of a layout gets back."""
    return [_restored(store, commit, layout, Rank(rank)) for rank in range(layout.mesh.num_ranks)]


def held_on(layout: Layout, arrays: Logical) -> Held:
    """What every rank should get, by numpy alone."""
    return [
        {name: raw_bytes(array) for name, array in local_arrays(layout, rank, arrays).items()}
        for rank in range(layout.mesh.num_ranks)
    ]


def _restored(store: ObjectStore, commit: Commit, layout: Layout, rank: Rank) -> dict[str, bytes]:
    plan = plan_rank(layout, rank)
    with arena_of(plan) as arena:
        np.frombuffer(arena.filling(0), dtype=np.uint8)[:] = 0xEE  # what it held before must not show
        read_rank(store, commit, layout, plan, arena, 0, threads=1)
        return unstaged(arena, plan, 0)
