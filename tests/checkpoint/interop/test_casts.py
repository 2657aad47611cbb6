"""Precision changes as torch makes them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop import casts, cells
from behemoth.checkpoint.interop.casts import FLOAT8, converted, unscaled
from behemoth.checkpoint.interop.cells import Scaling, grid_box, grid_of, largest_of, spread
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


@pytest.mark.parametrize(("chunk_rows", "again"), [(64, []), (100, [6])])
def test_scales_of_blocks_are_found_along_with_the_values(chunk_rows: int, again: list[int]) -> None:
    """Where a block of values ends amid a chunk that has more of its last scales, that chunk is read with it, too."""
    array = np.random.default_rng(7).normal(size=(1200, 128)).astype(np.float32)
    source = chunked(array, (chunk_rows, 128))
    loaded = counted(source)
    made = converted({"w": source}, "float8_e4m3fn", scaling="block")
    middle = 640 if chunk_rows == 64 else 600
    pieces = [read_box(made["w"], (rows, (0, 128))) for rows in ((0, middle), (middle, 1200))]
    scales = read(made["w_scale_inv"])
    assert sorted(loaded) == sorted([*range(-(-1200 // chunk_rows)), *again])
    expected, of_element = by_definition(array, "block")
    np.testing.assert_array_equal(scales, expected)
    stored = np.concatenate(pieces).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert (np.abs(stored * of_element - array) <= np.maximum(np.abs(array) / 16, of_element * 2.0**-10)).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), scaling=st.sampled_from(["tensor", "channel", "block"]))
def test_in_whatever_order_boxes_are_read_they_are_those_of_the_whole(data: st.DataObject, scaling: Scaling) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    array = np.random.default_rng(8).normal(size=shape).astype(np.float32)
    chunk = tuple(data.draw(st.integers(1, size)) for size in shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "BLOCK", data.draw(st.integers(1, 5)))
        patch.setattr(casts, "_MOST_GROWN", data.draw(st.sampled_from([1, 2, 100])))
        patch.setattr(casts, "_BLOCK_BYTES", data.draw(st.sampled_from([1, 16, 1 << 20])))
        whole = {name: read(one) for name, one in converted({"w": chunked(array)}, FLOAT8, scaling=scaling).items()}
        made = converted({"w": chunked(array, chunk)}, FLOAT8, scaling=scaling)
        for _ in range(data.draw(st.integers(1, 6))):
            name = data.draw(st.sampled_from(list(made)))
            ends = [sorted(data.draw(st.sets(st.integers(0, at), min_size=2, max_size=2))) for at in made[name].shape]
            box = tuple((low, high) for low, high in ends)
            part = whole[name][tuple(slice(*one) for one in box)]
            assert read_box(made[name], box).tobytes() == part.tobytes()


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


def by_definition(array: np.ndarray, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    """Scales, and what each element is scaled by, cell after cell in loops."""
    rows, columns = {"tensor": array.shape[-2:], "block": (128, 128)}.get(scaling, (1, array.shape[-1]))
    if scaling == "channel" and array.ndim > 2:
        rows, columns = array.shape[-2], 1
    matrices = array.reshape(-1, *array.shape[-2:])
    grid = (-(-array.shape[-2] // rows), -(-array.shape[-1] // columns))
    scales, of_element = np.zeros((len(matrices), *grid), np.float32), np.zeros(matrices.shape, np.float32)
    for number, matrix in enumerate(matrices):
        for row, column in np.ndindex(*grid):
            cell = (slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns))
            largest = np.abs(matrix[cell]).max() if scaling != "tensor" else np.abs(array).max()
            scales[number, row, column] = largest / np.float32(448) if largest else 1
            of_element[number][cell] = scales[number, row, column]
    shape = (1,) if scaling == "tensor" else (*array.shape[:-2], *grid)
    return scales.reshape(-1)[: np.prod(shape)].reshape(shape), of_element.reshape(array.shape)


@pytest.mark.parametrize("shape", [(300, 129), (128, 256), (3, 5), (2, 130, 140), (2, 3, 7, 4)])
@pytest.mark.parametrize("scaling", ["tensor", "channel", "block"])
def test_scales_of_channels_and_blocks_are_those_of_the_definition_and_come_back(
    shape: tuple[int, ...], scaling: Scaling
) -> None:
    rng = np.random.default_rng(4)
    array = (rng.normal(size=shape) * rng.lognormal(0, 3, size=(*shape[:-1], 1))).astype(np.float32)
    array[..., 0, :] = 0
    chunk = tuple(max(1, size // 3) for size in shape)
    made = converted({"a.weight": chunked(array, chunk)}, "float8_e4m3fn", scaling=scaling)
    suffix = "_scale_inv" if scaling == "block" else "_scale"
    assert list(made) == ["a.weight", f"a.weight{suffix}"]
    scales, of_element = by_definition(array, scaling)
    np.testing.assert_array_equal(read(made[f"a.weight{suffix}"]), scales)
    stored = read(made["a.weight"])
    wanted = torch.from_numpy(array / of_element).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert stored.tobytes() == bits(wanted)
    pieces = [read_box(made["a.weight"], box).tobytes() for box in blocks(made["a.weight"], limit_bytes=100)]
    assert b"".join(pieces) == stored.tobytes()
    parts = {
        "a.weight": chunked(stored, chunk, dtype="float8_e4m3fn"),
        f"a.weight{suffix}": chunked(read(made[f"a.weight{suffix}"])),
    }
    back = unscaled(parts, "float32")
    assert list(back) == ["a.weight"]
    values = read(back["a.weight"])
    np.testing.assert_array_equal(values, stored.astype(np.float32) * of_element)
    # Three bits of fraction: within 1/16 of the value, or half of the smallest step of its own cell.
    assert (np.abs(values - array) <= np.maximum(np.abs(array) / 16, of_element * 2.0**-10)).all()
    pieces = [read_box(back["a.weight"], box).tobytes() for box in blocks(back["a.weight"], limit_bytes=100)]
    assert b"".join(pieces) == values.tobytes()


def test_scales_of_rows_may_have_one_dim() -> None:
    stored = np.array([[1, 2], [3, 4], [5, 6]], ml_dtypes.float8_e4m3fn)
    scale = chunked(np.array([1, 10, 100], np.float32))
    (back,) = unscaled({"w": chunked(stored, dtype="float8_e4m3fn"), "w_scale": scale}, "float32").values()
    np.testing.assert_array_equal(read(back), [[1, 2], [30, 40], [500, 600]])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_cells_of_any_box_are_those_of_the_whole(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    cells = tuple(data.draw(st.integers(1, size + 2)) for size in shape)
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    box = tuple((start, data.draw(st.integers(start + 1, size))) for start, size in zip(starts, shape, strict=True))
    scales = np.arange(np.prod(grid_of(shape, cells)), dtype=np.float32).reshape(grid_of(shape, cells))
    whole_scales = np.empty(shape, np.float32)
    for place in np.ndindex(*shape):
        whole_scales[place] = scales[tuple(at // cell for at, cell in zip(place, cells, strict=True))]
    part = whole_scales[tuple(slice(*one) for one in box)]
    of_box = scales[tuple(slice(*one) for one in grid_box(box, cells))]
    np.testing.assert_array_equal(np.broadcast_to(spread(of_box, box, cells), part.shape), part)
    np.testing.assert_array_equal(largest_of(-part, box, cells), of_box)


def test_float8_without_scales_that_fit_is_refused() -> None:
    stored = chunked(np.ones((2, 3), ml_dtypes.float8_e5m2), dtype="float8_e5m2")
    with pytest.raises(Invalid, match=r"'w' .*: expected floating scales 'w_scale' or 'w_scale_inv', .* got none"):
        unscaled({"w": stored}, "bfloat16")
    wrong = {"w": stored, "w_scale": chunked(np.ones((2, 2), np.float32))}
    with pytest.raises(Invalid, match=r"got 'w_scale' float32\[2, 2\]"):
        unscaled(wrong, "bfloat16")
    one = chunked(np.ones(1, np.float32))
    with pytest.raises(Invalid, match=r"got 'w_scale' float32\[1\] and 'w_scale_inv' float32\[1\]"):
        unscaled({"w": stored, "w_scale": one, "w_scale_inv": one}, "bfloat16")
    with pytest.raises(Invalid, match="got 'float8_e4m3fn'"):
        unscaled({"w": stored}, "float8_e4m3fn")
