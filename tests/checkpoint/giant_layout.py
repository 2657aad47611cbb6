"""The reference Behemoth as a layout, for 32,000 ranks and for others."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from msgspec import structs

from behemoth.checkpoint.conversion import Cast, Conversion, Intake, ScaledDown, ScalesOf
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.recipe_change import recipe_change
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.pipeline import EVEN, Pipeline
from behemoth.spec.recipe import Recipe


class Run(NamedTuple):
    """Of which a layout is made."""

    mesh: Mesh
    pipeline: Pipeline = EVEN


MESH = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
CP_MESH = Mesh(tp=8, cp=2, dp=250, pp=8, ep=8, etp=2, edp=250)
"""As many ranks, with axes that MESH cannot halve or double."""

TRAINING_MESHES = {
    "TP 8 -> 4": Mesh(tp=4, dp=1000, pp=8, ep=16, etp=2, edp=125),
    "TP 8 -> 16": Mesh(tp=16, dp=250, pp=8, ep=16, etp=2, edp=125),
    "PP 8 -> 4": Mesh(tp=8, dp=1000, pp=4, ep=16, etp=2, edp=250),
    "PP 8 -> 16, ETP 2 -> 1": Mesh(tp=8, dp=250, pp=16, ep=16, etp=1, edp=125),
    "EP 16 -> 8": Mesh(tp=8, dp=500, pp=8, ep=8, etp=2, edp=250),
    "ETP 2 -> 4, EP 16 -> 8": Mesh(tp=8, dp=500, pp=8, ep=8, etp=4, edp=125),
    "ETP 2 -> 1": Mesh(tp=8, dp=500, pp=8, ep=16, etp=1, edp=250),
    "CP 1 -> 2": Mesh(tp=8, cp=2, dp=250, pp=8, ep=16, etp=2, edp=125),
    "DP 500 -> 250, EP 16 -> 8": Mesh(tp=8, dp=250, pp=8, ep=8, etp=2, edp=125),
    "DP 500 -> 1000": Mesh(tp=8, dp=1000, pp=8, ep=16, etp=2, edp=250),
    "DP 500 -> 480 (30,720 ranks)": Mesh(tp=8, dp=480, pp=8, ep=16, etp=2, edp=120),
}
"""Of the reference Behemoth, from TP8 DP500 PP8, EP16 ETP2 EDP125: each axis halved and doubled as far as the others
allow. EDP is odd, so DP cannot be halved alone, CP is 1, and 16 experts cannot be spread over 32 ranks."""
TRAINING_CHANGES = {
    **{name: (Run(MESH), Run(mesh)) for name, mesh in TRAINING_MESHES.items()},
    "CP 2 -> 1": (Run(CP_MESH), Run(Mesh(tp=8, dp=500, pp=8, ep=8, etp=2, edp=250))),
    "CP 2 -> 1, EDP 250 -> 125 (16,000 ranks)": (Run(CP_MESH), Run(Mesh(tp=8, dp=250, pp=8, ep=8, etp=2, edp=125))),
    "EP 8 -> 16, EDP 250 -> 125": (Run(CP_MESH), Run(Mesh(tp=8, cp=2, dp=250, pp=8, ep=16, etp=2, edp=125))),
    "DP 250 -> 125, EDP 250 -> 125": (Run(CP_MESH), Run(Mesh(tp=8, cp=2, dp=125, pp=8, ep=8, etp=2, edp=125))),
    "even stages -> 9 to 13 layers": (Run(MESH), Run(MESH, Pipeline(layers=(9, 11, 11, 11, 11, 11, 11, 13)))),
    "even stages -> 11 virtual ones on each": (Run(MESH), Run(MESH, Pipeline(virtual=11))),
}
"""What a training run may change: from which run, and to which."""
READER_MESHES = {"weights to 64 ranks, TP8 EP8": Mesh(tp=8, dp=8, ep=8, edp=8), "weights to one host": Mesh()}
MOMENTS_LEFT = Intake(extra=("optim/exp_avg/*", "optim/exp_avg_sq/*"))
"""For those who read weights."""
_SERVED = Recipe(weights="bfloat16", master="none", exp_avg="none", exp_avg_sq="none", shares="whole")
_FLOAT8 = replace(_SERVED, weights="float8_e4m3fn")


def giant(mesh: Mesh = MESH, pipeline: Pipeline = EVEN) -> Layout:
    """All of the state of a training run by the default recipe: a float32 master and two float32 moments."""
    return model_layout(named_inventory("behemoth-ref"), Recipe(), mesh, pipeline)


def giant_weights(mesh: Mesh) -> Layout:
    """The master weights alone, whole blocks on every replica, as one holds them who does not train."""
    weights = Recipe(exp_avg="none", exp_avg_sq="none", shares="whole")
    return model_layout(named_inventory("behemoth-ref"), weights, mesh)


def giant_experts(mesh: Mesh) -> tuple[Layout, Intake]:
    """Experts 3 to 5 of all layers as bfloat16 weights, from `giant`."""
    saved = {array.name: array for array in giant().arrays}
    arrays: list[ArraySpec] = []
    convert: dict[str, Conversion] = {}
    for array in giant_bfloat16(mesh).arrays:
        if any(axis == "ep" for _, axis in array.dims):
            arrays.append(replace(array, shape=(3, *array.shape[1:])))
            master = saved[array.name.replace("model/", "optim/master/", 1)]
            convert[array.name] = Cast(array=master.name, begin=(3, *(0 for _ in array.shape[1:])))
    return Layout(mesh=mesh, arrays=tuple(arrays)), Intake(convert=convert, only=("model/*",))


def giant_bfloat16(mesh: Mesh = MESH) -> Layout:
    """Weights alone, in bfloat16, as they are saved to be served."""
    return model_layout(named_inventory("behemoth-ref"), _SERVED, mesh)


def giant_float8(mesh: Mesh) -> Layout:
    """The same in float8, with a scale for each block of 128 x 128."""
    return model_layout(named_inventory("behemoth-ref"), _FLOAT8, mesh)


def to_float8() -> Intake:
    """From `giant_bfloat16` to `giant_float8`: scales are computed."""
    return recipe_change(named_inventory("behemoth-ref"), _SERVED, _FLOAT8)


def to_float8_by_matrix(mesh: Mesh) -> tuple[Layout, Intake]:
    """From `giant_bfloat16` to float8 on a mesh, with one scale for each matrix, of each expert by itself."""
    saved, layout, intake = giant_bfloat16(), giant_float8(mesh), to_float8()
    arrays: list[ArraySpec] = []
    convert: dict[str, Conversion] = {}
    for array in layout.arrays:
        conversion = intake.convert.get(array.name)
        if isinstance(conversion, ScaledDown | ScalesOf):
            shape = saved.arrays[saved.positions[conversion.array]].shape
            block = (*(1 for _ in shape[:-2]), *shape[-2:])
            conversion = structs.replace(conversion, block=block)
            if isinstance(conversion, ScalesOf):
                array = ArraySpec(name=array.name, dtype=array.dtype, shape=(*shape[:-2], 1, 1))
        if conversion is not None:
            convert[array.name] = conversion
        arrays.append(array)
    return replace(layout, arrays=tuple(arrays)), structs.replace(intake, convert=convert)
