"""Which units of a checkpoint need the same computed scales, so that each value is read once for all of them. Pure.

A scale is known when all of its block has been read; then the values of that block are converted, and the scale is
written in an array of its own. Writing only a part of a block still reads all of it. So units that share blocks go into
one batch, and within it into runs that read whole blocks at once, as far as memory allows. Neighbours: `reshard_job`,
`checkpoint.interop.resharded` (reads), `checkpoint.scale_waves` (what waits while it is read).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import NamedTuple, TypeVar

import numpy as np

from behemoth.app.batches.driving import grouped
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.conversion import ScalesOf, num_blocks
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.units import Units, WriteUnit, ranges_of
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.reshard import blocks_needed, scales_of
from behemoth.checkpoint.scale_waves import straddled_dims

_Item = TypeVar("_Item")


class UnitRun(NamedTuple):
    """Units that are read at once, and the memory for that: for the result, and for values that wait for their
    scales."""

    units: list[WriteUnit]
    held_bytes: int


class _Use(NamedTuple):
    """How an array of the result depends on computed scales."""

    scales: Scales
    num_blocks: tuple[int, ...]
    holds_them: bool
    """Else its values are converted by them."""
    waiting: float
    """Bytes of saved values that wait for each byte of the result; 0 where each block lies within a saved chunk."""

    @property
    def form(self) -> object:
        """The same for arrays that differ by name only."""
        return self.scales.block, *self[1:]

    def span(self, unit: WriteUnit) -> tuple[int, int]:
        """The first and the last block that a unit needs, in their C order."""
        boxes = [blocks_needed(self.scales, piece.box, holds_them=self.holds_them) for piece in unit.pieces]
        return min(self._at(box, 0) for box in boxes), max(self._at(box, 1) for box in boxes)

    def _at(self, box: Box, end: int) -> int:
        return int(np.ravel_multi_index([side[end] - end for side in box], self.num_blocks)) if box else 0


@dataclass(frozen=True, kw_only=True)
class ScaledUnits:
    """For a checkpoint of `layout` that is made from one of `saved`; `found` is the result of `matching.origins`. A run
    takes `run_bytes` of the result; only where a block is larger it takes more, up to `limit_bytes` of memory. Not
    slotted: derived values are cached."""

    saved: Layout
    layout: Layout
    found: Sequence[Origin]
    run_bytes: int
    limit_bytes: int

    def together(self, units: Units) -> list[list[range]]:
        """The numbers of all units that need computed scales; those that share blocks are one item."""
        known: dict[object, list[list[tuple[int, int]]]] = {}
        found: list[list[range]] = []
        for arrays in self._users:
            form = self._form(units, arrays)
            if form not in known:
                known[form] = self._sharing(units, arrays)
            for members in known[form]:
                numbers = sorted(units.first(arrays[of]) + number for of, number in members)
                found.append(ranges_of(numbers))
        return found

    def runs(self, units: Sequence[WriteUnit]) -> list[UnitRun]:
        """A batch, run after run. Scales come last: by then they are known."""
        values = [one for one in units if self._is_converted(one.array)]
        others = [one for one in units if not self._is_converted(one.array)]
        runs = [
            run for array, some in groupby(values, lambda one: one.array) for run in self._runs_of(array, list(some))
        ]
        if len(runs) == 1:
            return [UnitRun(runs[0].units + others, runs[0].held_bytes + _num_bytes(others))]
        return runs + ([UnitRun(others, _num_bytes(others))] if others else [])

    def again_bytes(self, units: Units) -> int:
        """An upper bound of the saved bytes that are read a second time, because their block is larger than what may be
        held in memory."""
        known: dict[object, float] = {}
        total = 0.0
        for arrays in self._users:
            form = self._form(units, arrays)
            if form not in known:
                known[form] = sum(self._again_of(one, units.of_geometry(one)) for one in arrays)
            total += known[form]
        return int(total)

    def _again_of(self, array: int, units: Sequence[WriteUnit]) -> float:
        if not self._is_converted(array):
            return 0.0
        split = (self._split(array, segment)[1:] for segment in self._segments(array, units))
        return sum(self._uses[array].waiting * _num_bytes(part) for parts in split for part in parts)

    def _form(self, units: Units, arrays: Sequence[int]) -> object:
        """A key that is equal for lists of arrays in which the same units share the same blocks."""
        return tuple((id(units.of_geometry(one)), self._uses[one].form) for one in arrays)

    def _sharing(self, units: Units, arrays: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Which of some arrays' units share blocks: the array, counted in `arrays`, and the unit within it."""
        return _overlapping(
            (self._uses[array].span(unit), (of, number))
            for of, array in enumerate(arrays)
            for number, unit in enumerate(units.of_geometry(array))
        )

    def _is_converted(self, array: int) -> bool:
        use = self._uses.get(array)
        return use is not None and not use.holds_them

    def _runs_of(self, array: int, units: Sequence[WriteUnit]) -> Iterator[UnitRun]:
        for some in grouped(self._segments(array, units), _num_bytes, size_bytes=self.run_bytes):
            for part in self._split(array, list(chain.from_iterable(some))):
                yield UnitRun(part, self._held_bytes(array, part))

    def _segments(self, array: int, units: Sequence[WriteUnit]) -> list[list[WriteUnit]]:
        """Those that share blocks whose values wait for each other."""
        use = self._uses[array]
        if not use.waiting:
            return [[one] for one in units]
        return _overlapping((use.span(one), one) for one in units)

    def _split(self, array: int, units: list[WriteUnit]) -> list[list[WriteUnit]]:
        """Split units into parts that fit into memory."""
        return list(grouped(units, lambda one: self._held_bytes(array, [one]), size_bytes=self.limit_bytes))

    def _held_bytes(self, array: int, units: Iterable[WriteUnit]) -> int:
        return int((1 + self._uses[array].waiting) * _num_bytes(units))

    @cached_property
    def _uses(self) -> dict[int, _Use]:
        """By position of the array in the result."""
        uses: dict[int, _Use] = {}
        for position, (array, origin) in enumerate(zip(self.layout.arrays, self.found, strict=True)):
            scales = scales_of(self.saved, array, origin)
            if scales is not None and scales.saved is None:
                grid = grids(self.saved)[scales.values]
                uses[position] = _Use(
                    scales=scales,
                    num_blocks=num_blocks(grid.spec.shape, scales.block),
                    holds_them=isinstance(origin, ScalesOf),
                    waiting=grid.spec.itemsize / array.itemsize if straddled_dims(grid, {scales}) else 0.0,
                )
        return uses

    @cached_property
    def _users(self) -> list[list[int]]:
        """The arrays of the result that need the same scales."""
        found: defaultdict[Scales, list[int]] = defaultdict(list)
        for position, use in self._uses.items():
            found[use.scales].append(position)
        return list(found.values())


def _overlapping(spans: Iterable[tuple[tuple[int, int], _Item]]) -> list[list[_Item]]:
    """Items whose spans, first and last included, have something in common, or are joined by others that do."""
    found: list[list[_Item]] = []
    end = -1
    for (first, last), item in sorted(spans, key=lambda one: one[0]):
        if first > end:
            found.append([])
        found[-1].append(item)
        end = max(end, last)
    return found


def _num_bytes(units: Iterable[WriteUnit]) -> int:
    return sum(unit.num_bytes for unit in units)
