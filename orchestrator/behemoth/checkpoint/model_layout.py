"""The layout of a whole training state from values alone: the tensors of a model, a recipe, a mesh.

What a program of that recipe would declare, so that a save of any size can be planned, measured and tested without
the program. A program's small state (cursors, random number states) is not among it. Pure. Neighbours: `layout`, and
`behemoth.spec.recipe` for what each slot means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from behemoth.base.errors import Invalid
from behemoth.checkpoint.conversion import num_blocks
from behemoth.checkpoint.cuts import with_close_chunks
from behemoth.checkpoint.layout import ArraySpec, Layout, SplitAxes
from behemoth.spec.fit import misfits, row_dim
from behemoth.spec.mesh import Axes, Mesh, each_axis
from behemoth.spec.model import Cut, Inventory, Tensor, stage_of
from behemoth.spec.pipeline import EVEN, Pipeline
from behemoth.spec.recipe import Recipe

WEIGHTS, SCALES, OPTIMIZER, BUFFERS = "model", "scale", "optim", "buffer"
_MATRIX_DIMS = 2


def model_layout(inventory: Inventory, recipe: Recipe, mesh: Mesh, pipeline: Pipeline = EVEN) -> Layout:
    """One array per parameter and slot: `model/T`, `scale/T`, `optim/master/T`, `optim/exp_avg/T`,
    `optim/exp_avg_sq/T`; of a buffer `buffer/T`, whole on every replica.

    Dense tensors are shared over all that replicate them, cp x dp, as Megatron and FSDP do, and experts over edp, by
    rows of dim 1 where ranks are more than experts (`fit.row_dim`). A scalar has no rows: each replica holds it, since
    FSDP2 does not take it.
    Raises Invalid when mesh or pipeline do not suit the model, and for an inventory without tensors.
    """
    if not inventory.tensors:
        raise Invalid(
            "model: expected an inventory with tensors, got one whose tensors come from the program",
            code="model-tensors",
        )
    for axis, reason in misfits(inventory, mesh, recipe):
        raise Invalid(f"mesh.{axis}: {reason}", code="mesh-model")
    num_layers = inventory.num_layers
    for field, reason in pipeline.misfits(num_layers, mesh.pp):
        raise Invalid(f"pipeline.{field}: {reason}", code="pipeline-model")
    arrays = tuple(
        array
        for tensor in inventory.tensors
        for array in _arrays(tensor, recipe, mesh, stage_of(tensor, num_layers, mesh.pp, pipeline))
    )
    return with_close_chunks(Layout(mesh=mesh, arrays=arrays))


def weights_dtype(tensor: Tensor, recipe: Recipe) -> str:
    """Element type of a tensor's weights: with float8 recipes, vectors stay bfloat16. Not for `none`."""
    is_scaled = len(tensor.shape) >= _MATRIX_DIMS
    return "bfloat16" if recipe.weights == "float8_e4m3fn" and not is_scaled else recipe.weights


def scale_block(tensor: Tensor, recipe: Recipe) -> tuple[int, ...]:
    """Elements per dim that share one scale: blocks of the last two dims."""
    return (1,) * (len(tensor.shape) - _MATRIX_DIMS) + (recipe.scale_block,) * _MATRIX_DIMS


def slot_dtypes(recipe: Recipe) -> dict[str, str]:
    """Element type of each slot of the optimizer; `none` for one that is not saved."""
    return {
        "master": "uint16" if recipe.master == "split" else recipe.master,
        "exp_avg": recipe.exp_avg,
        "exp_avg_sq": recipe.exp_avg_sq,
    }


