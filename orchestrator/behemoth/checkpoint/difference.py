"""How far apart two arrays of the same shape and dtype are, in numbers that add up over parts. Pure arithmetic.

Neighbour: `diff`, which finds the parts that differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BLOCK_ELEMENTS = 1 << 16
"""So many are widened to float64 at a time: half a MiB a copy, which stays in the cache of a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Statistics of the elements whose bytes differ. An element that is NaN on one side only has no distance: it is
    counted by `num_nan_first` or `num_nan_second`. NaN on both sides, and zeros of either sign, are changed by a
    distance of 0.

    `max_abs` is the largest |b - a|, infinite where one side is, or the infinities differ. `max_rel` is the largest
    |b - a| / max(|a|, |b|): 0 to 2, and 1 where one of them is infinite. `sum_squares` adds up (b - a)^2.
    """

    num_changed: int
    max_abs: float
    max_rel: float
    sum_squares: float
    num_nan_first: int
    num_nan_second: int

    @property
    def l2(self) -> float:
        """Euclidean norm of the difference."""
        return math.sqrt(self.sum_squares)

    def __add__(self, other: Difference) -> Difference:
        """The difference of two disjoint parts together."""
        return Difference(
            num_changed=self.num_changed + other.num_changed,
            max_abs=max(self.max_abs, other.max_abs),
            max_rel=max(self.max_rel, other.max_rel),
            sum_squares=self.sum_squares + other.sum_squares,
            num_nan_first=self.num_nan_first + other.num_nan_first,
            num_nan_second=self.num_nan_second + other.num_nan_second,
        )


NO_DIFFERENCE = Difference(num_changed=0, max_abs=0.0, max_rel=0.0, sum_squares=0.0, num_nan_first=0, num_nan_second=0)


def difference(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> Difference:
    """The difference of two C-contiguous arrays of the same shape and dtype (of `layout.DTYPES`). Takes a few MiB of
    extra memory."""
    one, two = first.reshape(-1), second.reshape(-1)
    total = NO_DIFFERENCE
    for at in range(0, one.size, BLOCK_ELEMENTS):
        total += _of_block(one[at : at + BLOCK_ELEMENTS], two[at : at + BLOCK_ELEMENTS])
    return total


def _of_block(first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]) -> Difference:
    is_changed = (_rows(first) != _rows(second)).any(axis=1)
    one, two = first[is_changed], second[is_changed]
    if not one.size:
        return NO_DIFFERENCE
    # What numpy would warn of (signalling NaN, overflow to infinity) is told in the result.
    with np.errstate(all="ignore"):
        return _of_whole_numbers(one, two) if one.dtype.kind in "iu" else _of_floats(one, two)


def _of_floats(one: npt.NDArray[np.generic], two: npt.NDArray[np.generic]) -> Difference:
    """Complex numbers and truth values too."""
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    a, b = one.astype(wide), two.astype(wide)
    is_nan_first, is_nan_second = np.isnan(a), np.isnan(b)
    known = ~(is_nan_first | is_nan_second)
    a, b = a[known], b[known]
    distance = np.abs(b - a)
    distance[np.isnan(distance)] = np.inf  # of complex numbers that have the same infinity in one part
    return _measured(
        distance,
        np.maximum(np.abs(a), np.abs(b)),
        num_changed=one.size,
        num_nan_first=int((is_nan_first & ~is_nan_second).sum()),
        num_nan_second=int((is_nan_second & ~is_nan_first).sum()),
    )


def _of_whole_numbers(one: npt.NDArray[np.generic], two: npt.NDArray[np.generic]) -> Difference:
    """Exact before it becomes a float: the difference of two int64 fits a uint64, and what is negative wraps around in
    both casts and in the subtraction alike."""
    low, high = np.minimum(one, two), np.maximum(one, two)
    distance = high.astype(np.uint64) - low.astype(np.uint64)
    scale = np.maximum(np.abs(one.astype(np.float64)), np.abs(two.astype(np.float64)))
    return _measured(distance.astype(np.float64), scale, num_changed=one.size)


def _measured(
    distance: Floats, scale: Floats, *, num_changed: int, num_nan_first: int = 0, num_nan_second: int = 0
) -> Difference:
    ratio = np.minimum(distance / np.where(scale == 0, 1.0, scale), 2.0)
    return Difference(
        num_changed=num_changed,
        max_abs=float(distance.max(initial=0.0)),
        max_rel=float(np.where(np.isinf(scale), 1.0, ratio).max(initial=0.0)),
        sum_squares=float(np.square(distance).sum()),
        num_nan_first=num_nan_first,
        num_nan_second=num_nan_second,
    )


def _rows(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """The bytes of each element."""
    return array.view(np.uint8).reshape(-1, array.dtype.itemsize)
