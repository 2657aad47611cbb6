"""Units of a layout: every chunk once, parts as small as a store lets them be, pieces that are boxes."""

from __future__ import annotations

import math
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.units import Unit, units_of
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.spec.mesh import Mesh
from checkpoint.random_layouts import small_chunks


def layout_of(rows: int, columns: int, num: int, *, has_boxes: bool) -> Layout:
    return Layout(
        mesh=Mesh(tp=num, etp=num),
        arrays=(
            ArraySpec(name="w", dtype="uint16", shape=(rows, num * columns), dims=((1, "tp"),)),
            ArraySpec(name="scalar", dtype="float64", shape=()),
        ),
        sharding="box" if has_boxes else "array",
    )


@given(
    st.builds(layout_of, st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2, 4]), has_boxes=st.booleans()),
    st.sampled_from([1, 32, 100, 1 << 20]),
    st.sampled_from([0, 1, 50, 4096, 9000, 20_000, 1 << 30]),
)
def test_units_hold_every_chunk_once_and_no_more_than_a_part_needs(
    layout: Layout, block_bytes: int, least_bytes: int
) -> None:
    with small_chunks(32):
        units = units_of(layout, block_bytes=block_bytes, least_bytes=lambda _size: least_bytes)
        by_object = sorted(units, key=lambda unit: (unit.array, unit.shard, unit.number))
        found = {key: list(some) for key, some in groupby(by_object, key=lambda unit: (unit.array, unit.shard))}
        assert found.keys() == {
            (position, shard) for position, grid in enumerate(grids(layout)) for shard in range(grid.num_shards)
        }
        for (position, shard), some in found.items():
            grid = grids(layout)[position]
            assert [unit.number for unit in some] == list(range(1, some[0].num_parts + 1))
            pieces = [piece for unit in some for piece in unit.pieces]
            assert [pieces[0].first, *(piece.last for piece in pieces)] == [
                *(piece.first for piece in pieces),
                grid.num_slots,
            ]
            chunks = grid.chunks_of(shard)
            for piece in pieces:
                assert piece.last - piece.first == 1 or piece.num_bytes <= block_bytes
                held = sum(grid.data_bytes(int(chunk)) for chunk in chunks[piece.first : piece.last])
                assert held == piece.num_bytes == math.prod(b - a for a, b in piece.box) * grid.spec.itemsize
            for unit in some[:-1]:
                assert stored_bytes(unit, grid.stride_bytes) >= least_bytes
                last = unit.pieces[-1]
                without_last = stored_bytes(unit, grid.stride_bytes) - (last.last - last.first) * grid.stride_bytes
                assert len(unit.pieces) == 1 or without_last < least_bytes


def stored_bytes(unit: Unit, stride_bytes: int) -> int:
    return (unit.pieces[-1].last - unit.first) * stride_bytes
