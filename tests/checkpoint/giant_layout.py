"""The reference Behemoth as a layout, for 32,000 ranks and for others.

Bytes of a parameter: a float32 master and two float32 moments, shared out flat over the replicas of each block, as a
distributed optimizer holds them; weights are made from the master.
"""

from __future__ import annotations

from collections.abc import Sequence

from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import Tensor, named_inventory

MESH = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
SLOTS = ("master", "exp_avg", "exp_avg_sq")


def giant(mesh: Mesh = MESH) -> Layout:
    """All of the state of a training run."""
    return _layout(mesh, SLOTS, is_flat=True)


def giant_weights(mesh: Mesh) -> Layout:
    """The master weights alone, whole blocks on every replica, as one holds them who does not train."""
    return _layout(mesh, SLOTS[:1], is_flat=False)


def _layout(mesh: Mesh, slots: Sequence[str], *, is_flat: bool) -> Layout:
    inventory = named_inventory("behemoth-ref")
    return Layout(
        mesh=mesh,
        arrays=tuple(
            _spec(f"optim/{slot}/{tensor.name}", tensor, mesh, inventory.num_layers, is_flat=is_flat)
            for tensor in inventory.tensors
            for slot in slots
        ),
    )


def _spec(name: str, tensor: Tensor, mesh: Mesh, num_layers: int, *, is_flat: bool) -> ArraySpec:
    packed = next((cut for cut in tensor.cuts if cut.num_packed > 1), None)
    stages = {"first": 0, "last": mesh.pp - 1}
    return ArraySpec(
        name=name,
        dtype="float32",
        shape=tensor.shape,
        dims=tuple((cut.dim, cut.axis) for cut in tensor.cuts),
        packed=packed and (packed.dim, (tensor.shape[packed.dim] // packed.num_packed,) * packed.num_packed),
        flat_over=("edp" if tensor.is_expert else "dp") if is_flat else None,
        stage=stages.get(tensor.stage, (tensor.layer or 0) * mesh.pp // num_layers),
    )
