"""Units of a layout: every chunk once, parts as small as a store lets them be, pieces that are boxes."""

from __future__ import annotations

import math
from itertools import groupby, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.interop.units import UnitPiece, WriteUnit, units_of
from behemoth.checkpoint.layout import Layout
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks


@settings(max_examples=150, deadline=None)
@given(
    layout=layouts(),
    chunk_bytes=CHUNK_BYTES,
    block_bytes=st.sampled_from([1, 40, 300]),
    least_bytes=st.sampled_from([0, 1, 64, 500, 4096, 9000, 20_000]),
)
def test_units_hold_every_slot_once_and_no_more_than_a_part_needs(
    layout: Layout, chunk_bytes: int, block_bytes: int, least_bytes: int
) -> None:
    with small_chunks(chunk_bytes):
        units = units_of(layout, block_bytes=block_bytes, least_bytes=lambda _: least_bytes)
        assert [unit.array for unit in units] == sorted(unit.array for unit in units)
        in_order = sorted(units, key=lambda unit: (unit.array, unit.shard, unit.number))
        objects = {key: list(some) for key, some in groupby(in_order, key=lambda unit: (unit.array, unit.shard))}
        of = grids(layout)
        assert objects.keys() == {(array, shard) for array, grid in enumerate(of) for shard in range(grid.num_shards)}
        for (array, _), of_object in objects.items():
            check_object(of[array], of_object, block_bytes, least_bytes)


def check_object(grid: Grid, units: list[WriteUnit], block_bytes: int, least_bytes: int) -> None:
    assert [(unit.number, unit.num_parts) for unit in units] == [(at, len(units)) for at in range(1, len(units) + 1)]
    pieces = [piece for unit in units for piece in unit.pieces]
    assert (pieces[0].first, pieces[-1].last) == (0, grid.num_slots)
    assert all(one.last == other.first for one, other in pairwise(pieces))
    for piece in pieces:
        assert piece.num_bytes <= max(block_bytes, grid.payload_bytes)
        held_bytes = sum(grid.data_bytes(chunk) for chunk in chunks_of(grid, piece))
        assert (
            held_bytes == piece.num_bytes == math.prod(stop - start for start, stop in piece.box) * grid.spec.itemsize
        )
    for unit in units[:-1]:
        stored_bytes = (unit.pieces[-1].last - unit.first) * grid.stride_bytes
        last_bytes = (unit.pieces[-1].last - unit.pieces[-1].first) * grid.stride_bytes
        assert stored_bytes >= least_bytes
        assert len(unit.pieces) == 1 or stored_bytes - last_bytes < least_bytes


def chunks_of(grid: Grid, piece: UnitPiece) -> list[int]:
    found: list[int] = grid.chunks_of(piece.shard)[piece.first : piece.last].tolist()
    return found
