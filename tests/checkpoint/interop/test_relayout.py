"""The layout of a checkpoint that is made of another one: on any mesh, in part, in another precision, of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.conversion import Cast
from behemoth.checkpoint.interop.relayout import Relayout, relayout
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.recipe_change import recipe_change
from behemoth.checkpoint.row_ranges import RowRange
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import Cut, Inventory, Tensor
from behemoth.spec.recipe import Recipe
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, raw_bytes, save
from checkpoint.interop.rewriting import rewrite, small_parts
from checkpoint.random_layouts import layouts, meshes, small_chunks

STEP = Step(4)


def inventory(*names: str) -> Inventory:
    tensors = [Tensor(name=name, shape=(6, 4), cuts=(), stage="first", layer=None) for name in names]
    return Inventory(num_experts=1, tensors=tuple(tensors))


def of_model(*names: str, recipe: Recipe = Recipe(), mesh: Mesh = Mesh()) -> Layout:  # noqa: B008  both are frozen
    return model_layout(inventory(*names), recipe, mesh)


@settings(max_examples=60, deadline=None)
@given(old=layouts(), mesh=meshes(), chunk_bytes=st.sampled_from([16, 300]))
def test_there_on_any_mesh_and_back_every_array_has_its_bits(old: Layout, mesh: Mesh, chunk_bytes: int) -> None:
    saved = Layout(mesh=old.mesh, arrays=old.arrays)
    with small_chunks(chunk_bytes), small_parts():
        store = MemoryStore()
        commit = open_commit(store, save(store, saved, logical_arrays(saved, 1), step=4).ref)
        for wanted in (mesh, old.mesh):
            made = relayout(commit.layout, wanted, step=STEP, sharding="array")
            target = MemoryStore()
            commit = open_commit(target, rewrite(store, commit, target, made.layout, intake=made.intake).ref)
            assert commit.record.mesh == wanted
            store = target
        for name, array in logical_arrays(saved, 1).items():
            assert raw_bytes(read_array(store, commit, name)) == raw_bytes(array)


def test_letters_of_patterns_in_names_of_arrays_leave_no_other_array_out() -> None:
    names = ("w[0]", "w0", "w*", "wx", "keep")
    saved = Layout(mesh=Mesh(), arrays=tuple(ArraySpec(name=name, dtype="float32", shape=(2,)) for name in names))
    made = relayout(saved, Mesh(dp=2, edp=2), step=STEP, sharding="array", only=("w0", "wx", "keep"))
    assert [array.name for array in made.layout.arrays] == ["keep", "w0", "wx"]
    assert None not in origins(saved, made.layout, step=STEP, intake=made.intake)


def test_another_precision_is_that_of_floats_alone() -> None:
    dtypes = {"half": "bfloat16", "full": "float32", "eighth": "float8_e4m3fn", "whole": "int64"}
    arrays = tuple(ArraySpec(name=name, dtype=dtype, shape=(2,)) for name, dtype in dtypes.items())
    made = relayout(Layout(mesh=Mesh(), arrays=arrays), Mesh(), step=STEP, sharding="array", dtype="float32")
    assert {array.name: array.dtype for array in made.layout.arrays} == dtypes | {"half": "float32"}
    assert made.intake.convert == {"half": Cast(array="half")}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), old=layouts(), mesh=meshes(), chunk_bytes=st.sampled_from([16, 300]))
def test_some_rows_of_an_array_are_those_of_the_logical_one_on_any_mesh(
    data: st.DataObject, old: Layout, mesh: Mesh, chunk_bytes: int
) -> None:
    saved = Layout(mesh=old.mesh, arrays=old.arrays)
    rows: list[RowRange] = []
    for spec in saved.arrays:
        is_packed = spec.packed is not None and spec.packed[0] == 0
        is_of_ranks = (0, "rank") in spec.dims
        if spec.shape and not is_packed and not is_of_ranks and data.draw(st.booleans()):
            start = data.draw(st.integers(0, spec.shape[0] - 1))
            stop = data.draw(st.integers(start + 1, spec.shape[0]))
            rows.append(RowRange(pattern=spec.name, start=start, stop=stop))
    with small_chunks(chunk_bytes), small_parts():
        store, target = MemoryStore(), MemoryStore()
        logical = logical_arrays(saved, 1)
        commit = open_commit(store, save(store, saved, logical, step=4).ref)
        made = relayout(commit.layout, mesh, step=STEP, sharding="array", rows=rows)
        after = open_commit(target, rewrite(store, commit, target, made.layout, intake=made.intake).ref)
        wanted = {one.pattern: slice(one.start, one.stop) for one in rows}
        for name, array in logical.items():
            expected = array[wanted[name]] if name in wanted else array
            assert raw_bytes(read_array(target, after, name)) == raw_bytes(np.ascontiguousarray(expected))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"v*": 2}, "rows of 'v*': expected to match one of 3 arrays, got none"),
        ({"w*": 7}, "rows of 'w*': expected arrays of 7 rows or more, got 'w' with 6"),
        ({"*": 1}, "rows of '*': expected arrays of 1 rows or more, got 'scalar' with 0"),
        ({"w": 2, "w*": 3}, "rows of 'w*': expected arrays that no other pattern matches, got 'w'"),
        ({"packed": 2}, "rows of 'packed': expected one array, got 2 that are packed along the first dim"),
    ],
)
def test_rows_that_are_not_there_are_refused_by_name(asked: dict[str, int], text: str) -> None:
    arrays = (
        ArraySpec(name="packed", dtype="float32", shape=(6, 2), dims=((0, "tp"),), packed=(0, (4, 2))),
        ArraySpec(name="scalar", dtype="float32", shape=()),
        ArraySpec(name="w", dtype="float32", shape=(6, 4)),
    )
    mesh = Mesh(tp=2, etp=2)
    rows = [RowRange(pattern=pattern, start=0, stop=stop) for pattern, stop in asked.items()]
    with pytest.raises(Invalid) as caught:
        relayout(Layout(mesh=mesh, arrays=arrays), mesh, step=STEP, sharding="array", rows=rows)
    assert (caught.value.message, caught.value.code) == (text, "rows")


def test_rows_of_what_is_made_with_scales_are_refused_and_those_of_a_cast_are_of_its_source() -> None:
    saved, low = Recipe(), Recipe(weights="float8_e4m3fn", master="none", exp_avg="none", exp_avg_sq="none")
    cast = Recipe(weights="float32", master="none", exp_avg="none", exp_avg_sq="none")
    rows = [RowRange(pattern="model/w", start=3, stop=6)]

    def made(wanted: Recipe) -> Relayout:
        model, change = of_model("w", recipe=wanted), recipe_change(inventory("w"), saved, wanted)
        layout = of_model("w", recipe=saved)
        return relayout(layout, Mesh(), step=STEP, sharding="array", model=model, recipe=change, rows=rows)

    assert made(cast).intake.convert == {"model/w": Cast(array="optim/master/w", begin=(3, 0))}
    assert made(cast).layout.arrays[0].shape == (3, 4)
    with pytest.raises(Invalid, match="rows of 'model/w': expected it as it was saved, or cast, got it by ScaledDown"):
        made(low)


@pytest.mark.parametrize("dtype", ["", "float32"])
def test_arrays_of_a_model_that_were_not_saved_are_named_whatever_the_precision(dtype: str) -> None:
    saved, wanted = Recipe(), Recipe(exp_avg="none", exp_avg_sq="none")
    with pytest.raises(Invalid, match=r"1 arrays are missing \['optim/master/v'\]"):
        relayout(
            of_model("w"),
            Mesh(),
            step=STEP,
            sharding="array",
            dtype=dtype,
            model=of_model("v", "w", recipe=wanted),
            recipe=recipe_change(inventory("v", "w"), saved, wanted),
        )


def test_a_model_of_which_no_array_was_saved_is_refused() -> None:
    with pytest.raises(Invalid, match="expected arrays of the run file's model, got none of its 3 by name and shape"):
        relayout(of_model("w"), Mesh(), step=STEP, sharding="array", model=of_model("v"))


def test_arrays_of_a_model_are_cut_as_the_model_says_and_stay_what_they_were() -> None:
    mesh = Mesh(tp=2, etp=2)
    spec = ArraySpec(name="optim/exp_avg/w", dtype="float16", shape=(6, 4), may_be_zero=True)
    other = ArraySpec(name="state/other", dtype="int32", shape=(3,))
    saved = Layout(mesh=Mesh(), arrays=(spec, other))
    tensor = Tensor(name="w", shape=(6, 4), cuts=(Cut(dim=1, axis="tp"),), stage="first", layer=None)
    model = model_layout(Inventory(num_experts=1, tensors=(tensor,)), Recipe(), mesh)
    made = relayout(saved, mesh, step=STEP, sharding="array", model=model)
    cut = model.arrays[model.positions["optim/exp_avg/w"]]
    assert cut.dims == ((1, "tp"),)
    assert made.layout.arrays == (replace(cut, dtype="float16", may_be_zero=True), other)
