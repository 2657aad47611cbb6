"""A state saved by one recipe comes back in the form of another, on another mesh; what is not there is not invented."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank, Step
from behemoth.checkpoint.conversion import AS_SAVED
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.matching import left_out, origins
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_rank
from behemoth.checkpoint.recipe_change import recipe_change
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import decode_inventory
from behemoth.spec.recipe import Master, Recipe, Shares, Weights
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import arena_of, local_arrays, raw_bytes, save, unstaged

Arrays = dict[str, npt.NDArray[Any]]
TOY = decode_inventory(
    b"""{"format": 1, "experts": 2, "tensors": [
      {"name": "embed", "shape": [12, 8], "shard": "tp0"},
      {"name": "norm", "shape": [8], "shard": "rep"},
      {"name": "temperature", "shape": [], "shard": "rep", "stage": "last"},
      {"name": "gate_up", "shape": [2, 6, 24], "shard": "ep0,etp2_packed2"}]}""",
    source="toy",
)
OLD_MESH, NEW_MESH = Mesh(tp=2, dp=2, ep=2, edp=2), Mesh(dp=3, edp=3)
MESHES = st.sampled_from(
    [
        OLD_MESH,
        NEW_MESH,
        Mesh(),
        Mesh(tp=3, cp=2, pp=2, etp=6),
        Mesh(tp=4, dp=2, ep=2, etp=4),
        Mesh(cp=3, dp=4, ep=2, edp=6),
    ]
)
SHARES: st.SearchStrategy[Shares] = st.sampled_from(get_args(Shares))
RECIPES = [
    Recipe(weights=weights, master=master, scale_block=block)
    for weights, master in product(get_args(Weights), get_args(Master))
    if (weights, master) != ("none", "none") and (master != "split" or weights == "bfloat16")
    for block in ((4, 5) if weights == "float8_e4m3fn" else (128,))
]
_MATRICES = ("embed", "gate_up")


def blocks(array: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """The largest magnitude of each block of the last two dims, at each of its elements."""
    largest = np.zeros_like(array)
    for index in np.ndindex(*array.shape[:-2], -(-array.shape[-2] // block), -(-array.shape[-1] // block)):
        *outer, row, column = index
        inside = (*outer, slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block))
        largest[inside] = np.abs(array[inside]).max()
    return largest


def state_of(recipe: Recipe, values: Arrays, moments: Arrays) -> Arrays:
    """What a program of the recipe holds of these float32 values."""
    arrays: Arrays = {}
    for name, value in values.items():
        bits = value.view(np.uint32)
        if recipe.master == "split":
            arrays[f"model/{name}"] = (bits >> 16).astype(np.uint16).view(DTYPES["bfloat16"])
            arrays[f"optim/master/{name}"] = (bits & 0xFFFF).astype(np.uint16)
        elif recipe.weights == "float8_e4m3fn" and name in _MATRICES:
            scales = (blocks(value, recipe.scale_block) / np.float32(448)).astype(np.float32)
            arrays[f"model/{name}"] = np.clip(value / scales, -448, 448).astype(DTYPES["float8_e4m3fn"])
            step = recipe.scale_block
            arrays[f"scale/{name}"] = np.ascontiguousarray(scales[..., ::step, ::step])
        elif recipe.weights != "none":
            dtype = "bfloat16" if recipe.weights == "float8_e4m3fn" else recipe.weights
            arrays[f"model/{name}"] = value.astype(DTYPES[dtype])
        if recipe.master == "float32":
            arrays[f"optim/master/{name}"] = value
        for slot in ("exp_avg", "exp_avg_sq"):
            dtype = getattr(recipe, slot)
            if dtype != "none":
                arrays[f"optim/{slot}/{name}"] = moments[name].astype(DTYPES[dtype])
    return arrays


def known_values(recipe: Recipe, arrays: Arrays) -> Arrays:
    """The most precise values in a state, float32."""
    values: Arrays = {}
    for tensor in TOY.tensors:
        name = tensor.name
        weights = arrays.get(f"model/{name}")
        if recipe.master == "float32":
            values[name] = arrays[f"optim/master/{name}"]
        elif recipe.master == "split":
            high = arrays[f"model/{name}"].view(np.uint16).astype(np.uint32)
            values[name] = ((high << 16) | arrays[f"optim/master/{name}"]).view(np.float32)
        elif f"scale/{name}" in arrays:
            assert weights is not None
            step, scales = recipe.scale_block, arrays[f"scale/{name}"]
            full = scales.repeat(step, axis=-2).repeat(step, axis=-1)
            values[name] = weights.astype(np.float32) * full[..., : weights.shape[-2], : weights.shape[-1]]
        else:
            assert weights is not None
            values[name] = weights.astype(np.float32)
    return values


def changed(
    saved: Recipe, wanted: Recipe, seed: int, *, meshes: tuple[Mesh, Mesh] = (OLD_MESH, NEW_MESH), **asked: bool
) -> tuple[Arrays, list[dict[str, bytes]]]:
    """The state that was saved, and what each rank of the new mesh gets."""
    intake = recipe_change(TOY, saved, wanted, **asked)
    rng = np.random.default_rng(seed)
    values, moments = (
        {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in TOY.tensors} for _ in range(2)
    )
    arrays = state_of(saved, values, moments)
    store = MemoryStore()
    was, now = meshes
    opened = open_commit(store, save(store, model_layout(TOY, saved, was), arrays, step=5).ref)
    layout = model_layout(TOY, wanted, now)
    nothing = left_out(layout, origins(opened.layout, layout, step=Step(5), intake=intake))
    got = []
    for rank in range(now.num_ranks):
        plan = plan_rank(layout, Rank(rank))
        with arena_of(plan) as arena:
            read_rank(store, opened, layout, plan, arena, 0, threads=1, intake=intake)
            held = unstaged(arena, plan, 0)
            got.append({name: data for name, data in held.items() if layout.positions[name] not in nothing})
    return arrays, got


def check(saved: Recipe, wanted: Recipe, seed: int, meshes: tuple[Mesh, Mesh]) -> None:
    arrays, got = changed(saved, wanted, seed, meshes=meshes, make_master=True)
    moments = {tensor.name: arrays[f"optim/exp_avg/{tensor.name}"] for tensor in TOY.tensors}
    expected = state_of(wanted, known_values(saved, arrays), moments)
    if wanted.master != "split" or saved.master == "split":
        expected |= {  # weights of the wanted type come back as they were
            name: array
            for name, array in arrays.items()
            if name.startswith(("model/", "scale/"))
            and name in expected
            and array.dtype == expected[name].dtype
            and (saved.weights != "float8_e4m3fn" or saved.scale_block == wanted.scale_block or _is_vector(name))
        }
    layout = model_layout(TOY, wanted, meshes[1])
    for rank, held in enumerate(got):
        local = local_arrays(layout, rank, expected)
        assert held == {name: raw_bytes(array) for name, array in local.items()}


def _is_vector(name: str) -> bool:
    return not name.endswith(_MATRICES)


def takes_two(saved: Recipe, wanted: Recipe) -> bool:
    """Changes that would need two conversions in a row."""
    is_float8 = saved.weights == "float8_e4m3fn" and saved.master == "none"
    other_blocks = wanted.weights == "float8_e4m3fn" and wanted.scale_block != saved.scale_block
    if is_float8:
        return other_blocks or wanted.master == "split"
    return saved.master == "split" and wanted.weights in ("float16", "float8_e4m3fn")


@settings(max_examples=80, deadline=None)
@given(
    saved=st.sampled_from(RECIPES),
    wanted=st.sampled_from(RECIPES),
    shares=st.tuples(SHARES, SHARES),
    meshes=st.tuples(MESHES, MESHES),
    seed=st.integers(0, 1 << 20),
)
def test_any_recipe_becomes_any_other_in_one_step_on_any_mesh_or_is_refused(
    saved: Recipe, wanted: Recipe, shares: tuple[Shares, Shares], meshes: tuple[Mesh, Mesh], seed: int
) -> None:
    saved, wanted = replace(saved, shares=shares[0]), replace(wanted, shares=shares[1])
    if takes_two(saved, wanted):
        with pytest.raises(Invalid, match=r"^tensor 'embed': expected a saved float32 master, or weights w"):
            recipe_change(TOY, saved, wanted, make_master=True)
        return
    check(saved, wanted, seed, meshes)


def test_a_recipe_needs_no_intake_for_itself() -> None:
    for recipe in RECIPES:
        assert recipe_change(TOY, recipe, recipe) == AS_SAVED


def test_moments_change_their_type_and_new_ones_stay_as_the_program_has_them() -> None:
    saved = Recipe(exp_avg="float32", exp_avg_sq="none")
    wanted = Recipe(exp_avg="bfloat16", exp_avg_sq="float16")
    arrays, got = changed(saved, wanted, 1, new_moments=True)
    layout = model_layout(TOY, wanted, NEW_MESH)
    moments = {name: array.astype(DTYPES["bfloat16"]) for name, array in arrays.items() if "/exp_avg/" in name}
    for rank, held in enumerate(got):
        zeros = {f"optim/exp_avg_sq/{one.name}": np.zeros(one.shape, np.float16) for one in TOY.tensors}
        local = local_arrays(layout, rank, {**arrays, **moments, **zeros})
        assert held == {name: raw_bytes(array) for name, array in local.items() if "exp_avg_sq" not in name}


def test_nothing_is_invented_unless_it_is_asked_for() -> None:
    weights = Recipe(weights="bfloat16", master="none", exp_avg="none")
    with pytest.raises(Invalid, match=r"^arrays optim/master/\*: expected them to be saved, for master=float32"):
        recipe_change(TOY, weights, Recipe(exp_avg="none"))
    with pytest.raises(Invalid, match=r"^arrays optim/exp_avg/\*: expected them to be saved, for exp_avg=float32"):
        recipe_change(TOY, weights, Recipe(), make_master=True)


def test_weights_alone_leave_master_and_moments_unread() -> None:
    server = Recipe(weights="bfloat16", master="none", exp_avg="none", exp_avg_sq="none")
    intake = recipe_change(TOY, Recipe(), server)
    assert set(intake.extra) == {"optim/master/*", "optim/exp_avg/*", "optim/exp_avg_sq/*"}
    assert set(intake.convert) == {f"model/{tensor.name}" for tensor in TOY.tensors}
