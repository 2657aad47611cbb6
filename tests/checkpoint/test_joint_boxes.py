"""Boxes by which two grids of an array are read together: they tile it, and hardly a chunk lies in two of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint.box import Box, num_elements, slices_of
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.joint_boxes import joint_boxes
from behemoth.checkpoint.layout import ArraySpec
from behemoth.checkpoint.reshard import plan_boxes

Shape = tuple[int, ...]


def grid(shape: Shape, chunk: Shape) -> Grid:
    """Of bytes, so that elements and bytes are the same."""
    num = tuple(-(-full // size) for full, size in zip(shape, chunk, strict=True))
    spec = ArraySpec(name="a", dtype="uint8", shape=shape)
    return Grid(spec=spec, chunk_shape=chunk, chunks_per_dim=num, shard_shape=num, cut_dim=0)


def chunks_meeting(side: Grid, box: Box) -> list[int]:
    """The chunks that a reader of a box reads."""
    return [read.chunk for read in plan_boxes(side, 0, [box])]


def times_read(sides: Sequence[Grid], limit_bytes: int) -> list[float]:
    """How often the chunks of each of two sides are read on average."""
    one, two = sides
    boxes = list(joint_boxes(one, two, limit_bytes=limit_bytes))
    met = (Counter(chunk for box in boxes for chunk in chunks_meeting(side, box)) for side in (one, two))
    return [each.total() / side.num_chunks for each, side in zip(met, (one, two), strict=True)]


@st.composite
def grid_pairs(draw: st.DrawFn) -> tuple[Grid, Grid]:
    shape = draw(st.lists(st.integers(1, 12), max_size=3).map(tuple))
    one, two = (grid(shape, tuple(draw(st.integers(1, size)) for size in shape)) for _ in range(2))
    return one, two


@given(grid_pairs(), st.integers(1, 300))
def test_boxes_tile_the_array_and_have_at_most_the_limit_or_the_larger_chunk(
    pair: tuple[Grid, Grid], limit_bytes: int
) -> None:
    one, two = pair
    covered = np.zeros(one.spec.shape, np.int64)
    for box in joint_boxes(one, two, limit_bytes=limit_bytes):
        assert num_elements(box) <= max(limit_bytes, one.payload_bytes, two.payload_bytes)
        covered[slices_of(box)] += 1
    assert (covered == 1).all()


@given(grid_pairs(), st.integers(1, 300))
def test_the_chunks_that_a_box_meets_are_those_that_have_elements_in_it(
    pair: tuple[Grid, Grid], limit_bytes: int
) -> None:
    one, two = pair
    of_element = np.zeros(one.spec.shape, np.int64)
    for chunk in range(one.num_chunks):
        of_element[one.chunk_box(chunk)] = chunk
    for box in joint_boxes(one, two, limit_bytes=limit_bytes):
        assert chunks_meeting(one, box) == sorted({*of_element[slices_of(box)].reshape(-1).tolist()})


@given(grid_pairs())
def test_where_a_common_multiple_fits_no_chunk_is_read_twice(pair: tuple[Grid, Grid]) -> None:
    assert times_read(pair, limit_bytes=math.prod(pair[0].spec.shape)) == [1, 1]


@pytest.mark.parametrize("is_turned", [False, True], ids=["finer first", "coarser first"])
@pytest.mark.parametrize(
    ("fine", "coarse", "limit_bytes", "most"),
    [
        ((4, 25), (20, 25), 1, 1.0),  # five in one, which is larger than the limit
        ((1, 50), (20, 100), 1, 1.0),
        ((7, 100), (9, 100), 3000, 1.25),  # a common multiple would be 63 rows
        ((7, 100), (9, 100), 900, 1.8),  # one chunk of the coarser alone fits: as good as it gets
    ],
)
def test_whole_chunks_of_the_coarser_side_are_read_once_and_the_finer_ones_that_straddle_twice(
    fine: Shape, coarse: Shape, limit_bytes: int, most: float, is_turned: bool
) -> None:
    shape = (1260, 100)
    sides = [grid(shape, fine), grid(shape, coarse)]
    told = times_read(sides[::-1] if is_turned else sides, limit_bytes)
    of_fine, of_coarse = told[::-1] if is_turned else told
    assert of_coarse == 1
    assert 1 <= of_fine <= most


def test_chunks_that_cross_are_read_as_seldom_as_what_may_be_held_allows() -> None:
    sides = grid((64, 4096), (1, 4096)), grid((64, 4096), (64, 64))
    assert times_read(sides, 64 * 4096) == [1, 1]
    assert times_read(sides, 16 * 4096) == [1, 4]
