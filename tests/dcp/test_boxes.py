"""Boxes of any cut on our grid: every byte of every chunk in one run, whatever the boxes are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given

from behemoth.checkpoint.box import Box
from behemoth.checkpoint.coverage import Extents, check_coverage
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.dcp.boxes import array_spec, ends_array, mesh_of, runs_of
from dcp.cuts import partitions


def layout_of(shape: tuple[int, ...], boxes: Sequence[Box], dtype: str = "float32") -> Layout:
    return Layout(mesh=mesh_of(len(boxes)), arrays=(array_spec("a", dtype, shape, boxes),))


@given(partitions())
def test_runs_of_boxes_cover_every_chunk_exactly_once(cut: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = cut
    layout = layout_of(shape, boxes)
    grid = grids(layout)[0]
    rows = [(0, run.chunk, run.offset, run.length) for box in boxes for run in runs_of(grid, box)]
    assert check_coverage(layout, Extents.of(rows)) is None
    assert sum(ends_array(grid, box) for box in boxes) == 1


@given(partitions())
def test_runs_put_every_element_where_the_chunk_wants_it(cut: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = cut
    grid = grids(layout_of(shape, boxes))[0]
    logical = np.arange(math.prod(shape), dtype="<f4").reshape(shape)
    chunks = [np.full(grid.payload_bytes, 255, dtype=np.uint8) for _ in range(grid.num_chunks)]
    for box in boxes:
        local = logical[tuple(slice(*part) for part in box)]
        for run in runs_of(grid, box):
            data = np.ascontiguousarray(local[run.part]).reshape(-1).view(np.uint8)
            assert data.nbytes == run.length
            chunks[run.chunk][run.offset : run.offset + run.length] = data
    for number, chunk in enumerate(chunks):
        expected = np.ascontiguousarray(logical[grid.chunk_box(number)]).tobytes()
        assert chunk[: len(expected)].tobytes() == expected


def num_runs(grid: Grid, boxes: Sequence[Box]) -> int:
    return sum(1 for box in boxes for _ in runs_of(grid, box))


def test_a_column_cut_meets_each_of_its_chunks_in_one_run() -> None:
    shape = (4096, 8192)
    boxes = [((0, 4096), (low, low + 2048)) for low in range(0, 8192, 2048)]
    grid = grids(layout_of(shape, boxes))[0]
    assert num_runs(grid, boxes) == grid.num_chunks == 16


def test_a_row_cut_leaves_the_grid_as_it_is_and_shares_chunks_at_its_borders() -> None:
    shape = (4099, 4096)
    boxes = [((low, min(low + 1025, 4099)), (0, 4096)) for low in range(0, 4099, 1025)]
    whole = grids(layout_of(shape, [((0, 4099), (0, 4096))]))[0]
    grid = grids(layout_of(shape, boxes))[0]
    assert grid.chunk_shape == whole.chunk_shape
    assert num_runs(grid, boxes) <= grid.num_chunks + len(boxes) - 1
