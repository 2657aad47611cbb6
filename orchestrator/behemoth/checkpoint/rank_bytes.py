"""Bytes that every rank holds of a training state: of the weights that it computes with, and of the optimizer's state.

Counted on the layout, so that shares which differ (rows, padded dims, the late pieces of a flat range) are each rank's
own. Pure. Neighbours: `model_layout`, and `loads`, which counts what ranks write and stage.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from behemoth.checkpoint.model_layout import BUFFERS, OPTIMIZER, WEIGHTS, model_layout
from behemoth.checkpoint.sharing import bytes_of_pieces, kinds
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import Inventory
from behemoth.spec.pipeline import EVEN, Pipeline
from behemoth.spec.recipe import DEFAULT, Recipe, Weights

_WORKING_DTYPE: Weights = "bfloat16"
"""Of the weights that a program computes with where the recipe saves none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """What one rank holds, by the recipe, buffers among the weights. What is replicated counts on every holder; scales
    of float8 do not count."""

    weights_bytes: int
    optimizer_bytes: int


def rank_bytes(
    inventory: Inventory, mesh: Mesh, pipeline: Pipeline = EVEN, recipe: Recipe = DEFAULT
) -> list[RankBytes]:
    """For each rank, its bytes of weights and of optimizer state (master and moments), a second for 32,000 ranks.
    Raises what `model_layout` does."""
    held_recipe = replace(recipe, weights=_WORKING_DTYPE) if recipe.weights == "none" else recipe
    layout = model_layout(inventory, held_recipe, mesh, pipeline)
    weights, optimizer = np.zeros((2, mesh.num_ranks), dtype=np.int64)
    for kind in kinds(layout):
        piece = kind.sharing.piece_of_rank
        held = np.where(piece >= 0, bytes_of_pieces(kind)[piece], 0)
        parts = Counter(layout.arrays[position].name.partition("/")[0] for position in kind.positions)
        weights += held * (parts[WEIGHTS] + parts[BUFFERS])
        optimizer += held * parts[OPTIMIZER]
    return [
        RankBytes(weights_bytes=of_weights, optimizer_bytes=of_optimizer)
        for of_weights, of_optimizer in zip(weights.tolist(), optimizer.tolist(), strict=True)
    ]
