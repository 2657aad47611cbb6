"""Proof by interval arithmetic that extents cover every chunk exactly once: of plans, and of receipts before a commit.

It must not look at a plan: a proof must not trust what it proves. Neighbours: `plan` and `proof`, which ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Extents:
    """Byte ranges within chunks, one per row, as columns."""

    array: Ints
    chunk: Ints
    offset: Ints
    length: Ints

    @staticmethod
    def of(rows: Sequence[tuple[int, ...]]) -> Extents:
        """From rows of (array, chunk, offset, length)."""
        table = np.array(rows, dtype=np.int64).reshape(-1, 4)
        return Extents(array=table[:, 0], chunk=table[:, 1], offset=table[:, 2], length=table[:, 3])

    @cached_property
    def order(self) -> Ints:
        """The rows by array, chunk and offset. One number for all three sorts in a quarter of the time, where it holds
        them: of millions of rows that is most of a proof."""
        columns = (self.array, self.chunk, self.offset)
        widths = [int(column.max(initial=0)).bit_length() for column in columns]
        if sum(widths) > 63 or min(int(column.min(initial=0)) for column in columns) < 0:
            return np.lexsort((self.offset, self.chunk, self.array)).astype(np.int64)
        keys = (self.array << widths[1] | self.chunk) << widths[2] | self.offset
        return np.argsort(keys, kind="stable")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageFault:
    """The first thing wrong. `row` is a row that takes part in it, or -1 when bytes are missing altogether; `array` and
    `chunk` are where, -1 outside of all arrays."""

    message: str
    code: str
    row: int
    array: int = -1
    chunk: int = -1


def check_coverage(layout: Layout, extents: Extents) -> CoverageFault | None:
    """None when the extents cover the data of every chunk of every array exactly once. O(n log n) in the rows."""
    outside = np.flatnonzero((extents.array < 0) | (extents.array >= len(layout.arrays)) | (extents.length <= 0))
    if len(outside):
        row = int(outside[0])
        return CoverageFault(
            message=f"extent {row}: expected an array below {len(layout.arrays)} and a length > 0, "
            f"got array {extents.array[row]}, {extents.length[row]} bytes",
            code="span-outside",
            row=row,
        )
    order = extents.order
    bounds = np.searchsorted(extents.array[order], np.arange(len(layout.arrays) + 1))
    for position, grid in enumerate(grids(layout)):
        fault = _check_array(grid, extents, order[bounds[position] : bounds[position + 1]])
        if fault is not None:
            return replace(fault, array=position)
    return None


def _check_array(grid: Grid, extents: Extents, rows: Ints) -> CoverageFault | None:
    """Rows in order of chunk and offset, so each must begin where the one before it ends."""
    chunk, begin = extents.chunk[rows], extents.offset[rows]
    end = begin + extents.length[rows]
    need = grid.all_data_bytes()
    is_wrapped = end < begin  # no int64 holds where it ends
    if len(bad := np.flatnonzero((chunk < 0) | (chunk >= grid.num_chunks) | (begin < 0) | is_wrapped)):
        return _fault(grid, int(chunk[bad[0]]), "lies outside of the array", "span-outside", int(rows[bad[0]]))
    is_first = np.diff(chunk, prepend=-1) > 0
    expected = np.where(is_first, 0, np.roll(end, 1))
    if len(bad := np.flatnonzero(begin < expected)):
        text = f"bytes {begin[bad[0]]} .. {expected[bad[0]]} are covered twice"
        return _fault(grid, int(chunk[bad[0]]), text, "span-twice", int(rows[bad[0]]))
    if len(bad := np.flatnonzero(end > need[chunk])):
        text = f"expected an end at byte {need[chunk[bad[0]]]}, got {end[bad[0]]}"
        return _fault(grid, int(chunk[bad[0]]), text, "span-outside", int(rows[bad[0]]))
    covered = np.bincount(chunk, weights=extents.length[rows], minlength=grid.num_chunks)
    if len(bad := np.flatnonzero(covered != need)):
        missing = int(need[bad[0]] - covered[bad[0]])
        return _fault(grid, int(bad[0]), f"{missing} of {need[bad[0]]} bytes are covered by nobody", "span-missing", -1)
    return None


def _fault(grid: Grid, chunk: int, text: str, code: str, row: int) -> CoverageFault:
    return CoverageFault(message=f"array {grid.spec.name!r}, chunk {chunk}: {text}", code=code, row=row, chunk=chunk)
