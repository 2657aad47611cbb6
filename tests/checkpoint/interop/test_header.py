"""Heads of safetensors files: what the library makes of ours, and that rubbish is refused in words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.interop.header import (
    DTYPE_NAMES,
    MAX_HEADER_BYTES,
    HeadTensor,
    decode_header,
    decode_length,
    encode_header,
)
from behemoth.spec.safetensors_header import LENGTH_BYTES

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "U8", "shape": [2, 2], "data_offsets": [8, 12]},
}


def decoded(document: object, data_bytes: int = 12) -> tuple[HeadTensor, ...]:
    return decode_header(json.dumps(document).encode(), source="x.safetensors", data_bytes=data_bytes)


def test_a_head_is_read_back_as_it_was_written_and_data_begins_aligned() -> None:
    tensors = (
        HeadTensor(name="é", dtype="float32", shape=(2, 3), offset_bytes=0),
        HeadTensor(name="b", dtype="bfloat16", shape=(), offset_bytes=24),
    )
    head = encode_header(tensors, {"format": "pt"})
    assert len(head) % 8 == 0
    length = decode_length(head[:LENGTH_BYTES], source="x", file_bytes=len(head) + 26)
    assert length == len(head) - LENGTH_BYTES
    assert decode_header(head[LENGTH_BYTES:], source="x", data_bytes=26) == tensors


def test_the_librarys_own_heads_are_read() -> None:
    data = safetensors.numpy.save({"w": np.ones((2, 3), np.float32), "n": np.ones(5, np.int8)}, metadata={"a": "b"})
    length = decode_length(data[:8], source="x", file_bytes=len(data))
    tensors = decode_header(data[8 : 8 + length], source="x", data_bytes=len(data) - 8 - length)
    assert {(one.name, one.dtype, one.shape) for one in tensors} == {("w", "float32", (2, 3)), ("n", "int8", (5,))}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"b": {"dtype": "U8", "shape": [2, 2], "data_offsets": [7, 11]}}, "'b': expected to begin at byte 8, got 7"),
        ({"b": {"dtype": "U8", "shape": [2, 2], "data_offsets": [9, 13]}}, "leaves bytes of nobody"),
        ({"b": {"dtype": "U8", "shape": [4, 2], "data_offsets": [8, 16]}}, "expected 16 bytes of tensors"),
        ({"b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 12]}}, r"expected 3 bytes for uint8\[3\], got 4"),
        ({"b": {"dtype": "U8", "shape": [4], "data_offsets": [12, 8]}}, "expected 4 bytes .* got -4"),
        ({"b": {"dtype": "U8", "shape": [4]}}, "missing required field `data_offsets`"),
        ({"b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12], "x": 1}}, "unknown field `x`"),
        ({"b": {"dtype": "U8", "shape": [-4], "data_offsets": [8, 12]}}, "`int` >= 0"),
        ({"b": {"dtype": "U8", "shape": [1] * 33, "data_offsets": [8, 12]}}, "length <= 32"),
        ({"__metadata__": {"a": 1}}, "got: expected `str`, got `int`"),
        ({"b": []}, "got: expected `object`, got `array`"),
    ],
)
def test_a_head_that_is_wrong_is_refused_saying_where(change: dict[str, Any], text: str) -> None:
    with pytest.raises(Corrupt, match=f"x.safetensors: .*{text}"):
        decoded({**GOOD, **change})


def test_the_good_head_is_taken_with_an_empty_tensor_between() -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
    assert [one.name for one in decoded({**GOOD, "e": empty})] == ["a", "e", "b"]


def test_a_name_that_is_there_twice_is_refused() -> None:
    entry = '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
    with pytest.raises(Corrupt, match="expected each name once, got 'a' again"):
        decode_header(f'{{"a":{entry},"a":{entry}}}'.encode(), source="x", data_bytes=4)


def test_a_dtype_that_we_do_not_know_is_invalid_and_lists_those_that_we_do() -> None:
    with pytest.raises(Invalid, match=r"tensor 'b': expected one of BOOL, .* got dtype 'F4'"):
        decoded({**GOOD, "b": {"dtype": "F4", "shape": [4], "data_offsets": [8, 12]}})


@pytest.mark.parametrize("length", [0, 1, 13, MAX_HEADER_BYTES + 1, (1 << 64) - 1])
def test_a_length_that_the_file_cannot_hold_is_refused_before_anything_is_read(length: int) -> None:
    with pytest.raises(Corrupt, match=rf"expected a header of 2 .. 12 bytes, got {length} in a file of 20 bytes"):
        decode_length(length.to_bytes(8, "little"), source="x", file_bytes=20)


@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_file_without_room_for_a_head_is_refused(size: int) -> None:
    with pytest.raises(Corrupt, match=f"expected at least 10 bytes, got {size}"):
        decode_length(bytes(min(size, 8)), source="x", file_bytes=size)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000])
def test_deep_nesting_is_refused(body: bytes) -> None:
    with pytest.raises(Corrupt, match="expected a safetensors header"):
        decode_header(body, source="x", data_bytes=0)


def test_a_dtype_without_a_name_there_is_refused_on_the_way_out() -> None:
    with pytest.raises(Invalid, match="'c': expected a dtype that safetensors knows, got complex128"):
        encode_header([HeadTensor(name="c", dtype="complex128", shape=(1,), offset_bytes=0)], {})


def test_a_tensor_that_is_called_like_the_metadata_is_refused() -> None:
    with pytest.raises(Invalid, match="'__metadata__': expected another name"):
        encode_header([HeadTensor(name="__metadata__", dtype="int8", shape=(1,), offset_bytes=0)], {})


names = st.sampled_from(["a", "b", "__metadata__", "é", ""])
numbers = st.sampled_from([-1, 0, 1, 2, 4, 8, 12, 1 << 62, 1 << 64, 1 << 200])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_NAMES.values(), "F4", "", None]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
)
anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(
    body=st.binary(max_size=200)
    | st.dictionaries(names, entries | anything, max_size=3).map(lambda document: json.dumps(document).encode()),
    data_bytes=st.integers(0, 20),
)
def test_rubbish_is_corrupt_or_invalid_and_nothing_else(body: bytes, data_bytes: int) -> None:
    try:
        tensors = decode_header(body, source="x", data_bytes=data_bytes)
    except (Corrupt, Invalid):
        return
    assert sum(one.num_bytes for one in tensors) == data_bytes
