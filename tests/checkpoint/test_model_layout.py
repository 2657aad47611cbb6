"""Layouts that come out of recipes: which arrays, of which bytes, shared how."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.plan import plan_rank, prove_coverage
from behemoth.checkpoint.rank_bytes import rank_bytes
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import decode_inventory, named_inventory
from behemoth.spec.pipeline import Pipeline
from behemoth.spec.recipe import Recipe, Shares

MESH = Mesh(tp=2, dp=4, pp=2, ep=2, etp=2, edp=2)
TOY = decode_inventory(
    b"""{"format": 1, "experts": 4, "tensors": [
      {"name": "embed", "shape": [12, 8], "shard": "tp0"},
      {"name": "l{}.norm", "shape": [8], "shard": "rep", "layers": [0, 4, 1]},
      {"name": "l{}.gate_up", "shape": [4, 8, 24], "shard": "ep0,etp2_packed2", "layers": [0, 4, 1]},
      {"name": "head", "shape": [12, 8], "shard": "tp0", "stage": "last"}]}""",
    source="toy",
)


def by_name(layout: Layout) -> dict[str, ArraySpec]:
    return {array.name: array for array in layout.arrays}


def test_the_reference_recipe_saves_twelve_bytes_for_each_parameter() -> None:
    layout = model_layout(named_inventory("behemoth-ref"), Recipe(), Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125))
    assert len(layout.arrays) == 3 * 1613
    assert sum(array.num_bytes for array in layout.arrays) == 12 * 2_015_461_958_144 == 24_185_543_497_728


def test_slots_stages_and_packed_dims_follow_the_model() -> None:
    arrays = by_name(model_layout(TOY, Recipe(weights="bfloat16"), MESH))
    assert arrays["model/embed"] == ArraySpec(
        name="model/embed", dtype="bfloat16", shape=(12, 8), dims=((0, "tp"),), stage=0
    )
    assert arrays["optim/exp_avg/l3.gate_up"] == ArraySpec(
        name="optim/exp_avg/l3.gate_up",
        dtype="float32",
        shape=(4, 8, 24),
        dims=((0, "ep"), (2, "etp")),
        packed=(2, (12, 12)),
        flat_over="edp",
        stage=1,
    )
    assert [arrays[f"optim/master/{name}"].stage for name in ("l1.norm", "l2.norm", "head")] == [0, 1, 1]
    assert arrays["optim/master/l1.norm"].flat_over == "dp"


@pytest.mark.parametrize(
    ("recipe", "bytes_per_parameter"),
    [
        (Recipe(), 12),
        (Recipe(weights="bfloat16"), 14),
        (Recipe(weights="bfloat16", master="split"), 12),
        (Recipe(weights="float32", master="none", exp_avg_sq="none"), 8),
        (Recipe(exp_avg="float8_e4m3fn", exp_avg_sq="float16", shares="whole"), 7),
        (Recipe(weights="float32", master="none", exp_avg="bfloat16", exp_avg_sq="bfloat16", shares="rows"), 8),
    ],
)
def test_bytes_of_a_parameter_are_those_of_the_slots(recipe: Recipe, bytes_per_parameter: int) -> None:
    layout = model_layout(TOY, recipe, MESH)
    assert sum(array.num_bytes for array in layout.arrays) == bytes_per_parameter * TOY.num_params
    prove_coverage(layout)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), pp=st.sampled_from([1, 2, 3]), virtual=st.sampled_from([1, 2]))
def test_uneven_and_virtual_stages_hold_each_layer_once_and_each_byte_has_one_writer(
    data: st.DataObject, pp: int, virtual: int
) -> None:
    """Four layers in random parts, which go to the stages in turn."""
    num_parts = pp * virtual
    ends = sorted(data.draw(st.lists(st.integers(0, 4), min_size=num_parts - 1, max_size=num_parts - 1)))
    layers = tuple(end - begin for begin, end in pairwise([0, *ends, 4]))
    mesh = Mesh(tp=2, dp=4, pp=pp, ep=2, etp=2, edp=2)
    layout = model_layout(TOY, Recipe(weights="bfloat16"), mesh, Pipeline(layers=layers, virtual=virtual))
    prove_coverage(layout)
    arrays = by_name(layout)
    parts = [part for part, count in enumerate(layers) for _ in range(count)]
    assert [arrays[f"model/l{layer}.norm"].stage for layer in range(4)] == [part % pp for part in parts]
    assert (arrays["model/embed"].stage, arrays["model/head"].stage) == (0, pp - 1)
    with pytest.raises(Invalid, match=r"pipeline\.layers: expected \d parts .*, got \d"):
        model_layout(TOY, Recipe(), mesh, Pipeline(layers=(*layers, 0), virtual=virtual))


def test_context_parallel_ranks_share_the_state_as_data_parallel_ones_do() -> None:
    mesh = Mesh(tp=2, cp=3, dp=2, pp=2, ep=2, edp=6)
    layout = model_layout(TOY, Recipe(weights="bfloat16"), mesh)
    prove_coverage(layout)
    shares: dict[int, set[tuple[int, int]]] = {}
    for rank in map(Rank, range(mesh.num_ranks)):
        for piece in plan_rank(layout, rank).pieces:
            if piece.name == "optim/master/embed":
                shares.setdefault(piece.box[0][0], set()).add(piece.flat)
                assert piece.box[0][0] == 6 * mesh.coordinate(rank, "tp")
                assert piece.flat[0] == 8 * (mesh.coordinate(rank, "cp") + 3 * mesh.coordinate(rank, "dp"))
    assert shares == {begin: {(8 * at, 8 * at + 8) for at in range(6)} for begin in (0, 6)}
    held = rank_bytes(TOY, mesh, recipe=Recipe(weights="bfloat16"))[0]
    pieces = plan_rank(layout, Rank(0)).pieces
    assert held.optimizer_bytes == sum(piece.nbytes for piece in pieces if piece.name.startswith("optim/"))
    assert held.weights_bytes == sum(piece.nbytes for piece in pieces if piece.name.startswith("model/"))


def test_rows_are_shared_of_weights_too_and_whole_replicas_of_nothing() -> None:
    rows = model_layout(TOY, Recipe(weights="bfloat16", shares="rows"), MESH)
    assert all(array.flat_rows and array.flat_over in ("dp", "edp") for array in rows.arrays)
    whole = model_layout(TOY, Recipe(weights="bfloat16", shares="whole"), MESH)
    assert all(array.flat_over is None for array in whole.arrays)


def test_a_scalar_has_no_rows_and_each_replica_holds_it() -> None:
    """A learned temperature, say; FSDP2 refuses a parameter without dims, so that a program leaves it out of it."""
    scalar = decode_inventory(
        b'{"format": 1, "experts": 0, "tensors": [{"name": "t", "shape": [], "shard": "rep"}]}', source="toy"
    )
    cases: tuple[tuple[Shares, str | None], ...] = (("rows", None), ("flat", "dp"), ("whole", None))
    for shares, over in cases:
        layout = model_layout(scalar, Recipe(weights="bfloat16", shares=shares), Mesh(dp=4, edp=4))
        assert [array.flat_over for array in layout.arrays] == [None, over, over, over]
        prove_coverage(layout)


def test_every_rank_has_its_rows_of_experts_that_are_fewer_than_ranks() -> None:
    """Four experts over four ranks, each of them shared by four: the second dim, behind what etp cuts of it."""
    mesh = Mesh(tp=2, dp=16, ep=4, etp=2, edp=4)
    experts = decode_inventory(
        b"""{"format": 1, "experts": 4, "tensors": [
          {"name": "gate_up", "shape": [4, 8, 24], "shard": "ep0,etp2_packed2"},
          {"name": "down", "shape": [4, 24, 8], "shard": "ep0,etp1"}]}""",
        source="toy",
    )
    recipe = Recipe(weights="bfloat16", shares="rows")
    layout = model_layout(experts, recipe, mesh)
    prove_coverage(layout)
    arrays = by_name(layout)
    assert arrays["model/down"].dims == ((0, "ep"), (1, ("edp", "etp")))
    gate_up = arrays["optim/master/gate_up"]
    assert (gate_up.dims, gate_up.packed) == (((0, "ep"), (1, "edp"), (2, "etp")), (2, (12, 12)))
    assert not any(array.flat_rows or array.flat_over for array in layout.arrays)
    of_ranks = rank_bytes(experts, mesh, recipe=recipe)
    for rank, held in zip(map(Rank, range(mesh.num_ranks)), of_ranks, strict=True):
        pieces = plan_rank(layout, rank).pieces
        assert sum(piece.nbytes for piece in pieces) == held.weights_bytes + held.optimizer_bytes == 14 * (24 + 24)
        down = next(piece for piece in pieces if piece.name == "model/down")
        first = 12 * mesh.coordinate(rank, "etp") + 3 * mesh.coordinate(rank, "edp")
        assert down.box[1] == (first, first + 3)
    without_etp = by_name(model_layout(experts, recipe, Mesh(dp=16, ep=4, edp=4)))
    assert without_etp["model/down"].dims == ((0, "ep"), (1, "edp"))


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(Invalid, match=r"mesh\.edp: expected a divisor of 8 \(dim 1 of l0.gate_up, .*, got 16"):
        model_layout(TOY, Recipe(shares="rows"), Mesh(tp=2, dp=32, ep=4, edp=16))


def test_float8_matrices_have_a_scale_for_each_block_and_vectors_stay_bfloat16() -> None:
    recipe = Recipe(weights="float8_e4m3fn", scale_block=3, master="none", exp_avg="none", exp_avg_sq="none")
    arrays = by_name(model_layout(TOY, recipe, MESH))
    assert arrays["model/l0.norm"].dtype == "bfloat16"
    assert arrays["model/l0.gate_up"].dtype == "float8_e4m3fn"
    # Shares of 6 columns are two blocks of 3; of 12 rows over tp, too. Rows of 8 are two blocks and a part.
    assert (arrays["scale/l0.gate_up"].shape, arrays["scale/l0.gate_up"].packed) == ((4, 3, 8), (2, (4, 4)))
    assert (arrays["scale/embed"].shape, arrays["scale/embed"].dims) == ((4, 3), ((0, "tp"),))
    assert "scale/l0.norm" not in arrays


def test_each_rank_has_its_share_of_fused_queries_keys_and_values() -> None:
    fused = decode_inventory(
        b'{"format": 1, "experts": 0, "tensors": [{"name": "qkv", "shape": [48, 8], "shard": "tp0_packed4:1:1"}]}',
        source="toy",
    )
    layout = model_layout(fused, Recipe(weights="float8_e4m3fn", scale_block=4), Mesh(tp=2, dp=3, edp=6))
    prove_coverage(layout)
    arrays = by_name(layout)
    assert arrays["model/qkv"].packed == (0, (32, 8, 8))
    assert arrays["scale/qkv"].packed == (0, (8, 2, 2))
    held = [piece.box[0] for piece in plan_rank(layout, Rank(1)).pieces if piece.name == "model/qkv"]
    assert held == [(16, 32), (36, 40), (44, 48)]


def test_a_vocabulary_is_shared_with_its_padding_and_its_scales_are_whole_where_that_moves_shares() -> None:
    """100 rows: 50 for each of two ranks, or 64 and 36 where each has a multiple of 64."""
    vocabularies = {
        rule: decode_inventory(
            b'{"format": 1, "experts": 0, "tensors": [{"name": "embed", "shape": [100, 8], "shard": "%s"}]}' % rule,
            source="toy",
        )
        for rule in (b"tp0_padded", b"tp0_padded64")
    }
    recipe = Recipe(weights="float8_e4m3fn", scale_block=10, exp_avg="none", exp_avg_sq="none")
    mesh = Mesh(tp=2, dp=3, edp=6)
    plain, padded = (by_name(model_layout(vocabulary, recipe, mesh)) for vocabulary in vocabularies.values())
    assert [plain[name].padded for name in plain] == [None] * 3
    assert [padded[name].padded for name in ("model/embed", "optim/master/embed")] == [(0, 128)] * 2
    assert (plain["scale/embed"].dims, padded["scale/embed"].dims) == (((0, "tp"),), ())
    layout = model_layout(vocabularies[b"tp0_padded64"], recipe, mesh)
    prove_coverage(layout)
    of_rank = {piece.name: piece.share.local_shape for piece in plan_rank(layout, Rank(1)).pieces}
    assert of_rank["model/embed"] == (36, 8)
    alone = model_layout(vocabularies[b"tp0_padded64"], recipe, Mesh())
    assert [array.padded for array in alone.arrays] == [None] * 3


def test_a_scale_whose_block_lies_on_two_ranks_is_whole_on_both() -> None:
    recipe = Recipe(weights="float8_e4m3fn", scale_block=4)
    arrays = by_name(model_layout(TOY, recipe, MESH))
    assert (arrays["scale/embed"].shape, arrays["scale/embed"].dims) == ((3, 2), ())
    assert (arrays["scale/l0.gate_up"].dims, arrays["scale/l0.gate_up"].packed) == (((0, "ep"),), None)


def test_a_mesh_that_does_not_suit_the_model_and_a_model_without_tensors_are_refused() -> None:
    with pytest.raises(Invalid, match=r"mesh.ep: expected a divisor of the model's 4 experts, got 8"):
        model_layout(TOY, Recipe(), Mesh(dp=8, ep=8))
    with pytest.raises(Invalid, match="an inventory with tensors"):
        model_layout(named_inventory("tiny-moe"), Recipe(), Mesh())
