"""Sums over all ranks are those of the ranks' own plans."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank
from behemoth.checkpoint import loads as loads_module
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import loads
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from checkpoint.checkpoint_rig import toy_layout
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks


def expect_sums_of_plans(layout: Layout, ranks: list[int]) -> None:
    found = loads(layout)
    for rank in ranks:
        plan = plan_rank(layout, Rank(rank))
        assert found.written_bytes[rank] == plan.written_bytes
        assert found.data_bytes[rank] == plan.data_bytes
        assert found.num_spans[rank] == len(plan.spans)
        assert found.arena_bytes[rank] == Arena.size_bytes(plan)


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), chunk_bytes=CHUNK_BYTES, paged_bytes=st.sampled_from([64, 1 << 20]))
def test_loads_are_the_sums_of_the_plans(layout: Layout, chunk_bytes: int, paged_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch, small_chunks(chunk_bytes):
        patch.setattr(loads_module, "PAGED_BYTES", paged_bytes)
        patch.setattr("behemoth.checkpoint.plan.PAGED_BYTES", paged_bytes)
        expect_sums_of_plans(layout, list(range(layout.mesh.num_ranks)))


def test_loads_of_every_way_of_sharing() -> None:
    expect_sums_of_plans(toy_layout(), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("recipe", "edp"),
    [
        (Recipe(), 6),
        (Recipe(weights="bfloat16", shares="rows"), 2),
        (Recipe(weights="bfloat16", shares="rows"), 8),
        (Recipe(weights="float8_e4m3fn"), 6),
    ],
)
def test_loads_of_a_real_model(recipe: Recipe, edp: int) -> None:
    """Weights that are whole on every replica are written by the least loaded ones."""
    mesh = Mesh(tp=4, dp=2 * edp, pp=3, cp=2, ep=8, etp=2, edp=edp)
    layout = model_layout(named_inventory("scout"), recipe, mesh)
    per_stage = mesh.num_ranks // 3
    expect_sums_of_plans(layout, [0, 1, per_stage - 1, per_stage, per_stage + 54 % per_stage, mesh.num_ranks - 1])
    assert loads(layout).written_bytes.sum() == sum(array.num_bytes for array in layout.arrays)
