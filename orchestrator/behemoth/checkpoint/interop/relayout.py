"""The layout of a checkpoint that is to be made from another one, and how each of its arrays is made. Pure.

The result may have another mesh, only some arrays, another floating type, or another recipe where the model's tensors
are known. Neighbours: `checkpoint.on_mesh`, `checkpoint.model_layout` and `checkpoint.recipe_change`, which know the
parts of it, and `resharded`, which reads by the result.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.conversion import Cast, Conversion, Intake
from behemoth.checkpoint.cuts import with_close_chunks
from behemoth.checkpoint.layout import ArraySpec, Layout, Sharding
from behemoth.checkpoint.matching import left_out, origins
from behemoth.checkpoint.name_patterns import NamePatterns
from behemoth.checkpoint.on_mesh import on_mesh
from behemoth.checkpoint.precision import FLOAT8S, FLOATS
from behemoth.checkpoint.row_ranges import RowRange, ranges_of
from behemoth.spec.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayout:
    """What is written, and how its arrays come from those that were saved."""

    layout: Layout
    intake: Intake


def relayout(
    saved: Layout,
    mesh: Mesh,
    *,
    step: Step,
    sharding: Sharding,
    only: Sequence[str] = (),
    rows: Sequence[RowRange] = (),
    dtype: str = "",
    model: Layout | None = None,
    recipe: Intake | None = None,
) -> Relayout:
    """`model`: the layout of the model on `mesh`, by which arrays of its names and shapes are cut; other arrays are cut
    as they were saved. `recipe`: how the arrays of `model` are made from the saved ones; arrays that are no part of the
    model are then taken as they are. `only`: shell patterns of names of the result; empty: all. `rows`: of which of
    them some rows are taken. `dtype`: the type of all floating arrays except float8 ones; empty: as saved.

    Raises Invalid for patterns that name nothing, another model, conversions that do not fit, arrays that would come
    from nowhere, and nothing at all. `step` is for the messages.
    """
    arrays = {array.name: array for array in on_mesh(saved, mesh).arrays}
    convert: dict[str, Conversion] = {} if recipe is None else dict(recipe.convert)
    if model is not None:
        arrays = _of_model(arrays, model, recipe, step)
    patterns = NamePatterns(only)
    if unused := patterns.unused(arrays):
        raise Invalid(
            f"option --only: expected patterns of arrays of the checkpoint of step {step}, got {unused[:3]}",
            hint="patterns such as 'model/*' are compared with whole names",
            code="arrays-listed",
        )
    kept = [array for array in arrays.values() if not only or patterns.has(array.name)]
    if dtype:
        kept = [replace(array, dtype=dtype) if array.dtype in FLOATS - FLOAT8S else array for array in kept]
        convert |= {
            array.name: Cast(array=array.name)
            for array in kept
            if array.name not in convert and _saved_dtype(saved, array.name) not in (array.dtype, None)
        }
    ranges = ranges_of(rows, {array.name: array.shape for array in kept})
    convert |= {
        array.name: _part(array, convert.get(array.name, Cast(array=array.name)), ranges[array.name][0])
        for array in kept
        if array.name in ranges
    }
    kept = [_with_rows(array, *ranges[array.name]) if array.name in ranges else array for array in kept]
    layout = with_close_chunks(Layout(mesh=mesh, arrays=tuple(kept), sharding=sharding))
    return Relayout(layout=layout, intake=_intake(saved, layout, convert, step))


def _part(array: ArraySpec, conversion: Conversion, start: int) -> Cast:
    """The array from this row on, of which a conversion makes all. Raises Invalid where that is not done row by row."""
    if not isinstance(conversion, Cast):
        raise Invalid(
            f"rows of {array.name!r}: expected it as it was saved, or cast, got it by {type(conversion).__name__}",
            hint="take the rows first, and convert what comes of that",
            code="rows",
        )
    return Cast(array=conversion.array, begin=(start, *(0 for _ in array.shape[1:])))


def _with_rows(array: ArraySpec, start: int, stop: int) -> ArraySpec:
    """What programs have beside the rows, or behind the last one, is of the whole array. Raises Invalid for an array
    whose rows are those of several."""
    if array.packed is not None and array.packed[0] == 0:
        raise Invalid(
            f"rows of {array.name!r}: expected one array, got {len(array.packed[1])} that are packed along the first "
            "dim",
            code="rows",
        )
    is_padded = array.padded is not None and array.padded[0] == 0
    padded = None if is_padded else array.padded
    return replace(array, shape=(stop - start, *array.shape[1:]), padded=padded, flat_bucket=None)


def _saved_dtype(saved: Layout, name: str) -> str | None:
    """None for what was not saved, which `origins` names."""
    position = saved.positions.get(name)
    return None if position is None else saved.arrays[position].dtype


def _of_model(arrays: dict[str, ArraySpec], model: Layout, recipe: Intake | None, step: Step) -> dict[str, ArraySpec]:
    """Cut as the model's; with a recipe also the model's arrays that the checkpoint lacks, without those whose place
    they take. Raises Invalid where the model says nothing of any array."""
    cut = {array.name: array for array in model.arrays}
    if recipe is None:
        known = {
            name: replace(cut[name], dtype=array.dtype, may_be_zero=array.may_be_zero)
            for name, array in arrays.items()
            if name in cut and cut[name].shape == array.shape
        }
        if not known:
            raise Invalid(
                f"checkpoint of step {step}: expected arrays of the run file's model, got none of its {len(cut)} by "
                "name and shape",
                hint="name the run file of the model that was saved, or only a mesh with --mesh",
                code="model-mismatch",
            )
        return arrays | known
    gone = NamePatterns(recipe.extra)
    return cut | {name: array for name, array in arrays.items() if name not in cut and not gone.has(name)}


def _intake(saved: Layout, layout: Layout, convert: dict[str, Conversion], step: Step) -> Intake:
    """What is taken as it is, or converted; everything else is left where it is."""
    wanted = {name: one for name, one in convert.items() if name in layout.positions}
    extra = tuple(sorted(saved.positions.keys() - layout.positions.keys()))
    intake = Intake(convert=wanted, extra=tuple(glob.escape(name) for name in extra))  # each names itself alone
    found = origins(saved, layout, step=step, intake=intake)
    if nowhere := [layout.arrays[at].name for at in left_out(layout, found)]:
        raise Invalid(
            f"checkpoint of step {step}: expected something to make each array from, got nothing for {nowhere[:3]}",
            code="model-mismatch",
        )
    return intake