def _arrays(tensor: Tensor, recipe: Recipe, mesh: Mesh, stage: int) -> Iterator[ArraySpec]:
    if tensor.buffer is not None:
        yield _spec(f"{BUFFERS}/{tensor.name}", tensor.buffer, tensor, mesh, stage, None, recipe)
        return
    over: Axes = "edp" if tensor.is_expert else mesh.without_idle(("cp", "dp"))
    is_whole = recipe.shares == "whole" or (recipe.shares == "rows" and not tensor.shape)
    flat_over = None if is_whole else over
    if recipe.weights != "none":
        dtype = weights_dtype(tensor, recipe)
        weights_over = flat_over if recipe.shares == "rows" else None
        yield _spec(f"{WEIGHTS}/{tensor.name}", dtype, tensor, mesh, stage, weights_over, recipe)
        if dtype == "float8_e4m3fn":
            yield _scales(tensor, mesh, stage, scale_block(tensor, recipe))
    for slot, slot_dtype in slot_dtypes(recipe).items():
        if slot_dtype != "none":
            yield _spec(f"{OPTIMIZER}/{slot}/{tensor.name}", slot_dtype, tensor, mesh, stage, flat_over, recipe)


def _spec(
    name: str, dtype: str, tensor: Tensor, mesh: Mesh, stage: int, flat_over: Axes | None, recipe: Recipe
) -> ArraySpec:
    spec = ArraySpec(
        name=name,
        dtype=dtype,
        shape=tensor.shape,
        dims=_dims(tensor.cuts),
        packed=_packed(tensor.cuts, tensor.shape),
        padded=_padded(tensor, mesh),
        flat_over=flat_over,
        flat_rows=flat_over is not None and recipe.shares == "rows",
        stage=stage,
    )
    return _cut_along(row_dim(tensor, mesh), spec, mesh) if spec.flat_rows else spec


def _cut_along(dim: int, spec: ArraySpec, mesh: Mesh) -> ArraySpec:
    """What is shared by rows of dim 0, by rows of another one: these are boxes, and no flat range of a block. What cuts
    that dim already cuts it first; one that has a single rank and parts there says nothing."""
    if dim == 0:
        return spec
    outer = tuple(axis for at, axes in spec.dims if at == dim and axes != "rank" for axis in each_axis(axes))
    dims = {**dict(spec.dims), dim: mesh.without_idle(("edp", *outer))}
    packed = None if spec.packed is not None and spec.packed[0] == dim else spec.packed
    return replace(spec, dims=tuple(sorted(dims.items())), packed=packed, flat_over=None, flat_rows=False)


def _scales(tensor: Tensor, mesh: Mesh, stage: int, block: tuple[int, ...]) -> ArraySpec:
    """A scale per block of the last two dims. It is cut as its matrix is where blocks end where shares do; where they
    do not, neighbours need the same scale, and every one of them holds that whole dim."""
    first_scaled = len(tensor.shape) - _MATRIX_DIMS
    shape = num_blocks(tensor.shape, block)
    cuts = tuple(
        cut
        for cut in tensor.cuts
        if cut.dim < first_scaled
        or (
            all(part % (mesh.size(cut.axis) * block[cut.dim]) == 0 for part in cut.part_sizes(tensor.shape[cut.dim]))
            and _padded(tensor, mesh) is None
        )
    )
    return ArraySpec(
        name=f"{SCALES}/{tensor.name}",
        dtype="float32",
        shape=shape,
        dims=_dims(cuts),
        packed=_packed(cuts, shape),
        stage=stage,
    )


def _dims(cuts: tuple[Cut, ...]) -> tuple[tuple[int, SplitAxes], ...]:
    return tuple((cut.dim, cut.axis) for cut in cuts)


def _packed(cuts: tuple[Cut, ...], shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    cut = next((cut for cut in cuts if len(cut.packed) > 1), None)
    return None if cut is None else (cut.dim, cut.part_sizes(shape[cut.dim]))


def _padded(tensor: Tensor, mesh: Mesh) -> tuple[int, int] | None:
    """The padded dim and its size where a rank's share follows from that and not from the dim's own size."""
    for cut in tensor.cuts:
        size, num = tensor.shape[cut.dim], mesh.size(cut.axis)
        rows = cut.rows_of_rank(size, num)
        if num > 1 and rows != -(-size // num):
            return cut.dim, rows * num
    return None
