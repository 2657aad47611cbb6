"""The layout of a saved state on other meshes, and that it restores there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.on_mesh import on_mesh
from behemoth.checkpoint.plan import plan_rank
from behemoth.spec.mesh import Axes, Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from checkpoint.checkpoint_rig import toy_layout


def stages_of(layout: Layout) -> dict[str, int | None]:
    return {array.name: array.stage for array in layout.arrays}


def test_its_own_mesh_changes_nothing() -> None:
    layout = toy_layout()
    assert on_mesh(layout, layout.mesh) is layout


def test_the_ranks_records_get_a_row_for_each_rank_and_all_else_its_shape() -> None:
    layout = on_mesh(toy_layout(), Mesh(dp=3, edp=3))
    assert {array.name: array.shape for array in layout.arrays} == {
        array.name: (3, 9) if array.name == "state/ranks" else array.shape for array in toy_layout().arrays
    }


@pytest.mark.parametrize(("saved", "other"), [(8, 4), (8, 16), (4, 1), (1, 4), (8, 8)])
def test_layers_of_equal_stages_go_where_a_program_would_have_them(saved: int, other: int) -> None:
    """Scout has 48 layers, as many for each of these stages."""
    inventory, recipe = named_inventory("scout"), Recipe()
    layout = on_mesh(model_layout(inventory, recipe, Mesh(pp=saved)), Mesh(pp=other, tp=2, edp=2))
    wanted = model_layout(inventory, recipe, Mesh(pp=other, tp=2, edp=2))
    known = stages_of(wanted)
    if saved == 1:  # nothing tells then that a vision tower is not spread over stages
        known = {name: stage for name, stage in known.items() if "language_model.model.layers." in name}
    assert len(known) > 1000
    assert {name: stages_of(layout)[name] for name in known} == known


@pytest.mark.parametrize(
    ("saved", "over", "other", "expected"),
    [
        (Mesh(dp=4, edp=4), "dp", Mesh(cp=2, dp=2, edp=4), ("cp", "dp")),
        (Mesh(cp=4, edp=4), "cp", Mesh(dp=4, edp=4), "dp"),
        (Mesh(cp=2, dp=2, edp=4), ("cp", "dp"), Mesh(cp=4, edp=4), "cp"),
        (Mesh(cp=2, dp=2, edp=4), ("cp", "dp"), Mesh(cp=4, dp=2, edp=8), ("cp", "dp")),
        (Mesh(cp=2, dp=2, edp=4), "dp", Mesh(cp=4, dp=2, edp=8), "dp"),
        (Mesh(dp=4, edp=4), "edp", Mesh(cp=2, dp=2, edp=4), "edp"),
    ],
)
def test_what_all_dense_replicas_shared_they_share_on_another_mesh(
    saved: Mesh, over: Axes, other: Mesh, expected: Axes
) -> None:
    layout = Layout(mesh=saved, arrays=(ArraySpec(name="m", dtype="int8", shape=(9,), flat_over=over),))
    assert on_mesh(layout, other).arrays[0].flat_over == expected


def test_a_dim_that_lies_over_a_replica_axis_is_not_shared_over_it_once_more() -> None:
    spec = ArraySpec(name="m", dtype="int8", shape=(4, 9), dims=((0, "cp"),), flat_over="dp")
    layout = on_mesh(Layout(mesh=Mesh(dp=4, edp=4), arrays=(spec,)), Mesh(cp=2, dp=2, edp=4))
    assert layout.arrays == (spec,)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_stages_keep_their_order_and_every_byte_has_a_holder(data: st.DataObject) -> None:
    num_old, num_new = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    stages = data.draw(st.lists(st.integers(0, num_old - 1), min_size=1, max_size=12).map(sorted))
    arrays = [
        ArraySpec(name=f"layers.{n}.w", dtype="uint8", shape=(n + 1,), stage=stage) for n, stage in enumerate(stages)
    ]
    layout = on_mesh(Layout(mesh=Mesh(pp=num_old), arrays=tuple(arrays)), Mesh(pp=num_new))
    moved = [stages_of(layout)[array.name] for array in arrays]
    assert moved == sorted(moved, key=lambda stage: -1 if stage is None else stage)
    held = [piece.nbytes for rank in range(num_new) for piece in plan_rank(layout, Rank(rank)).pieces]
    assert sum(held) == sum(array.num_bytes for array in arrays)
