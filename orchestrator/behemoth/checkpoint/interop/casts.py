"""Changes of precision: master weights to what serves, rounded to nearest even as torch rounds, and float8 back.

A float8 tensor gets one scale: value = stored * scale, with scale = largest magnitude / 448, so that the range is used
and nothing overflows. Neighbours: `tensors`, `views`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from behemoth.base.errors import Invalid
from behemoth.checkpoint.boxes import Box
from behemoth.checkpoint.interop.tensors import Raw, Tensor, blocks, raw_dtype, read_box, whole
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.precision import FLOAT8S, Floats, as_float32, round_into, scale_down, scales_for

FLOAT8 = "float8_e4m3fn"
SCALE_SUFFIX = "_scale"
"""Of the tensor with a float8 tensor's scale: `weight` and `weight_scale`, as compressed-tensors names them."""
PRECISIONS = ("bfloat16", "float16", "float32", FLOAT8)
"""What floating tensors may be changed to."""
_CHANGED = frozenset({"float64", "float32", "float16", "bfloat16"})
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elementwise:
    """Each element becomes another one in its place: shape and grain are those of the inner tensor."""

    inner: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    def grain(self, dim: int) -> int:
        return self.inner.grain(dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast(_Elementwise):
    """The nearest values of another floating type, ties to even. What exceeds its range becomes infinite, as in torch;
    a NaN stays one."""

    dtype: str

    def read_into(self, box: Box, out: Raw) -> None:
        values = read_box(self.inner, box).view(DTYPES[self.inner.dtype])
        round_into(out.view(DTYPES[self.dtype]), values, what=f"tensor of shape {list(self.shape)}")


class Scale:
    """The scale of a float8 tensor, float32[1]: computed once, by reading the tensor."""

    dtype = "float32"
    shape = (1,)

    def __init__(self, name: str, inner: Tensor) -> None:
        self._name = name
        self._inner = inner
        self._value: np.float32 | None = None
        self._lock = threading.Lock()

    def grain(self, dim: int) -> int:  # noqa: ARG002 (the port's signature)
        return 1

    def read_into(self, box: Box, out: Raw) -> None:
        out[...] = np.full([stop - start for start, stop in box], self.value()).view(raw_dtype(self.dtype))

    def value(self) -> np.float32:
        """1 for a tensor of zeros. Raises Invalid for one with NaN or infinity, which no scale can hold."""
        with self._lock:
            if self._value is None:
                self._value = self._compute()
            return self._value

    def _compute(self) -> np.float32:
        largest = np.float32(0)
        for box in blocks(self._inner, limit_bytes=_BLOCK_BYTES):
            values = _as_float32(self._inner, box)
            largest = np.maximum(largest, np.maximum(values.max(), -values.min()))
        return np.float32(scales_for(np.array([largest]), FLOAT8, what=f"tensor {self._name!r}")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled(_Elementwise):
    """float8_e4m3fn of value / scale."""

    scale: Scale

    @property
    def dtype(self) -> str:
        return FLOAT8

    def read_into(self, box: Box, out: Raw) -> None:
        values = scale_down(_as_float32(self.inner, box), np.array(self.scale.value()), FLOAT8)
        np.copyto(out, values.view(raw_dtype(FLOAT8)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscaled(_Elementwise):
    """The values of a float8 tensor with one scale: stored * scale, in `dtype`."""

    scale: Tensor
    dtype: str

    def read_into(self, box: Box, out: Raw) -> None:
        values = _as_float32(self.inner, box) * _as_float32(self.scale, whole(self.scale)).reshape(())
        round_into(out.view(DTYPES[self.dtype]), values, what=f"tensor of shape {list(self.shape)}")


def converted(
    tensors: Mapping[str, Tensor], dtype: str, *, is_unscaled: Callable[[str], bool] = lambda _: False
) -> dict[str, Tensor]:
    """Floating tensors in another precision; integers, bool, complex numbers and what is float8 already stay.

    To float8 go tensors of two dims or more for which `is_unscaled` does not hold, each with a tensor NAME_scale
    beside it; the others become bfloat16. Raises Invalid for another dtype than those of PRECISIONS, and when a scale's
    name is taken.
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
            scale = Scale(name, tensor)
            found[name] = Scaled(inner=tensor, scale=scale)
            if name + SCALE_SUFFIX in tensors:
                raise Invalid(
                    f"tensor {name + SCALE_SUFFIX!r}: expected that name to be free for a scale, got a tensor"
                )
            found[name + SCALE_SUFFIX] = scale
    return found


def unscaled(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The way back: floating tensors in `dtype`, those of float8 multiplied by their scales, which are gone then.

    Raises Invalid for a float8 tensor without a scale of one element, whose values nobody can tell, and for a dtype
    that is none of PRECISIONS or float8.
    """
    _check_precision(dtype, [name for name in PRECISIONS if name != FLOAT8])
    scales = {name + SCALE_SUFFIX for name, tensor in tensors.items() if tensor.dtype in FLOAT8S}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype in FLOAT8S:
            found[name] = Unscaled(inner=tensor, scale=_scale_of(name, tensors), dtype=dtype)
        elif name not in scales:
            found[name] = cast(tensor, dtype) if tensor.dtype in _CHANGED else tensor
    return found


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """The tensor itself where it has the dtype already."""
    return tensor if tensor.dtype == dtype else Cast(inner=tensor, dtype=dtype)


def _check_precision(dtype: str, known: Sequence[str]) -> None:
    if dtype not in known:
        raise Invalid(f"dtype: expected one of {', '.join(known)}, got {dtype!r}", code="precision")


def _scale_of(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    scale = tensors.get(name + SCALE_SUFFIX)
    if scale is None or math.prod(scale.shape) != 1 or scale.dtype not in _CHANGED:
        got = "none" if scale is None else f"{scale.dtype}{list(scale.shape)}"
        raise Invalid(
            f"tensor {name!r}: expected a scale of one floating element, {name + SCALE_SUFFIX!r}, got {got}",
            hint="import it as it is, without --dtype",
            code="float8-scale",
        )
    return scale


def _as_float32(tensor: Tensor, box: Box) -> Floats:
    return as_float32(read_box(tensor, box).view(DTYPES[tensor.dtype]))
