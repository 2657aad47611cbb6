"""How a checkpoint that nobody trains is written: in units, which are parts of its objects, each made of pieces.

A piece is a box of an array, so that whatever gives its elements is asked for a box; a unit is what goes to the store
at once. Both are closed forms of the layout, so that a second call, or another machine, has the same ones. Pure.
Neighbours: `unit_writer`, `grid` (the geometry).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from behemoth.checkpoint.boxes import Box
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.interop.tensors import blocks_of
from behemoth.checkpoint.layout import Layout


class Piece(NamedTuple):
    """Slots [first, last) of a shard of an array, which counts in the layout's order: what is read at a time. `box` is
    what they hold, and `num_bytes` its size."""

    array: int
    shard: int
    first: int
    last: int
    box: Box
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Pieces that follow one another in a shard: what is written at a time. It is part `number`, from 1, of the
    `num_parts` of its object."""

    array: int
    shard: int
    number: int
    num_parts: int
    pieces: tuple[Piece, ...]

    @property
    def first(self) -> int:
        """Its first slot."""
        return self.pieces[0].first

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)


def units_of(layout: Layout, *, block_bytes: int, least_bytes: Callable[[int], int]) -> list[Unit]:
    """Every chunk of every array, array by array. Pieces have at most `block_bytes`, or one chunk; units but the last
    of an object at least what `least_bytes` asks for an object of that size. Where several objects share an array,
    units of the same rows stand side by side, whatever their objects: they come from the same bytes."""
    found: list[Unit] = []
    for position, grid in enumerate(grids(layout)):
        least = least_bytes(grid.file_bytes)
        of_array = [
            unit for shard in range(grid.num_shards) for unit in _units(position, grid, shard, block_bytes, least)
        ]
        found += sorted(of_array, key=lambda unit: _place(grid, unit))
    return found


def _units(position: int, grid: Grid, shard: int, block_bytes: int, least_bytes: int) -> list[Unit]:
    groups: list[list[Piece]] = []
    filled_bytes = least_bytes
    for piece in _pieces(position, grid, shard, block_bytes):
        if not groups or filled_bytes >= least_bytes:
            groups.append([])
            filled_bytes = 0
        groups[-1].append(piece)
        filled_bytes += (piece.last - piece.first) * grid.stride_bytes
    return [
        Unit(array=position, shard=shard, number=number, num_parts=len(groups), pieces=tuple(pieces))
        for number, pieces in enumerate(groups, start=1)
    ]


def _pieces(position: int, grid: Grid, shard: int, block_bytes: int) -> Iterator[Piece]:
    """Boxes of the shard's chunks that follow one another in their C order."""
    at = np.unravel_index(shard, grid.shards_per_dim) if grid.shards_per_dim else ()
    begins = [int(index) * width for index, width in zip(at, grid.shard_shape, strict=True)]
    first = 0
    for chunks in blocks_of(grid.shard_shape, grid.payload_bytes, limit_bytes=block_bytes, grain=lambda _: 1):
        box = tuple(
            ((begin + start) * size, min((begin + stop) * size, full))
            for begin, (start, stop), size, full in zip(begins, chunks, grid.chunk_shape, grid.spec.shape, strict=True)
        )
        last = first + math.prod(stop - start for start, stop in chunks)
        num_bytes = math.prod(stop - start for start, stop in box) * grid.spec.itemsize
        yield Piece(position, shard, first, last, box, num_bytes)
        first = last


def _place(grid: Grid, unit: Unit) -> int:
    """Of the unit's first element in the array."""
    place = 0
    for (start, _), size in zip(unit.pieces[0].box, grid.spec.shape, strict=True):
        place = place * size + start
    return place
