"""How imports and reshards write a checkpoint: in units, which are parts of its objects, each made of pieces.

A piece is a box of an array: what is read from the source at a time. A unit is one or more pieces: what is written to
the store at a time. Both are closed forms of the layout, so that a second call, or another machine, has the same ones.
Pure. Neighbours: `unit_writer`, `grid` (the geometry).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple, overload

import numpy as np

from behemoth.checkpoint.box import Box, num_elements
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.interop.tensors import blocks_of
from behemoth.checkpoint.layout import Layout


class UnitPiece(NamedTuple):
    """Slots [first, last) of a shard of an array, which counts in the layout's order: what is read at a time. `box` is
    what they hold, and `num_bytes` its size."""

    array: int
    shard: int
    first: int
    last: int
    box: Box
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteUnit:
    """Pieces that follow one another in a shard: what is written at a time. It is part `number`, from 1, of the
    `num_parts` of its object."""

    array: int
    shard: int
    number: int
    num_parts: int
    pieces: tuple[UnitPiece, ...]

    @property
    def first(self) -> int:
        """Its first slot."""
        return self.pieces[0].first

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)


class _Kind(NamedTuple):
    """Units that all arrays of one geometry have, but for the array's number, which is 0 here."""

    units: list[WriteUnit]
    sizes: Ints
    num_parts: dict[int, int]
    """By shard, the number of its units."""


class Units(Sequence[WriteUnit]):
    """Immutable; a unit is made when it is asked for. A model has thousands of arrays of some dozens of geometries, and
    a checkpoint of 24 TB millions of units, which as objects take gigabytes."""

    def __init__(self, kinds: Sequence[_Kind]) -> None:
        """`kinds`: of each array."""
        self._kinds = kinds
        self._firsts = np.cumsum([0, *(len(kind.units) for kind in kinds)])

    def sizes(self) -> array[int]:
        """The bytes of each."""
        found: array[int] = array("q")
        for kind in self._kinds:
            found.frombytes(kind.sizes.tobytes())
        return found

    def num_parts(self, position: int, shard: int) -> int:
        """How many units the shard of the array at `position` has."""
        return self._kinds[position].num_parts[shard]

    def first(self, position: int) -> int:
        """The number of an array's first unit."""
        return int(self._firsts[position])

    def of_geometry(self, position: int) -> Sequence[WriteUnit]:
        """The units of the array at `position`, but with array number 0: one list shared by all arrays of its
        geometry."""
        return self._kinds[position].units

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __iter__(self) -> Iterator[WriteUnit]:
        for position, kind in enumerate(self._kinds):
            for unit in kind.units:
                yield _of_array(unit, position)

    @overload
    def __getitem__(self, at: int) -> WriteUnit: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[WriteUnit]: ...
    def __getitem__(self, at: int | slice) -> WriteUnit | Sequence[WriteUnit]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        position = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return _of_array(self._kinds[position].units[number - int(self._firsts[position])], position)


def units_of(
    layout: Layout, *, block_bytes: int, least_bytes: Callable[[int], int], by_chunk: Set[int] = frozenset()
) -> Units:
    """The units of all arrays of `layout`, array by array; together they are every chunk.

    A piece has at most `block_bytes`, or is one chunk where that is larger; in the arrays `by_chunk` each piece is one
    chunk. Each unit but the last of an object has at least `least_bytes(bytes of the object)`. Where an array has
    several objects, units are in order of their first element, whatever their object: neighbours come from the same
    bytes."""
    known: dict[object, _Kind] = {}
    kinds: list[_Kind] = []
    for position, grid in enumerate(grids(layout)):
        limit_bytes = 1 if position in by_chunk else block_bytes
        geometry = (grid.spec.shape, grid.spec.itemsize, grid.chunk_shape, grid.shard_shape, limit_bytes)
        if geometry not in known:
            known[geometry] = _kind(grid, limit_bytes, least_bytes(grid.file_bytes))
        kinds.append(known[geometry])
    return Units(kinds)


def ranges_of(numbers: Sequence[int]) -> list[range]:
    """Ascending numbers, those that follow one another as a range."""
    found: list[range] = []
    for _, some in groupby(enumerate(numbers), lambda one: one[1] - one[0]):
        first, *rest = (number for _, number in some)
        found.append(range(first, first + len(rest) + 1))
    return found


def _kind(grid: Grid, block_bytes: int, least_bytes: int) -> _Kind:
    of_shards = [_units(grid, shard, block_bytes, least_bytes) for shard in range(grid.num_shards)]
    units = sorted((unit for units in of_shards for unit in units), key=lambda unit: _place(grid, unit))
    sizes = np.array([unit.num_bytes for unit in units], dtype=np.int64)
    return _Kind(units, sizes, {shard: len(units) for shard, units in enumerate(of_shards)})


def _of_array(unit: WriteUnit, position: int) -> WriteUnit:
    return replace(unit, array=position, pieces=tuple(piece._replace(array=position) for piece in unit.pieces))


def _units(grid: Grid, shard: int, block_bytes: int, least_bytes: int) -> list[WriteUnit]:
    groups: list[list[UnitPiece]] = []
    filled_bytes = least_bytes
    for piece in _pieces(grid, shard, block_bytes):
        if not groups or filled_bytes >= least_bytes:
            groups.append([])
            filled_bytes = 0
        groups[-1].append(piece)
        filled_bytes += (piece.last - piece.first) * grid.stride_bytes
    return [
        WriteUnit(array=0, shard=shard, number=number, num_parts=len(groups), pieces=tuple(pieces))
        for number, pieces in enumerate(groups, start=1)
    ]


def _pieces(grid: Grid, shard: int, block_bytes: int) -> Iterator[UnitPiece]:
    """Boxes of the shard's chunks that follow one another in their C order."""
    at = np.unravel_index(shard, grid.shards_per_dim) if grid.shards_per_dim else ()
    begins = [int(index) * width for index, width in zip(at, grid.shard_shape, strict=True)]
    first = 0
    for chunks in blocks_of(grid.shard_shape, grid.payload_bytes, limit_bytes=block_bytes, grain=lambda _: 1):
        box = tuple(
            ((begin + start) * size, min((begin + stop) * size, full))
            for begin, (start, stop), size, full in zip(begins, chunks, grid.chunk_shape, grid.spec.shape, strict=True)
        )
        last = first + num_elements(chunks)
        num_bytes = num_elements(box) * grid.spec.itemsize
        yield UnitPiece(0, shard, first, last, box, num_bytes)
        first = last


def _place(grid: Grid, unit: WriteUnit) -> int:
    """The position of the unit's first element in C order of the array."""
    place = 0
    for (start, _), size in zip(unit.pieces[0].box, grid.spec.shape, strict=True):
        place = place * size + start
    return place
