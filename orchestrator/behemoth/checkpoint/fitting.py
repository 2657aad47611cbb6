"""Checks that a conversion fits the saved and the wanted arrays: types, shapes, blocks. Pure; called by `matching`."""

from __future__ import annotations

import math
from typing import assert_never

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step
from behemoth.checkpoint.conversion import (
    Cast,
    Conversion,
    HighBits,
    Joined,
    LowBits,
    ScaledDown,
    ScaledUp,
    ScalesOf,
    num_blocks,
    saved_names,
)
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.precision import FLOAT8S, FLOATS

_EXACT_IN_FLOAT32 = frozenset({"float32", "bfloat16", "float16"})
_SCALES = frozenset({"float32", "bfloat16", "float16"})


def check_conversion(saved: Layout, wanted: ArraySpec, conversion: Conversion, *, step: Step) -> None:
    """Raises Invalid naming the wanted array, what it needs and what the checkpoint has."""
    fit = _Fit(saved, wanted, conversion, step)
    match conversion:
        case Cast(array=array, begin=begin):
            fit.cast(array, begin)
        case ScaledDown(array=array, block=block, scales=scales):
            fit.wanted_type(FLOAT8S)
            fit.same_shape(array, FLOATS)
            fit.scales(scales, block)
        case ScalesOf(array=array, block=block, dtype=dtype):
            fit.wanted_type({"float32"})
            if dtype not in FLOAT8S:
                raise fit.refused(f"scales for one of {_listed(FLOAT8S)}", dtype)
            fit.scales_of(array, block)
        case ScaledUp(array=array, scales=scales, block=block):
            fit.wanted_type(FLOATS)
            fit.same_shape(array, FLOAT8S)
            fit.scales(scales, block)
        case Joined(high=high, low=low):
            fit.wanted_type({"float32"})
            fit.same_shape(high, {"bfloat16"})
            fit.same_shape(low, {"uint16"})
        case HighBits(array=array):
            fit.wanted_type({"bfloat16"})
            fit.same_shape(array, _EXACT_IN_FLOAT32)
        case LowBits(array=array):
            fit.wanted_type({"uint16"})
            fit.same_shape(array, _EXACT_IN_FLOAT32)
        case _:
            assert_never(conversion)


class _Fit:
    """Checks of one conversion."""

    def __init__(self, saved: Layout, wanted: ArraySpec, conversion: Conversion, step: Step) -> None:
        self._wanted = wanted
        self._where = f"checkpoint of step {step}: array {wanted.name!r} by {type(conversion).__name__}"
        self._saved: dict[str, ArraySpec] = {}
        for name in saved_names(conversion):
            position = saved.positions.get(name)
            if position is None:
                raise self.refused(f"a saved array {name!r}", "none of that name")
            self._saved[name] = saved.arrays[position]

    def refused(self, expected: str, got: str) -> Invalid:
        return Invalid(f"{self._where}: expected {expected}, got {got}", code="conversion")

    def wanted_type(self, dtypes: set[str] | frozenset[str]) -> None:
        if self._wanted.dtype not in dtypes:
            raise self.refused(f"to make {_listed(dtypes)}", f"an array of {self._wanted.dtype}")

    def same_shape(self, name: str, dtypes: set[str] | frozenset[str]) -> None:
        spec, shape = self._saved[name], self._wanted.shape
        if spec.dtype not in dtypes or spec.shape != shape:
            raise self.refused(f"{name!r} saved as {_listed(dtypes)}{list(shape)}", _form(spec))

    def cast(self, name: str, begin: tuple[int, ...]) -> None:
        spec, wanted = self._saved[name], self._wanted
        if spec.dtype != wanted.dtype and not {spec.dtype, wanted.dtype} <= FLOATS:
            raise self.refused(f"{name!r} saved as {wanted.dtype}, or two of {_listed(FLOATS)}", _form(spec))
        if not begin:
            if spec.shape != wanted.shape:
                raise self.refused(f"{name!r} saved with shape {list(wanted.shape)}", _form(spec))
            return
        ends = [start + size for start, size in zip(begin, wanted.shape, strict=False)]
        has_dims = len(begin) == len(wanted.shape) == len(spec.shape)
        is_within = has_dims and all(
            start >= 0 and end <= size for start, end, size in zip(begin, ends, spec.shape, strict=True)
        )
        if not is_within:
            raise self.refused(f"a part of shape {list(wanted.shape)} of {name!r} at {list(begin)}", _form(spec))

    def scales(self, name: str | None, block: tuple[int, ...]) -> None:
        self._block(block, self._wanted.shape)
        if name is not None:
            self._of_blocks(self._saved[name], self._wanted.shape, block, _SCALES)

    def scales_of(self, name: str, block: tuple[int, ...]) -> None:
        spec = self._saved[name]
        if spec.dtype not in FLOATS:
            raise self.refused(f"{name!r} saved as one of {_listed(FLOATS)}", _form(spec))
        self._block(block, spec.shape)
        self._of_blocks(self._wanted, spec.shape, block, {"float32"})

    def _block(self, block: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if len(block) != len(shape) or any(size < 1 for size in block):
            raise self.refused(f"a block of {len(shape)} dims, each 1 or more", f"{list(block)}")

    def _of_blocks(
        self, scales: ArraySpec, shape: tuple[int, ...], block: tuple[int, ...], dtypes: set[str] | frozenset[str]
    ) -> None:
        """One scale for all may have any number of dims."""
        blocks = num_blocks(shape, block)
        is_one = math.prod(blocks) == 1 == math.prod(scales.shape)
        if scales.dtype not in dtypes or not (scales.shape == blocks or is_one):
            raise self.refused(f"scales {scales.name!r} as {_listed(dtypes)}{list(blocks)}", _form(scales))


def _form(spec: ArraySpec) -> str:
    return f"{spec.dtype}{list(spec.shape)}"


def _listed(dtypes: set[str] | frozenset[str]) -> str:
    return " or ".join(sorted(dtypes))
