"""Changes of precision: master weights to what serves, rounded to nearest even as torch rounds, and float8 back.

A float8 tensor gets a scale for each of its cells: value = stored * scale, with scale = the cell's largest magnitude /
448, so that the range is used and nothing overflows. Neighbours: `tensors`, `views`, `cells`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box, enclosing, num_elements, slices_of, slices_within
from behemoth.checkpoint.interop.cells import (
    BLOCK,
    SUFFIXES,
    Cells,
    Scaling,
    cells_from,
    cells_of,
    grid_box,
    grid_of,
    largest_of,
    spread,
)
from behemoth.checkpoint.interop.reshaped import Unflattened
from behemoth.checkpoint.interop.tensors import Raw, Tensor, raw_dtype, read_box, tiles, whole
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.precision import FLOAT8S, Floats, as_float32, round_into, scale_down, scales_for

FLOAT8 = "float8_e4m3fn"
PRECISIONS = ("bfloat16", "float16", "float32", FLOAT8)
"""What floating tensors may be changed to."""
_CHANGED = frozenset({"float64", "float32", "float16", "bfloat16"})
_BLOCK_BYTES = 32 << 20
_MOST_GROWN = 1.25
"""How much a box of values may grow, as a factor, to consist of whole cells; else the whole tensor is searched
first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elementwise:
    """A tensor whose elements are converted one by one: shape and grain are those of `inner`."""

    inner: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def grain(self, dim: int) -> int:
        return self.inner.grain(dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded(_Elementwise):
    """The nearest values of another floating type, ties to even. What exceeds its range becomes infinite, as in torch;
    a NaN stays one."""

    dtype: str

    def read_into(self, box: Box, out: Raw) -> None:
        values = read_box(self.inner, box).view(DTYPES[self.inner.dtype])
        round_into(out.view(DTYPES[self.dtype]), values, what=f"tensor of shape {list(self.shape)}")


class Scale:
    """The scales of a float8 tensor, float32, one for each cell (`cells`): computed once, by reading the tensor, or
    along with its values where a box of them has whole cells. The scale of a whole tensor has shape [1]. Thread-safe.
    """

    dtype = "float32"

    def __init__(self, name: str, inner: Tensor, scaling: Scaling = "tensor") -> None:
        self.name = name
        self._inner = inner
        self._cells = cells_of(inner.shape, scaling)
        grid = grid_of(inner.shape, self._cells)
        self.shape = (1,) if scaling == "tensor" else grid
        self._largest: Floats = np.zeros(grid, np.float32)
        self._is_known: npt.NDArray[np.bool_] = np.zeros(grid, np.bool_)
        self._lock = threading.Lock()
        self._looking = threading.Lock()

    def grain(self, dim: int) -> int:  # noqa: ARG002 (the port's signature)
        return 1

    def read_into(self, box: Box, out: Raw) -> None:
        self._look_everywhere()
        scales = self._of(tuple(slice(0, size) for size in self._largest.shape)).reshape(self.shape)
        np.copyto(out, scales[slices_of(box)].view(raw_dtype(self.dtype)))

    def beside(self, box: Box) -> tuple[Floats, Floats]:
        """The tensor's values in a box, and the scale of each, or size 1 along dims that a cell spans.

        Cells that are not known are read with the values, in full, as far as little of them lies outside the box: else
        all of the tensor is looked through first. Raises Invalid for a tensor with NaN or infinity, which no scale can
        hold."""
        cells = grid_box(box, self._cells)
        wide = self._with_unknown(box, cells)
        if num_elements(wide) > _MOST_GROWN * num_elements(box):
            self._look_everywhere()
            wide = box
        values = _as_float32(self._inner, wide)
        if not self._is_known[slices_of(cells)].all():
            self._learn(wide, values)
        return values[slices_within(box, wide)], spread(self._of(slices_of(cells)), box, self._cells)

    def _of(self, cells: tuple[slice, ...]) -> Floats:
        return scales_for(self._largest[cells], FLOAT8, what=f"tensor {self.name!r}")

    def _with_unknown(self, box: Box, cells: Box) -> Box:
        """The box, grown by all of its cells that are not known."""
        unknown = np.argwhere(~self._is_known[slices_of(cells)])
        if not len(unknown):
            return box
        spans = zip(unknown.min(axis=0).tolist(), unknown.max(axis=0).tolist(), strict=True)
        grown = (
            ((begin + first) * cell, min((begin + last + 1) * cell, size))
            for (begin, _), (first, last), cell, size in zip(cells, spans, self._cells, self._inner.shape, strict=True)
        )
        return enclosing([box, tuple(grown)])

    def _learn(self, box: Box, values: Floats) -> None:
        """Take in the values of a box; cells that lie within the box are known afterwards."""
        cells = grid_box(box, self._cells)
        largest = largest_of(values, box, self._cells)
        ends = zip(box, cells, self._cells, self._inner.shape, strict=True)
        within = tuple(
            slice(-(-low // cell), last if high == size else high // cell)
            for (low, high), (_, last), cell, size in ends
        )
        with self._lock:
            self._largest[slices_of(cells)] = np.maximum(self._largest[slices_of(cells)], largest)
            self._is_known[within] = True

    def _look_everywhere(self) -> None:
        with self._looking:
            for box in tiles(self._inner, limit_bytes=_BLOCK_BYTES):
                if not self._is_known[slices_of(grid_box(box, self._cells))].all():
                    self._learn(box, _as_float32(self._inner, box))
            self._is_known[...] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled(_Elementwise):
    """float8_e4m3fn of value / scale."""

    scale: Scale

    @property
    def dtype(self) -> str:
        return FLOAT8

    def read_into(self, box: Box, out: Raw) -> None:
        values, scales = self.scale.beside(box)
        stored = scale_down(values, scales, FLOAT8, what=f"tensor {self.scale.name!r}")
        np.copyto(out, stored.view(raw_dtype(FLOAT8)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscaled(_Elementwise):
    """The values of a float8 tensor with scales, one for each of `cells`: stored * scale, in `dtype`."""

    scale: Tensor
    cells: Cells
    dtype: str

    def read_into(self, box: Box, out: Raw) -> None:
        if math.prod(self.scale.shape) == 1:
            scales = _as_float32(self.scale, whole(self.scale)).reshape(())
        else:
            scales = spread(_as_float32(self.scale, grid_box(box, self.cells)), box, self.cells)
        values = _as_float32(self.inner, box) * scales
        round_into(out.view(DTYPES[self.dtype]), values, what=f"tensor of shape {list(self.shape)}")


def converted(
    tensors: Mapping[str, Tensor],
    dtype: str,
    *,
    is_unscaled: Callable[[str], bool] = lambda _: False,
    scaling: Scaling = "tensor",
) -> dict[str, Tensor]:
    """Floating tensors in another precision; integers, bool, complex numbers and what is float8 already stay.

    To float8 go tensors of two dims or more for which `is_unscaled` does not hold, each with a tensor of its scales
    beside it (`cells.SUFFIXES`); the others become bfloat16. Raises Invalid for another dtype than those of PRECISIONS,
    and when a scale's name is taken.
    """
    _check_precision(dtype, PRECISIONS)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _CHANGED:
            found[name] = tensor
        elif dtype != FLOAT8:
            found[name] = cast(tensor, dtype)
        elif len(tensor.shape) < 2 or is_unscaled(name):
            found[name] = cast(tensor, "bfloat16")
        else:
            scale, scale_name = Scale(name, tensor, scaling), name + SUFFIXES[scaling]
            found[name] = Scaled(inner=tensor, scale=scale)
            if scale_name in tensors:
                raise Invalid(f"tensor {scale_name!r}: expected that name to be free for a scale, got a tensor")
            found[scale_name] = scale
    return found


def unscaled(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The inverse: floating tensors in `dtype`. Those of float8 are multiplied by their scales, which are dropped.

    Raises Invalid for a float8 tensor without scales that fit, whose values nobody can tell, and for a dtype that is
    none of PRECISIONS or float8.
    """
    _check_precision(dtype, [name for name in PRECISIONS if name != FLOAT8])
    scales = {
        name + suffix for name, tensor in tensors.items() if tensor.dtype in FLOAT8S for suffix in SUFFIXES.values()
    }
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype in FLOAT8S:
            scale, cells = _scale_of(name, tensors)
            found[name] = Unscaled(inner=tensor, scale=scale, cells=cells, dtype=dtype)
        elif name not in scales:
            found[name] = cast(tensor, dtype) if tensor.dtype in _CHANGED else tensor
    return found


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """The tensor itself where it has the dtype already."""
    return tensor if tensor.dtype == dtype else Rounded(inner=tensor, dtype=dtype)


def _check_precision(dtype: str, known: Sequence[str]) -> None:
    if dtype not in known:
        raise Invalid(f"dtype: expected one of {', '.join(known)}, got {dtype!r}", code="precision")


def _scale_of(name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Cells]:
    """The scales of a float8 tensor, and for which cells they are."""
    names = [name + suffix for suffix in dict.fromkeys(SUFFIXES.values()) if name + suffix in tensors]
    scale = tensors[names[0]] if len(names) == 1 else None
    if scale is not None and len(scale.shape) == 1 and scale.shape == tensors[name].shape[:1]:
        scale = Unflattened(inner=scale, dim=0, sizes=(*scale.shape, 1))  # [out] is [out, 1] to some writers
    cells = None if scale is None else cells_from(tensors[name].shape, scale.shape)
    if scale is None or cells is None or scale.dtype not in _CHANGED:
        got = " and ".join(f"{one!r} {tensors[one].dtype}{list(tensors[one].shape)}" for one in names) or "none"
        wanted = " or ".join(repr(name + suffix) for suffix in dict.fromkeys(SUFFIXES.values()))
        raise Invalid(
            f"tensor {name!r} {list(tensors[name].shape)}: expected floating scales {wanted}, one in all, one "
            f"per channel or one per block of {BLOCK} x {BLOCK}, got {got}",
            hint="import it as it is, without --dtype",
            code="float8-scale",
        )
    return scale, cells


def _as_float32(tensor: Tensor, box: Box) -> Floats:
    return as_float32(read_box(tensor, box).view(DTYPES[tensor.dtype]))
