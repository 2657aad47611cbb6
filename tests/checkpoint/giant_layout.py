"""The reference Behemoth as a layout, for 32,000 ranks and for others."""

from __future__ import annotations

from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe

MESH = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)


def giant(mesh: Mesh = MESH) -> Layout:
    """All of the state of a training run by the default recipe: a float32 master and two float32 moments."""
    return model_layout(named_inventory("behemoth-ref"), Recipe(), mesh)


def giant_weights(mesh: Mesh) -> Layout:
    """The master weights alone, whole blocks on every replica, as one holds them who does not train."""
    weights = Recipe(exp_avg="none", exp_avg_sq="none", shares="whole")
    return model_layout(named_inventory("behemoth-ref"), weights, mesh)
