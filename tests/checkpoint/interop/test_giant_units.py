"""Units of giant layouts, which are made when they are asked for, are those that a list would have."""

from __future__ import annotations

import pytest

from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.units import Units, units_of
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.spec.mesh import Mesh
from checkpoint.giant_layout import giant
from checkpoint.random_layouts import small_chunks

ALIKE = [ArraySpec(name=f"w{number}", dtype="uint8", shape=(64, 32), dims=((1, "tp"),)) for number in range(3)]
OTHER = ArraySpec(name="z", dtype="float32", shape=(9,))


def units() -> Units:
    layout = Layout(mesh=Mesh(tp=2, etp=2), arrays=(*ALIKE, OTHER), sharding="box")
    return units_of(layout, block_bytes=64, least_bytes=lambda _: 100)


def test_arrays_that_are_cut_alike_have_the_same_units_but_for_their_numbers() -> None:
    with small_chunks(32):
        found = list(units())
        of_array = [[unit for unit in found if unit.array == number] for number in range(4)]
        assert [len(some) for some in of_array] == [*3 * [len(of_array[0])], 1]
        assert found == [unit for some in of_array for unit in some]
        for number in (1, 2):
            for unit, first in zip(of_array[number], of_array[0], strict=True):
                assert (unit.shard, unit.number, unit.num_bytes) == (first.shard, first.number, first.num_bytes)
                assert {piece.array for piece in unit.pieces} == {number}
                assert [piece[1:] for piece in unit.pieces] == [piece[1:] for piece in first.pieces]


def test_a_unit_is_the_same_however_it_is_asked_for() -> None:
    with small_chunks(32):
        every = units()
        found = list(every)
        assert [every[at] for at in range(len(every))] == found
        assert (every[-1], every[3:9:2], every[-4:]) == (found[-1], found[3:9:2], found[-4:])
        assert list(every.sizes()) == [unit.num_bytes for unit in found]
        for unit in found:
            assert every.num_parts(unit.array, unit.shard) == unit.num_parts
        with pytest.raises(IndexError):
            every[len(found)]


def test_the_units_of_24_terabytes_are_planned_without_an_object_for_each() -> None:
    layout = giant()
    every = units_of(layout, block_bytes=8 << 20, least_bytes=lambda _: 0)
    assert len(every) > 3_000_000
    assert sum(every.sizes()) == sum(array.num_bytes for array in layout.arrays)
    made = {id(unit) for kind in every._kinds for unit in kind.units}
    assert len(made) < len(every) // 20
    last = every[-1]
    assert (last.array, last.pieces[-1].last) == (len(layout.arrays) - 1, grids(layout)[-1].num_slots)
