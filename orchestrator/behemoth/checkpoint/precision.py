"""Conversions between floating types: one rounding rule for restores, exports and imports.

To nearest, ties to even, as torch and ml_dtypes round; NaN stays NaN. Both convert float64 to float32 first, so that a
float64 is rounded twice on its way to float8 or bfloat16. Values beyond the range of a type with infinities become
infinite. float8_e4m3fn has no infinities, and there torch gives the largest value where ml_dtypes gives NaN: here such
values raise. Pure functions on numpy arrays. Neighbours: `conversion` (what is asked for), `interop.casts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.layout import DTYPES

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
"""Types between which values may be cast. float8_e8m0fnu holds powers of two only: scales, no values."""
LARGEST: Mapping[str, float] = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
"""Largest finite value of the float8 types that hold values (OCP 8-bit floating point specification 1.0, table 2)."""
FLOAT8S = frozenset(LARGEST)

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[Any]
"""An array of any type of `DTYPES`, those of ml_dtypes included."""


def round_into(target: Values, values: Values, *, what: str) -> None:
    """Fill `target`, of the shape of `values`, with the nearest values of its type. Raises Invalid, whose message
    begins with `what`, for values beyond the range of float8_e4m3fn."""
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(target, values, casting="unsafe")
    if target.dtype == DTYPES["float8_e4m3fn"] and values.dtype != target.dtype:
        lost = np.isnan(target) & ~np.isnan(values)
        if lost.any():
            raise Invalid(
                f"{what}: expected values that float8_e4m3fn has, at most {LARGEST['float8_e4m3fn']:g}, got "
                f"{float(values[lost][0]):g}",
                hint="convert it with a scale",
                code="float8-range",
            )


def scales_for(largest: Floats, dtype: str, *, what: str) -> Floats:
    """The scale for each largest magnitude, so that value / scale uses all of the range of `dtype`; 1 for zero.

    Raises Invalid that begins with `what` for NaN and infinity, which no scale can hold.
    """
    if not np.isfinite(largest).all():
        raise Invalid(
            f"{what}: expected finite values to store as {dtype}, got {largest[~np.isfinite(largest)][0]}",
            hint="keep it as bfloat16, or look at what the run has learned",
            code="float8-range",
        )
    tiny = np.finfo(np.float32).tiny  # no scale of 0: 0 / 0 is NaN
    scales = np.maximum(largest / np.float32(LARGEST[dtype]), tiny).astype(np.float32)
    return np.where(largest == 0, np.float32(1), scales).astype(np.float32)


def scale_down(values: Floats, scales: Floats, dtype: str, *, what: str) -> Values:
    """value / scale in float32, rounded to `dtype`; of scales that `scales_for` gives, always within its range.

    Scales from elsewhere may be too small. Raises Invalid that begins with `what` for a quotient that `dtype` lacks.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        quotients = np.asarray(values / scales)
        rounded = quotients.astype(DTYPES[dtype])
    lost = ~np.isfinite(rounded) & np.isfinite(values)
    if DTYPES[dtype] == DTYPES["float8_e4m3fn"]:  # which has no infinity either
        lost |= np.isinf(values)
    if lost.any():
        raise Invalid(
            f"{what}: expected value / scale to be at most {LARGEST[dtype]:g} to store it as {dtype}, got "
            f"{float(quotients[lost][0]):g} of value {float(values[lost][0]):g}",
            hint="the scales are those of other values: have them computed",
            code="float8-range",
        )
    return rounded


def as_float32(values: Values) -> Floats:
    """A copy in float32."""
    return values.astype(np.float32)
