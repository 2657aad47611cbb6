"""Precision changes as torch makes them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.casts import converted, unscaled
from behemoth.checkpoint.interop.tensors import blocks, read_box
from checkpoint.interop.tensor_trees import chunked, counted, read

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, 1.0, 1.00390625, 1.01171875, -1.00390625, 3.4e38, 1e-40, 65520.0, 6e-8], np.float32
)
"""Zeros, infinities, ties to even in bfloat16 both ways, what overflows bfloat16 and float16, and tiny values."""


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_float32_is_rounded_as_torch_rounds(name: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    array = np.concatenate([SPECIAL, rng.integers(0, 1 << 32, 5000, dtype=np.uint32).view(np.float32)])
    array = array[~np.isnan(array)]
    (tensor,) = converted({"w": chunked(array, (100,))}, name).values()
    assert tensor.dtype == name
    assert read(tensor).tobytes() == bits(torch.from_numpy(array).to(dtype))


def test_a_nan_stays_one() -> None:
    (tensor,) = converted({"w": chunked(np.array([np.nan, 1], np.float32))}, "bfloat16").values()
    assert np.isnan(read(tensor).astype(np.float32)).tolist() == [True, False]


@pytest.mark.parametrize("source", ["float32", "bfloat16"])
def test_float8_has_one_scale_and_equals_what_torch_makes_of_it(source: str) -> None:
    dtype = np.float32 if source == "float32" else ml_dtypes.bfloat16
    array = np.random.default_rng(2).normal(0, 3, (40, 16)).astype(dtype)
    made = converted({"a.weight": chunked(array, (7, 16), dtype=source)}, "float8_e4m3fn")
    assert {name: (one.dtype, one.shape) for name, one in made.items()} == {
        "a.weight": ("float8_e4m3fn", (40, 16)),
        "a.weight_scale": ("float32", (1,)),
    }
    exact = array.astype(np.float32)
    scale = read(made["a.weight_scale"])
    assert scale == np.abs(exact).max() / np.float32(448)
    stored = read(made["a.weight"])
    wanted = (torch.from_numpy(exact) / torch.from_numpy(scale)).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert stored.tobytes() == bits(wanted)
    assert np.abs(stored.astype(np.float32)).max() == 448
    # Three bits of fraction: within 1/16 of the value, or half of the smallest step.
    error = np.abs(stored.astype(np.float32) * scale - exact)
    assert (error <= np.maximum(np.abs(exact) / 16, scale * 2.0**-10)).all()


def test_small_and_named_tensors_stay_bfloat16_in_a_float8_export_and_integers_stay_as_they_are() -> None:
    made = converted(
        {
            "norm": chunked(np.ones(3, np.float32)),
            "router": chunked(np.ones((2, 2), np.float32)),
            "w": chunked(np.ones((2, 2), np.float32)),
            "count": chunked(np.ones((2, 2), np.int64)),
        },
        "float8_e4m3fn",
        is_unscaled=lambda name: name == "router",
    )
    assert {name: tensor.dtype for name, tensor in made.items()} == {
        "norm": "bfloat16",
        "router": "bfloat16",
        "w": "float8_e4m3fn",
        "w_scale": "float32",
        "count": "int64",
    }


def test_a_tensor_of_zeros_has_the_scale_one() -> None:
    made = converted({"w": chunked(np.zeros((2, 2), np.float32))}, "float8_e4m3fn")
    assert read(made["w_scale"]) == 1
    assert not read(made["w"]).astype(np.float32).any()


def test_values_too_small_for_a_scale_of_their_own_become_no_nan() -> None:
    values = np.array([[1e-45, 0.0], [2e-44, -1e-44]], np.float32)
    made = converted({"w": chunked(values)}, "float8_e4m3fn")
    assert read(made["w_scale"]) == np.finfo(np.float32).tiny
    assert np.isfinite(read(made["w"]).astype(np.float32)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_no_scale_can_hold_is_refused_by_name(bad: float) -> None:
    made = converted({"w": chunked(np.array([[1, bad]], np.float32))}, "float8_e4m3fn")
    with pytest.raises(Invalid, match="tensor 'w': expected finite values"):
        read(made["w"])


def test_a_scale_is_computed_once() -> None:
    source = chunked(np.ones((4, 4), np.float32), (1, 4))
    made = converted({"w": source}, "float8_e4m3fn")
    assert read(made["w_scale"]) == np.float32(1 / 448)
    loaded = counted(source)
    for box in blocks(made["w"], limit_bytes=4):
        read_box(made["w"], box)
    assert loaded == [0, 1, 2, 3]


def test_names_that_collide_and_unknown_precisions_are_refused() -> None:
    one = chunked(np.ones((2, 2), np.float32))
    with pytest.raises(Invalid, match="'w_scale': expected that name to be free"):
        converted({"w": one, "w_scale": one}, "float8_e4m3fn")
    with pytest.raises(Invalid, match="got 'int8'"):
        converted({"w": one}, "int8")


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_float8_comes_back_as_stored_times_scale(name: str, dtype: torch.dtype) -> None:
    array = np.random.default_rng(3).normal(0, 3, (9, 5)).astype(np.float32)
    made = converted({"w": chunked(array, (2, 5)), "n": chunked(array[0])}, "float8_e4m3fn")
    stored = {key: torch.from_numpy(read(one).astype(np.float32)) for key, one in made.items()}
    back = unscaled({**made, "count": chunked(np.ones(2, np.int64))}, name)
    assert {key: one.dtype for key, one in back.items()} == {"w": name, "n": name, "count": "int64"}
    assert read(back["w"]).tobytes() == bits((stored["w"] * stored["w_scale"]).to(dtype))
    assert read(back["n"]).tobytes() == bits(stored["n"].to(dtype))


def test_float8_without_a_scale_of_one_element_is_refused() -> None:
    stored = chunked(np.ones((2, 2), ml_dtypes.float8_e5m2), dtype="float8_e5m2")
    with pytest.raises(Invalid, match="'w': expected a scale of one floating element, 'w_scale', got none"):
        unscaled({"w": stored}, "bfloat16")
    with pytest.raises(Invalid, match=r"got float32\[2, 1\]"):
        unscaled({"w": stored, "w_scale": chunked(np.ones((2, 1), np.float32))}, "bfloat16")
    with pytest.raises(Invalid, match="got 'float8_e4m3fn'"):
        unscaled({"w": stored}, "float8_e4m3fn")
