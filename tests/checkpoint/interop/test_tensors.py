"""Lazy tensors give what numpy would: any box of any tree of views, and blocks that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.export_plan import Tile
from behemoth.checkpoint.interop.reshaped import Flattened, Unflattened
from behemoth.checkpoint.interop.tensors import Tensor, blocks, blocks_of, read_box, tiles, whole
from behemoth.checkpoint.interop.views import Concatenated, Permuted, Stacked, unstack
from checkpoint.interop.tensor_trees import chunked, counted, trees


@settings(max_examples=200, deadline=None)
@given(tree=trees(), data=st.data())
def test_any_box_of_any_tree_of_views_is_what_numpy_gives(tree: tuple[Tensor, np.ndarray], data: st.DataObject) -> None:
    tensor, array = tree
    assert tensor.shape == array.shape
    np.testing.assert_array_equal(read_box(tensor, whole(tensor)), array)
    box = []
    for size in array.shape:
        start = data.draw(st.integers(0, size - 1))
        box.append((start, data.draw(st.integers(start + 1, size))))
    np.testing.assert_array_equal(read_box(tensor, tuple(box)), array[tuple(slice(*part) for part in box)])


@settings(max_examples=200, deadline=None)
@given(tree=trees(), limit_bytes=st.integers(1, 200))
def test_blocks_follow_one_another_in_c_order(tree: tuple[Tensor, np.ndarray], limit_bytes: int) -> None:
    tensor, array = tree
    data = [read_box(tensor, box).tobytes() for box in blocks(tensor, limit_bytes=limit_bytes)]
    assert b"".join(data) == array.tobytes()
    assert max(map(len, data)) <= max(limit_bytes, array.itemsize)


def test_blocks_end_at_the_ends_of_chunks_where_they_can() -> None:
    tensor = chunked(np.zeros((10, 4), np.uint16), (3, 4))
    assert [box[0] for box in blocks(tensor, limit_bytes=8 * 7)] == [(0, 6), (6, 10)]
    assert [box[0] for box in blocks(tensor, limit_bytes=8 * 2)] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


@settings(max_examples=200, deadline=None)
@given(tree=trees(), limit_bytes=st.integers(1, 200))
def test_tiles_cover_a_tensor_once_and_each_knows_where_its_runs_lie_in_a_file(
    tree: tuple[Tensor, np.ndarray], limit_bytes: int
) -> None:
    tensor, array = tree
    file = bytearray(7 + array.nbytes)
    written = 0
    for box in tiles(tensor, limit_bytes=limit_bytes):
        data = read_box(tensor, box).tobytes()
        assert len(data) <= max(limit_bytes, array.itemsize)
        begins, run_bytes = Tile(tensor, box, 7).runs()
        assert len(begins) * run_bytes == len(data)
        for number, begin in enumerate(begins):
            file[begin : begin + run_bytes] = data[number * run_bytes : (number + 1) * run_bytes]
        written += len(data)
    assert written == array.nbytes
    assert bytes(file[7:]) == array.tobytes()


@pytest.mark.parametrize("limit_bytes", [36, 48, 100, 1000])
def test_tiles_of_a_transposed_tensor_load_each_chunk_once(limit_bytes: int) -> None:
    tensor = chunked(np.arange(20 * 12, dtype=np.uint16).reshape(20, 12), (3, 6))
    loaded = counted(tensor)
    turned = Permuted(inner=tensor, order=(1, 0))
    for box in tiles(turned, limit_bytes=limit_bytes):
        assert read_box(turned, box).nbytes <= limit_bytes
    assert sorted(loaded) == list(range(7 * 2))


def test_a_long_row_is_cut() -> None:
    assert list(blocks_of((2, 8), 2, limit_bytes=6, grain=lambda _: 1)) == [
        ((row, row + 1), (start, min(start + 3, 8))) for row in range(2) for start in (0, 3, 6)
    ]


def test_a_read_touches_only_the_chunks_of_its_box() -> None:
    tensor = chunked(np.arange(40, dtype=np.uint16).reshape(10, 4), (2, 4))
    loaded = counted(tensor)
    read_box(tensor, ((3, 6), (0, 1)))
    assert loaded == [1, 2]


def test_a_reshaped_tensor_is_read_by_what_it_needs_and_in_place() -> None:
    """Experts one behind another, as [E x D, F]: rows of two of three experts touch those two alone."""
    stacked = chunked(np.arange(3 * 4 * 2, dtype=np.uint16).reshape(3, 4, 2), (1, 4, 2))
    flat = Flattened(inner=stacked, dim=0, num_dims=2)
    assert (flat.grain(0), flat.grain(1)) == (4, 2)
    loaded = counted(stacked)
    np.testing.assert_array_equal(read_box(flat, ((6, 11), (0, 2))).reshape(-1), np.arange(12, 22))
    assert loaded == [1, 2]
    back = Unflattened(inner=flat, dim=0, sizes=(3, 4))
    assert [back.grain(dim) for dim in range(3)] == [1, 4, 2]
    loaded.clear()
    np.testing.assert_array_equal(read_box(back, ((1, 2), (0, 4), (0, 2))).reshape(-1), np.arange(8, 16))
    assert loaded == [1]


def test_views_that_do_not_fit_are_refused() -> None:
    small, other = chunked(np.zeros((2, 3), np.uint16)), chunked(np.zeros((2, 3), np.float32))
    taller = chunked(np.zeros((3, 3), np.uint16))
    for make, text in (
        (lambda: Permuted(inner=small, order=(0, 0)), r"permute \[0, 0\]: expected each dim of shape \(2, 3\) once"),
        (lambda: Concatenated(parts=(small, other), dim=0), r"expected parts like uint16\[2, 3\], got float32\[2, 3\]"),
        (lambda: Concatenated(parts=(small, taller), dim=1), r"expected parts like uint16\[2, 3\], got uint16\[3, 3\]"),
        (lambda: Concatenated(parts=(small, small), dim=2), "concat: expected a dim below 2, got 2"),
        (lambda: Stacked(parts=(small, taller), dim=0), r"got uint16\[3, 3\]"),
        (lambda: unstack(small, 2), "unstack: expected a dim below 2, got 2"),
        (
            lambda: Flattened(inner=small, dim=1, num_dims=2),
            r"expected dims below 2 of shape \[2, 3\], got 2 from 1 on",
        ),
        (lambda: Unflattened(inner=small, dim=1, sizes=(2, 2)), r"expected sizes whose product .* got \[2, 2\]"),
    ):
        with pytest.raises(Invalid, match=text):
            make()
