"""How far apart arrays are: every dtype, NaN, infinities, and sums over parts."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from behemoth.checkpoint.difference import BLOCK_ELEMENTS, NO_DIFFERENCE, Difference, difference
from behemoth.checkpoint.layout import DTYPES

INF, NAN = math.inf, math.nan


def floats(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_every_dtype_equal_arrays_do_not_differ_and_one_changed_element_does(dtype: str) -> None:
    one = np.array([[1, 2, 1], [0.5, 1, 2]]).astype(DTYPES[dtype])
    assert difference(one, one.copy()) == NO_DIFFERENCE
    two = one.copy()
    two[1, 1] = np.array(0 if dtype == "bool" else 4).astype(DTYPES[dtype])
    told = difference(one, two)
    expected = 1.0 if dtype == "bool" else 3.0
    assert (told.num_changed, told.max_abs, told.l2) == (1, expected, expected)
    assert told.max_rel == pytest.approx(1.0 if dtype == "bool" else 0.75)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bits_of_any_dtype_have_a_difference_without_a_warning(dtype: str) -> None:
    rng = np.random.default_rng(5)
    itemsize = DTYPES[dtype].itemsize
    raw = [rng.integers(0, 2 if dtype == "bool" else 256, 512 * itemsize, dtype=np.uint8) for _ in range(2)]
    told = difference(raw[0].view(DTYPES[dtype]), raw[1].view(DTYPES[dtype]))
    rows = [each.reshape(512, itemsize) for each in raw]
    assert told.num_changed == int((rows[0] != rows[1]).any(axis=1).sum())
    assert told.max_abs > 0
    assert 0 < told.max_rel <= 2


def test_not_a_number_on_one_side_is_counted_and_has_no_distance() -> None:
    told = difference(floats(NAN, 1, NAN, 4), floats(2, NAN, NAN, 5))
    assert (told.num_changed, told.num_nan_first, told.num_nan_second) == (3, 1, 1)
    assert (told.max_abs, told.max_rel, told.l2) == (1.0, 0.2, 1.0)


def test_another_pattern_of_not_a_number_is_a_change_without_a_distance() -> None:
    one = np.array([0x7FC00000], np.uint32).view(np.float32)
    two = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert difference(one, two) == Difference(
        num_changed=1, max_abs=0.0, max_rel=0.0, sum_squares=0.0, num_nan_first=0, num_nan_second=0
    )


def test_zeros_of_both_signs_are_a_change_of_nothing() -> None:
    told = difference(floats(0.0), floats(-0.0))
    assert (told.num_changed, told.max_abs, told.max_rel) == (1, 0.0, 0.0)


@pytest.mark.parametrize(("a", "b"), [(INF, 1.0), (0.0, -INF), (INF, -INF)])
def test_an_infinity_is_infinitely_far_and_relatively_one(a: float, b: float) -> None:
    told = difference(floats(a), floats(b))
    assert (told.max_abs, told.max_rel, told.l2) == (INF, 1.0, INF)
    assert difference(floats(INF), floats(INF)) == NO_DIFFERENCE


@pytest.mark.parametrize("other", [complex(INF, 2), complex(-INF, 1), complex(3, 1), complex(1, INF)])
def test_a_complex_number_with_an_infinite_part_is_infinitely_far_from_another(other: complex) -> None:
    one, two = np.array([complex(INF, 1), 1], np.complex64), np.array([other, 1], np.complex64)
    for told in (difference(one, two), difference(two, one)):
        assert (told.num_changed, told.max_abs, told.max_rel, told.l2) == (1, INF, 1.0, INF)


@given(hnp.arrays(np.int64, 8), hnp.arrays(np.int64, 8))
def test_whole_numbers_are_as_far_apart_as_exact_arithmetic_says(
    one: npt.NDArray[np.int64], two: npt.NDArray[np.int64]
) -> None:
    exact = [abs(int(b) - int(a)) for a, b in zip(one, two, strict=True)]
    told = difference(one, two)
    assert told.num_changed == sum(each > 0 for each in exact)
    assert told.max_abs == float(max(exact))
    assert told.sum_squares == pytest.approx(float(sum(Fraction(each) ** 2 for each in exact)))


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int64", 2**53, 2**53 + 1), ("int64", -(2**63), -(2**63) + 1), ("uint64", 2**64 - 2, 2**64 - 1)],
)
def test_whole_numbers_that_no_float_tells_apart_are_one_apart(dtype: str, low: int, high: int) -> None:
    one, two = (np.array([each], dtype) for each in (low, high))
    assert float(low) == float(high)
    for told in (difference(one, two), difference(two, one)):
        assert (told.num_changed, told.max_abs, told.l2) == (1, 1.0, 1.0)


def test_changes_in_any_block_are_told() -> None:
    one = np.zeros(2 * BLOCK_ELEMENTS + 1, np.float32)
    for at in (0, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, 2 * BLOCK_ELEMENTS - 1, 2 * BLOCK_ELEMENTS):
        two = one.copy()
        two[at] = 2.0
        assert difference(one, two) == replace(NO_DIFFERENCE, num_changed=1, max_abs=2.0, max_rel=1.0, sum_squares=4.0)


@given(hnp.arrays(np.uint8, 6), hnp.arrays(np.uint8, 6))
def test_bytes_do_not_wrap_around(one: npt.NDArray[np.uint8], two: npt.NDArray[np.uint8]) -> None:
    assert difference(one, two).max_abs == float(np.abs(one.astype(int) - two.astype(int)).max())


@given(
    hnp.arrays(np.float32, 12, elements=st.floats(width=32)),
    hnp.arrays(np.float32, 12, elements=st.floats(width=32)),
    st.integers(0, 12),
)
def test_parts_add_up_to_the_whole(one: npt.NDArray[Any], two: npt.NDArray[Any], cut: int) -> None:
    whole = difference(one, two)
    parts = difference(one[:cut], two[:cut]) + difference(one[cut:], two[cut:])
    assert parts.sum_squares == pytest.approx(whole.sum_squares)
    assert (parts.num_changed, parts.max_abs, parts.max_rel) == (whole.num_changed, whole.max_abs, whole.max_rel)
    assert (parts.num_nan_first, parts.num_nan_second) == (whole.num_nan_first, whole.num_nan_second)
