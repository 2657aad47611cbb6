"""The cells of a tensor that share one float8 scale each: all of it, an output channel, or a block of 128 x 128.

`cells` has the sizes of a cell per dim, and a grid of scales one number for each cell; where a cell spans a dim the
grid has size 1 there. Pure arithmetic. Neighbours: `casts`, which scales, and `checkpoint.precision` (the formulas).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.precision import Floats

Scaling = Literal["tensor", "channel", "block"]
SCALINGS: tuple[Scaling, ...] = ("tensor", "channel", "block")
BLOCK = 128
"""Size of a block along both dims, as in DeepSeek-V3's files (deepseek-ai/DeepSeek-V3, inference/kernel.py,
weight_dequant)."""
SUFFIXES: Mapping[Scaling, str] = {"tensor": "_scale", "channel": "_scale", "block": "_scale_inv"}
"""Suffix of the name of the tensor with the scales, as readers expect it: compressed-tensors has `weight_scale`,
DeepSeek-V3 `weight_scale_inv`. Value = stored * scale in both."""

Cells = tuple[int, ...]


def cells_of(shape: tuple[int, ...], scaling: Scaling) -> Cells:
    """The size of a cell per dim, for a tensor of at least two dims. An output channel is a row of a matrix [out, in],
    and a column of each matrix [in, out] of a stack, as experts are stored."""
    match scaling:
        case "tensor":
            return shape
        case "channel":
            return (1, shape[1]) if len(shape) == 2 else (*(1 for _ in shape[:-2]), shape[-2], 1)
        case "block":
            return (*(1 for _ in shape[:-2]), BLOCK, BLOCK)


def cells_from(shape: tuple[int, ...], grid: tuple[int, ...]) -> Cells | None:
    """The cell size for which `grid` is the shape of the scales of a tensor of `shape`; None when there is none."""
    if all(size == 1 for size in grid):
        return shape
    if len(grid) != len(shape):
        return None
    cells = []
    for size, num in zip(shape, grid, strict=True):
        if num not in (1, size, -(-size // BLOCK)):
            return None
        cells.append(size if num == 1 else 1 if num == size else BLOCK)
    return tuple(cells)


def grid_of(shape: tuple[int, ...], cells: Cells) -> tuple[int, ...]:
    """The shape of the scales: how many cells there are per dim."""
    return tuple(-(-size // cell) for size, cell in zip(shape, cells, strict=True))


def grid_box(box: Box, cells: Cells) -> Box:
    """The box of scales that apply to the elements of a box."""
    return tuple((start // cell, -(-stop // cell)) for (start, stop), cell in zip(box, cells, strict=True))


def largest_of(values: Floats, box: Box, cells: Cells) -> Floats:
    """The largest magnitude of each cell among the values of a box, in the shape of `grid_box`."""
    found: Floats = np.abs(values)
    for dim, ((start, stop), cell) in enumerate(zip(box, cells, strict=True)):
        begins = [0, *(edge - start for edge in range((start // cell + 1) * cell, stop, cell))]
        found = np.maximum.reduceat(found, begins, axis=dim)
    return found


def spread(scales: Floats, box: Box, cells: Cells) -> Floats:
    """Scales of `grid_box`, one for each element of the box, or size 1 along dims that a cell spans."""
    for dim, ((start, stop), cell) in enumerate(zip(box, cells, strict=True)):
        if cell > 1 and scales.shape[dim] > 1:
            edges = [start, *range((start // cell + 1) * cell, stop, cell), stop]
            scales = np.repeat(scales, np.diff(edges), axis=dim)
    return scales


def require_scaling(text: str) -> Scaling:
    """`text` as a Scaling. Raises Invalid for any other text."""
    for scaling in SCALINGS:
        if scaling == text:
            return scaling
    raise Invalid(f"scaling: expected one of {', '.join(SCALINGS)}, got {text!r}", code="scaling")
