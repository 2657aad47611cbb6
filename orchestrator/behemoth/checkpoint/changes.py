"""The arithmetic of a converting restore: from elements of a chunk to elements in place, and the scales for that.

Elementwise, so that whatever part of a chunk a rank holds, the result is that of the whole logical array, bit for bit.
Only scales depend on more than one element: they are computed first, over whole blocks, even where the rank holds only
a part of a block. Pure computation on memory. Neighbours: `conversion` (what is asked for), `precision` (the rounding),
`reshard` (plans these), `reshard_reader` (runs them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.conversion import Conversion, HighBits, Joined, LowBits, ScaledDown, ScaledUp
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.precision import Floats, Values, as_float32, round_into, scale_down

Elements = npt.NDArray[np.void]
"""Raw elements, one void item each; their meaning is a name of `layout.DTYPES`."""
_HALVES = np.dtype([("low", "<u2"), ("high", "<u2")])
_BLOCK_ELEMENTS = 1 << 18
"""Elements that are converted at a time where scales are needed: bounds the intermediate float32 arrays to some MiB."""


class Scales(NamedTuple):
    """Which scales: those of a saved array of values, one for each `block` of its elements per dim.

    `saved` is the position of the array in the checkpoint that holds them; None: to be computed for type `dtype` from
    the values at position `values`.
    """

    values: int
    block: tuple[int, ...]
    dtype: str
    saved: int | None = None

    def box(self, elements: Box) -> Box:
        """The box of blocks that a box of elements meets."""
        return tuple((low // size, -(-high // size)) for (low, high), size in zip(elements, self.block, strict=True))

    def stored(self, blocks: Box, num_dims: int) -> Box:
        """The box of these blocks in an array of `num_dims` dims that holds their scales; a single scale for the whole
        tensor may be stored with any number of dims."""
        return blocks if len(blocks) == num_dims else ((0, 1),) * num_dims

    def elements(self, blocks: Box, shape: tuple[int, ...]) -> Box:
        """All elements of these blocks."""
        return tuple(
            (low * per_scale, min(high * per_scale, size))
            for (low, high), per_scale, size in zip(blocks, self.block, shape, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTable:
    """The values of the scales of a box of blocks."""

    scales: Scales
    box: Box
    values: Floats
    """In the shape of the box."""

    def over(self, begin: Sequence[int], shape: tuple[int, ...]) -> Floats:
        """The scale of each element of the box that begins there; with one block, a single number."""
        rows = [
            (start + np.arange(size)) // per_scale - low
            for start, size, per_scale, (low, _) in zip(begin, shape, self.scales.block, self.box, strict=True)
        ]
        if all(row[0] == row[-1] for row in rows):
            rows = [row[:1] for row in rows]
        found = self.values
        for dim, row in enumerate(rows):
            found = found.take(row, axis=dim)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What turns elements of one saved array into those of a slab."""

    conversion: Conversion
    part: str
    """The saved array, by name: `Joined` has two."""
    source: str
    target: str
    """Types of `DTYPES`."""
    low: tuple[int, ...]
    """Index in the logical array of the slab's first element."""
    scales: Scales | None = None

    def apply(
        self, source: Elements, target: Elements, place: tuple[slice, ...], tables: Mapping[Scales, ScaleTable]
    ) -> None:
        """Fill `target`, which lies at `place` within the slab. Raises Invalid for what cannot be converted."""
        values = source.view(DTYPES[self.source])
        match self.conversion:
            case Joined(high=high):
                halves = target.view(_HALVES)
                halves["high" if self.part == high else "low"][...] = source.view("<u2")
            case HighBits() | LowBits():
                half = "high" if isinstance(self.conversion, HighBits) else "low"
                target.view("<u2")[...] = as_float32(values).view(_HALVES)[half]
            case ScaledDown() | ScaledUp():
                assert self.scales is not None
                self._scale(values, target.view(DTYPES[self.target]), place, tables[self.scales])
            case _:
                round_into(target.view(DTYPES[self.target]), values, what=f"array {self.part!r}")

    def _scale(self, values: Values, target: Values, place: tuple[slice, ...], table: ScaleTable) -> None:
        for rows in _row_blocks(values.shape):
            index: tuple[slice | EllipsisType, ...] = (*rows, ...)  # never a scalar, also of an array without dims
            some, into = as_float32(values[index]), target[index]
            begin = [low + part.start + inside.start for low, part, inside in zip(self.low, place, rows, strict=True)]
            scales = table.over(begin, some.shape)
            if isinstance(self.conversion, ScaledDown):
                if self.conversion.scales is not None:
                    _check_divisors(self.conversion.scales, scales)
                into[...] = scale_down(some, scales, self.target, what=f"array {self.part!r}")
            else:
                round_into(into, some * scales, what=f"array {self.part!r}")


def _check_divisors(name: str, scales: Floats) -> None:
    """Raises Invalid for saved scales that cannot divide: 0 / 0 would be stored as NaN."""
    wrong = ~np.isfinite(scales) | (scales == 0)
    if wrong.any():
        raise Invalid(
            f"array {name!r}: expected finite scales other than 0 to divide by, got {float(scales[wrong][0]):g}",
            hint="leave scales= out to have them computed",
            code="float8-range",
        )


def largest_of_blocks(values: Values, begin: tuple[int, ...], scales: Scales) -> Iterator[tuple[Box, Floats]]:
    """For parts of a box of values, which begins at this index, the blocks that they meet, and the largest magnitude in
    each of what the part has of it; NaN where one is NaN. A block may come several times."""
    for rows in _row_blocks(values.shape):
        index: tuple[slice | EllipsisType, ...] = (*rows, ...)
        some = as_float32(values[index])
        starts = [start + inside.start for start, inside in zip(begin, rows, strict=True)]
        box = scales.box(tuple((start, start + size) for start, size in zip(starts, some.shape, strict=True)))
        largest: npt.NDArray[Any] = np.abs(some, out=some)
        for dim in reversed(range(len(box))):  # the last one first: along it memory is contiguous, and little is left
            (low, high), size, start = box[dim], scales.block[dim], starts[dim]
            cuts = np.maximum(np.arange(low, high) * size - start, 0)
            largest = np.maximum.reduceat(largest, cuts, axis=dim)
        yield box, largest


def _row_blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Parts of an array of this shape, some rows at a time of the first dim that has several: what a chunk and a rank
    have in common is one row of all dims before it."""
    cut = next((dim for dim, size in enumerate(shape) if size > 1), 0)
    whole = tuple(slice(0, size) for size in shape)
    if not shape:
        yield whole
        return
    rows = max(1, _BLOCK_ELEMENTS // math.prod(shape[cut + 1 :]))
    for at in range(0, shape[cut], rows):
        yield (*whole[:cut], slice(at, min(at + rows, shape[cut])), *whole[cut + 1 :])
