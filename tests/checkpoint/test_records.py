"""Small state comes back as it was, or is refused."""

from __future__ import annotations

import enum
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.records import decode_record, encode_record, rank_records_spec, run_record_spec

leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    leaves | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(values)
def test_a_record_comes_back_with_its_types(value: object) -> None:
    again = decode_record(encode_record(value, 4096))  # type: ignore[arg-type]
    assert again == value
    assert repr(again) == repr(value)  # 1, 1.0 and True are equal and not the same


def test_not_a_number_survives() -> None:
    again = decode_record(encode_record([math.nan, -0.0], 64))
    assert isinstance(again, list)
    assert math.isnan(again[0])  # type: ignore[arg-type]
    assert math.copysign(1, again[1]) == -1  # type: ignore[arg-type]


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [(1,), {1, 2}, {1: 2}, np.float64(1), np.int64(1), Colour.RED, object(), 2**64, -(2**63) - 1, bytearray(b"x")],
)
def test_what_would_not_come_back_as_itself_is_refused_by_path(value: object) -> None:
    with pytest.raises(Invalid, match=r"record\.a\[1\]: expected"):
        encode_record({"a": [0, value]}, 4096)  # type: ignore[list-item]


def test_a_record_has_a_fixed_size_and_a_limit() -> None:
    assert len(encode_record({"cursor": 5}, 256)) == 256
    with pytest.raises(Invalid, match="at most 8 bytes, got 22"):
        encode_record("x" * 21, 16)
    nested: list[object] = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(Invalid, match="32 levels"):
        encode_record(nested, 4096)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [b"", b"1234", bytes(64), b"\xff" * 64, encode_record(5, 64)[:-1] + b"x", pickle.dumps([1])],
)
def test_rubbish_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_record(data)


def test_the_conventional_arrays() -> None:
    assert run_record_spec(256).shape == (256,)
    assert rank_records_spec(4, 256).dims == ((0, "rank"),)
