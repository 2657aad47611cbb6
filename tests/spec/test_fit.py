"""Which meshes suit a model, and along which dim stacked experts are shared by rows."""

from __future__ import annotations

import pytest

from behemoth.spec.fit import misfits, row_dim
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import TensorEntry, inventory_of, named_inventory
from behemoth.spec.recipe import DEFAULT, Recipe

ROWS = Recipe(shares="rows")


@pytest.mark.parametrize(
    ("mesh", "axis", "reason"),
    [
        (Mesh(dp=3, ep=3), "ep", "expected a divisor of the model's 16 experts, got 3"),
        (Mesh(pp=49), "pp", "expected at most the model's 48 layers, got 49"),
        (Mesh(tp=3, edp=3), "tp", "got 3"),
        (Mesh(dp=3, etp=3), "etp", "expected a divisor of 8192 (dim 2 of"),
    ],
)
def test_a_mesh_that_does_not_suit_the_model_is_told_by_axis(mesh: Mesh, axis: str, reason: str) -> None:
    ((got_axis, got_reason),) = misfits(named_inventory("scout"), mesh, DEFAULT)
    assert got_axis == axis
    assert reason in got_reason


@pytest.mark.parametrize(
    ("mesh", "dim"),
    [
        (Mesh(dp=8, ep=2, edp=4), 0),  # a row for each: torchtitan asks for more ranks than experts
        (Mesh(dp=16, ep=2, edp=8), 1),
        (Mesh(dp=8, ep=8, edp=1), 0),
        (Mesh(dp=16, ep=8, edp=2), 1),
        (Mesh(dp=16, edp=16), 1),
    ],
)
def test_rows_are_those_of_dim_1_where_ranks_are_more_than_experts(mesh: Mesh, dim: int) -> None:
    entries = [
        TensorEntry(name="experts", shape=[8, 16, 4], shard="ep0"),
        TensorEntry(name="bias", shape=[8], shard="ep0"),
        TensorEntry(name="router", shape=[8, 16], shard="rep"),
    ]
    inventory = inventory_of(entries, num_experts=8, source="toy")
    assert [row_dim(tensor, mesh) for tensor in inventory.tensors] == [dim, 0, 0]
    assert list(misfits(inventory, mesh, ROWS)) == []


@pytest.mark.parametrize(
    ("shape", "shard", "mesh", "reason"),
    [
        ([4, 10, 6], "ep0", Mesh(dp=16, ep=4, edp=4), "expected a divisor of 10 (dim 1 of w, "),
        ([4, 12, 6], "ep0,etp1", Mesh(dp=32, ep=4, etp=2, edp=4), "expected a divisor of 6 (dim 1 of w, "),
        ([4, 16, 6], "ep0,etp1_packed2", Mesh(dp=16, ep=4, etp=2, edp=2), "expected at most 1 where etp cuts dim 1"),
        ([4, 16, 6], "ep0,etp1_padded12", Mesh(dp=16, ep=4, etp=2, edp=2), "expected at most 1 where etp cuts dim 1"),
    ],
)
def test_rows_that_fsdp2_cannot_share_are_told(shape: list[int], shard: str, mesh: Mesh, reason: str) -> None:
    inventory = inventory_of([TensorEntry(name="w", shape=shape, shard=shard)], num_experts=4, source="toy")
    ((axis, told),) = misfits(inventory, mesh, ROWS)
    assert axis == "edp"
    assert told.startswith(reason)
    assert told.endswith(f", got {mesh.edp}")
    assert list(misfits(inventory, mesh, DEFAULT)) == []


def test_experts_that_ep_does_not_divide_are_told_by_ep_alone() -> None:
    """No edp would help: how many rows a rank has depends on the experts that it has."""
    entries = [TensorEntry(name="w", shape=[4, 16, 6], shard="ep0,etp1_packed2")]
    inventory = inventory_of(entries, num_experts=4, source="toy")
    assert [axis for axis, _ in misfits(inventory, Mesh(dp=32, ep=8, etp=2, edp=2), ROWS)] == ["ep"]
