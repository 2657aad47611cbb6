"""What each rank holds of a training state, beside the sizes of what programs of that kind have in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank
from behemoth.checkpoint.rank_bytes import rank_bytes
from behemoth.spec.fit import misfits
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import Inventory, Tensor, TensorEntry, inventory_of, named_inventory
from behemoth.spec.pipeline import EVEN, Pipeline
from behemoth.spec.recipe import Recipe, Shares

Values = npt.NDArray[np.int8]


def of(*entries: TensorEntry, num_experts: int = 0) -> Inventory:
    return inventory_of(entries, num_experts=num_experts, source="toy")


def test_one_rank_holds_everything() -> None:
    (held,) = rank_bytes(named_inventory("scout"), Mesh())
    assert (held.weights_bytes, held.optimizer_bytes) == (2 * 108_641_793_536, 12 * 108_641_793_536)


@pytest.mark.parametrize(
    ("recipe", "weights_bytes", "optimizer_bytes"),
    [
        (Recipe(), 2, 12 / 4),
        (Recipe(weights="bfloat16", master="split", exp_avg="bfloat16", exp_avg_sq="bfloat16"), 2, 6 / 4),
        (Recipe(weights="float32", master="none", shares="rows"), 4 / 4, 8 / 4),
        (Recipe(weights="float8_e4m3fn", exp_avg="float8_e4m3fn", exp_avg_sq="none", shares="whole"), 1, 5),
    ],
)
def test_what_a_rank_holds_follows_the_recipe(recipe: Recipe, weights_bytes: float, optimizer_bytes: float) -> None:
    inventory = of(TensorEntry(name="w", shape=[64, 8], shard="tp0"))
    for held in rank_bytes(inventory, Mesh(tp=2, dp=4, edp=8), recipe=recipe):
        assert (held.weights_bytes, held.optimizer_bytes) == (256 * weights_bytes, 256 * optimizer_bytes)


def test_vectors_stay_bfloat16_beside_matrices_of_float8() -> None:
    inventory = of(TensorEntry(name="w", shape=[64, 8], shard="rep"), TensorEntry(name="norm", shape=[8], shard="rep"))
    (held,) = rank_bytes(inventory, Mesh(), recipe=Recipe(weights="float8_e4m3fn", master="none"))
    assert held.weights_bytes == 64 * 8 + 2 * 8


def test_rows_that_are_fewer_than_replicas_are_held_by_the_first_ones() -> None:
    inventory = of(TensorEntry(name="router", shape=[5, 64], shard="rep"))
    recipe = Recipe(weights="bfloat16", master="none", exp_avg="none", exp_avg_sq="none", shares="rows")
    held = rank_bytes(inventory, Mesh(dp=4, edp=4), recipe=recipe)
    assert [one.weights_bytes for one in held] == [2 * 128, 2 * 128, 128, 0]


def test_the_last_shares_of_a_padded_vocabulary_are_short() -> None:
    """Of 50,257 rows on eight ranks, each of 6,400."""
    inventory = of(TensorEntry(name="embed", shape=[50257, 4], shard="tp0_padded128"))
    held = rank_bytes(inventory, Mesh(tp=8, edp=8))
    rows = [6400] * 7 + [50257 - 7 * 6400]
    assert [one.weights_bytes for one in held] == [8 * num for num in rows]
    assert [one.optimizer_bytes for one in held] == [48 * num for num in rows]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shares=st.sampled_from(["flat", "rows", "whole"]))
def test_every_rank_holds_what_is_left_of_each_tensor_when_it_is_cut_for_it(
    data: st.DataObject, shares: Shares
) -> None:
    size = st.integers(1, 4)
    tp, cp, dp, pp = (data.draw(size) for _ in range(4))
    ep = data.draw(st.sampled_from([num for num in range(1, tp * cp * dp + 1) if tp * cp * dp % num == 0]))
    mesh = Mesh(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, edp=tp * cp * dp // ep)
    inventory = of(
        TensorEntry(name="embed", shape=[data.draw(st.integers(1, 30)), 3], shard="tp0_padded"),
        TensorEntry(name="layers.{}.qkv", shape=[6 * tp, 5], shard="tp0_packed4:1:1", layers=(0, pp + 1, 1)),
        TensorEntry(name="layers.{}.norm", shape=[data.draw(st.integers(1, 9))], shard="rep", layers=(0, pp + 1, 1)),
        TensorEntry(name="layers.{}.experts", shape=[2 * ep, 7, 4], shard="ep0", layers=(0, pp + 1, 1)),
        TensorEntry(name="steps", shape=[3], shard="rep", buffer="int64"),
        TensorEntry(name="scale", shape=[], shard="rep", stage="last"),
        num_experts=2 * ep,
    )
    recipe = Recipe(weights="bfloat16", exp_avg_sq="bfloat16", shares=shares)
    assume(not list(misfits(inventory, mesh, recipe)))
    held = rank_bytes(inventory, mesh, recipe=recipe)
    assert len(held) == mesh.num_ranks
    for rank, one in enumerate(held):
        mine = [tensor for tensor in inventory.tensors if stage_of(tensor, pp) == mesh.coordinate(Rank(rank), "pp")]
        assert one.weights_bytes == sum(weights_of(tensor, mesh, rank, shares) for tensor in mine)
        parameters = [tensor for tensor in mine if tensor.buffer is None]
        assert one.optimizer_bytes == 10 * sum(elements_of(tensor, mesh, rank, shares) for tensor in parameters)


def stage_of(tensor: Tensor, num_stages: int) -> int:
    """One layer more than stages, spread evenly."""
    if tensor.layer is None:
        return num_stages - 1 if tensor.stage == "last" else 0
    return tensor.layer * num_stages // (num_stages + 1)


def weights_of(tensor: Tensor, mesh: Mesh, rank: int, shares: Shares) -> int:
    if tensor.buffer is not None:
        return 8 * tensor.num_params
    return 2 * elements_of(tensor, mesh, rank, "whole" if shares == "flat" else shares)


def elements_of(tensor: Tensor, mesh: Mesh, rank: int, shares: Shares) -> int:
    """By numpy: the tensor cut as Megatron does, then over the replicas as it or FSDP2 does."""
    local: Values = np.zeros(tensor.shape, dtype=np.int8)
    for cut in tensor.cuts:
        at, num = mesh.coordinate(Rank(rank), cut.axis), mesh.size(cut.axis)
        parts = np.split(local, np.cumsum(cut.part_sizes(local.shape[cut.dim]))[:-1], axis=cut.dim)
        local = np.concatenate([chunk(part, num, at, cut.dim) for part in parts], axis=cut.dim)
    axes = ("edp",) if tensor.is_expert else ("dp", "cp")
    at, num = place(mesh, rank, axes), math.prod(getattr(mesh, axis) for axis in axes)
    if shares == "flat":
        return chunk(local.reshape(-1), num, at, 0).size
    if shares == "rows" and tensor.shape:
        dim = 1 if tensor.is_expert and mesh.ep * mesh.edp > tensor.shape[0] else 0
        return chunk(local, num, at, dim).size
    return local.size


def place(mesh: Mesh, rank: int, axes: Sequence[str]) -> int:
    """The last axis is the innermost."""
    at = 0
    for axis in axes:
        at = at * getattr(mesh, axis) + mesh.coordinate(Rank(rank), axis)  # type: ignore[arg-type]
    return at


def chunk(whole: Values, num: int, at: int, dim: int) -> Values:
    """As torch.chunk, with empty ones at the end."""
    share = -(-whole.shape[dim] // num)
    return whole.take(range(min(at * share, whole.shape[dim]), min((at + 1) * share, whole.shape[dim])), axis=dim)


def test_pipeline_stages_hold_every_tensor_once() -> None:
    inventory = named_inventory("behemoth-ref")
    held = rank_bytes(inventory, Mesh(pp=8))
    assert sum(one.weights_bytes for one in held) == 2 * inventory.num_params


def test_the_optimizer_state_of_a_behemoth_adds_up_over_its_ranks() -> None:
    inventory = named_inventory("behemoth-ref")
    held = rank_bytes(inventory, Mesh(tp=8, pp=8, dp=4, ep=16, etp=2, edp=1))
    assert 12 * inventory.num_params <= sum(one.optimizer_bytes for one in held) < 12.12 * inventory.num_params


def test_fewer_layers_beside_embedding_and_head_even_out_what_stages_hold() -> None:
    scout, mesh = named_inventory("scout"), Mesh(pp=4)

    def most(pipeline: Pipeline) -> int:
        held = [one.weights_bytes for one in rank_bytes(scout, mesh, pipeline)]
        assert sum(held) == 2 * scout.num_params
        return max(held)

    assert most(Pipeline(layers=(11, 13, 13, 11))) != most(EVEN)
    assert most(Pipeline(layers=(3, 3, 3, 3) * 4, virtual=4)) == most(EVEN)
