"""Whether a mesh suits a model, and along which dim the recipe's rows are then cut. Pure.

What a mesh does not divide would fail in the program, hours later. Neighbours: `model` (tensors and their cuts),
`mesh`, `run`, which asks for the mesh of a run file, and `behemoth.checkpoint.model_layout`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from behemoth.spec.mesh import Axis, Mesh
from behemoth.spec.model import Inventory, Tensor
from behemoth.spec.recipe import Recipe


def misfits(inventory: Inventory, mesh: Mesh, recipe: Recipe) -> Iterator[tuple[Axis, str]]:
    """Axes whose size does not suit the model, each with the reason as `expected ..., got ...`, once per axis."""
    if inventory.num_experts == 0 and mesh.ep > 1:
        yield "ep", f"expected 1 for a model without experts, got {mesh.ep}"
    elif inventory.num_experts % mesh.ep:
        yield "ep", f"expected a divisor of the model's {inventory.num_experts} experts, got {mesh.ep}"
    if inventory.num_layers and mesh.pp > inventory.num_layers:
        yield "pp", f"expected at most the model's {inventory.num_layers} layers, got {mesh.pp}"
    for axis in ("tp", "etp"):
        uneven = next((tensor for tensor in inventory.tensors if not _is_even(tensor, mesh, axis)), None)
        if uneven is not None:
            cut = next(cut for cut in uneven.cuts if cut.axis == axis and cut.padded_to is None)
            rows = math.gcd(*cut.part_sizes(uneven.shape[cut.dim]))
            yield axis, f"expected a divisor of {rows} (dim {cut.dim} of {uneven.name}), got {mesh.size(axis)}"
    if recipe.shares == "rows" and inventory.num_experts % mesh.ep == 0:
        reasons = (_row_misfit(tensor, mesh) for tensor in inventory.parameters)
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is not None:
            yield "edp", reason


def row_dim(tensor: Tensor, mesh: Mesh) -> int:
    """The dim that FSDP2 cuts, in what the other axes leave of it: 0, but 1 for stacked experts where ep x edp is more
    than their number, since some ranks had none of them (torchtitan 0.3.0, `apply_fsdp_to_decoder`)."""
    is_stacked = len(tensor.shape) > 1 and any(cut.dim == 0 and cut.axis == "ep" for cut in tensor.cuts)
    return 1 if is_stacked and mesh.ep * mesh.edp > tensor.shape[0] else 0


def _row_misfit(tensor: Tensor, mesh: Mesh) -> str | None:
    """FSDP2 shares other dims than dim 0 evenly or not at all."""
    dim = row_dim(tensor, mesh)
    if dim == 0:
        return None
    what = f"dim {dim} of {tensor.name}, the rows that ep x edp = {mesh.ep * mesh.edp} ranks share of its experts"
    size = tensor.shape[dim]
    cut = next((cut for cut in tensor.cuts if cut.dim == dim and mesh.size(cut.axis) > 1), None)
    if cut is not None:
        if len(cut.packed) > 1 or cut.rows_of_rank(size, mesh.size(cut.axis)) * mesh.size(cut.axis) != size:
            most = tensor.shape[0] // mesh.ep
            return f"expected at most {most} where {cut.axis} cuts {what}, unevenly or in parts, got {mesh.edp}"
        size //= mesh.size(cut.axis)
    return f"expected a divisor of {size} ({what}), got {mesh.edp}" if size % mesh.edp else None


def _is_even(tensor: Tensor, mesh: Mesh, axis: Axis) -> bool:
    cuts = (cut for cut in tensor.cuts if cut.axis == axis and cut.padded_to is None)
    return all(part % mesh.size(axis) == 0 for cut in cuts for part in cut.part_sizes(tensor.shape[cut.dim]))
