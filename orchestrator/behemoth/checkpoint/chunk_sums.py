"""What the spans of all ranks add up to, chunk by chunk, where they cover every byte exactly once.

All data of a layout, chunk after chunk and array after array, are one line of bytes here, and a span is a range of it.
Spans in order cover the line exactly once when each begins where the one before it ends. That is quickly seen, in parts
of the line on several threads: numpy releases the GIL for whole columns. It is a proof when it succeeds; what is wrong
where it does not, `coverage` finds out, chunk by chunk. Pure; must not look at a plan. Neighbours: `proof`, which asks,
and `crc_columns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.crc_columns import Crcs, combined_runs
from behemoth.checkpoint.grid import Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.span_table import SpanTable
from behemoth.checkpoint.threads import run_all

_Numbers = npt.NDArray[np.integer[Any]]
_Counts = npt.NDArray[np.unsignedinteger[Any]]
"""As spans have them: of numbers with a sign and others numpy makes floats."""
_BLOCK_ROWS = 1 << 16
"""Spans that are sorted into stretches at a time: what is computed of them stays in a core's cache."""
_PART_ROWS = 1 << 17
"""Spans that are put in order and summed at a time. Each thread takes some 120 bytes for each of them."""
_NUM_STRETCHES = 256
"""Of about equally many chunks, into which the line is cut: a byte numbers them, by which numpy sorts in one pass."""


class ChunkSums(NamedTuple):
    """Columns of all chunks, in the order of layout and grids. Rows count the spans of all tables, one table after the
    other."""

    first_chunk: Ints
    """[arrays + 1]: the first chunk of each array, and the end of the last one's."""
    data_bytes: _Counts
    data_crc: Crcs
    """CRC-32C of a chunk's data, which its spans add up to."""
    num_spans: Ints
    first_row: Ints
    """Of the span that begins a chunk."""
    last_row: Ints
    """Of the span that ends it."""
    are_zero: npt.NDArray[np.bool_]
    """[arrays]: whether all spans of an array are said to be zero."""

    def places(self, chunks: Ints) -> tuple[Ints, Ints]:
        """The array of each of these chunks, and its number there."""
        array = np.searchsorted(self.first_chunk, chunks, side="right") - 1
        return array, chunks - self.first_chunk[array]


def chunk_sums(layout: Layout, tables: Sequence[SpanTable], *, threads: int) -> ChunkSums | None:
    """None where the spans of all tables, one at least, do not cover the data of every chunk of every array exactly
    once, and only then. O(n log n) in the spans. Raises Invalid for a layout of more bytes than numpy counts."""
    num_bytes = sum(array.num_bytes for array in layout.arrays)
    if num_bytes >= 1 << 63:
        raise Invalid(f"layout: expected fewer than 2^63 bytes, got {num_bytes}", code="layout-bytes")
    line = _Line.of(layout)
    blocks = run_all(line.block, list(_in_blocks(tables)), threads=threads, name="ckpt-spans")
    found = [block for block in blocks if block is not None]
    if len(found) < len(blocks):
        return None
    summing = _Summing(line, found)
    if not all(run_all(summing.sum_up, list(line.parts(found)), threads=threads, name="ckpt-sums")):
        return None
    return summing.sums


class _Slice(NamedTuple):
    """Some tables, one after the other, and the row of their first span."""

    tables: Sequence[SpanTable]
    first_row: int


def _in_blocks(tables: Sequence[SpanTable]) -> Iterator[_Slice]:
    ends = list(accumulate(map(len, tables)))
    low, first_row = 0, 0
    for high, end in enumerate(ends, start=1):
        if end - first_row >= _BLOCK_ROWS or high == len(ends):
            yield _Slice(tables[low:high], first_row)
            low, first_row = high, end


class _Rows(NamedTuple):
    """Spans as columns. Of 32 bits where those are enough, since all spans wait to be summed."""

    chunk: _Numbers
    offset: _Numbers
    length: _Numbers
    crc: Crcs
    row: _Numbers


class _Block(NamedTuple):
    """The spans of some tables, each within its chunk, in order of their stretches."""

    rows: _Rows
    bounds: Ints
    """[stretches + 1]: the first of each stretch, and the end of the last one's."""
    has_other: npt.NDArray[np.bool_]
    """[arrays]: whether there is a span that is not zero."""


class _Part(NamedTuple):
    """Neighbouring stretches, [first, last]."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    first_chunk: Ints
    num_chunks: _Counts
    """[arrays]"""
    data_bytes: _Counts
    """[chunks]"""
    starts: Ints
    """[chunks + 1]: where on the line each chunk's data begin, and its end."""
    stretch_chunks: int

    @staticmethod
    def of(layout: Layout) -> _Line:
        num_chunks = np.array([grid.num_chunks for grid in grids(layout)], dtype=np.int64)
        data_bytes = np.concatenate([np.zeros(0, dtype=np.int64), *(grid.all_data_bytes() for grid in grids(layout))])
        return _Line(
            first_chunk=np.append(0, np.cumsum(num_chunks)),
            num_chunks=num_chunks.astype(np.uint64),
            data_bytes=data_bytes.astype(np.uint32 if int(data_bytes.max(initial=0)) < 1 << 32 else np.uint64),
            starts=np.append(0, np.cumsum(data_bytes)),
            stretch_chunks=max(1, -(-len(data_bytes) // _NUM_STRETCHES)),
        )

    def block(self, some: _Slice) -> _Block | None:
        """None when a span does not lie within the data of a chunk."""
        spans, num_arrays = SpanTable.joined(some.tables), len(self.num_chunks)
        if (spans.array >= num_arrays).any() or (spans.chunk >= self.num_chunks.take(spans.array)).any():
            return None
        chunk = self.first_chunk.take(spans.array) + spans.chunk.astype(np.int64)
        room = self.data_bytes.take(chunk)
        if not ((spans.length > 0) & (spans.offset < room) & (spans.length <= room - spans.offset)).all():
            return None
        stretch = (chunk // self.stretch_chunks).astype(np.uint8)
        order = np.argsort(stretch, kind="stable")
        has_other = np.zeros(num_arrays, dtype=np.bool_)
        has_other[spans.array[~spans.is_zero]] = True
        columns = (chunk, spans.offset, spans.length, spans.crc, np.arange(len(chunk)) + some.first_row)
        return _Block(
            rows=_Rows._make(_narrowed(column.take(order)) for column in columns),
            bounds=np.append(0, np.cumsum(np.bincount(stretch, minlength=_NUM_STRETCHES))),
            has_other=has_other,
        )

    def parts(self, blocks: Sequence[_Block]) -> Iterator[_Part]:
        """All stretches that have chunks, in parts of about equally many spans."""
        num_stretches = -(-int(self.first_chunk[-1]) // self.stretch_chunks)
        ends = sum((block.bounds[1 : num_stretches + 1] for block in blocks), np.zeros(num_stretches, dtype=np.int64))
        firsts = np.flatnonzero(np.diff(ends // _PART_ROWS, prepend=-1))
        yield from (_Part(first, end - 1) for first, end in pairwise([*firsts.tolist(), num_stretches]))


class _Summing:
    """Each part has chunks of its own, so that parts may be summed up at the same time."""

    def __init__(self, line: _Line, blocks: Sequence[_Block]) -> None:
        num_chunks = int(line.first_chunk[-1])
        self._line = line
        self._blocks = blocks
        self.sums = ChunkSums(
            first_chunk=line.first_chunk,
            data_bytes=line.data_bytes,
            data_crc=np.empty(num_chunks, dtype=np.uint32),
            num_spans=np.empty(num_chunks, dtype=np.int64),
            first_row=np.empty(num_chunks, dtype=np.int64),
            last_row=np.empty(num_chunks, dtype=np.int64),
            are_zero=~np.any([block.has_other for block in blocks], axis=0),
        )

    def sum_up(self, part: _Part) -> bool:
        """Whether the part's bytes are covered exactly once; then `sums` has its chunks."""
        low, high = (min(at * self._line.stretch_chunks, len(self.sums.data_crc)) for at in (part.first, part.last + 1))
        starts = self._line.starts[low : high + 1] - self._line.starts[low]
        spans = self._rows(part)
        chunk = spans.chunk - low
        begin = starts.take(chunk) + spans.offset
        # Ranks in order mostly have a chunk's spans in order, and numbers of 16 bits are sorted in no time.
        order = np.argsort(chunk.astype(np.min_scalar_type(high - low)), kind="stable")
        if (np.diff(begin.take(order)) <= 0).any():
            order = order.take(np.argsort(begin.take(order), kind="stable"))
        begin, length = begin.take(order), spans.length.take(order).astype(np.int64)
        end = begin + length
        if not len(begin) or begin[0] != 0 or end[-1] != starts[-1] or (begin[1:] != end[:-1]).any():
            return False
        # No span reaches from a chunk into the next one, so one begins where each chunk does.
        first = np.append(np.searchsorted(begin, starts[:-1]), len(begin))
        row, sums = spans.row.take(order), self.sums
        sums.data_crc[low:high] = combined_runs(spans.crc.take(order), length, first)
        sums.num_spans[low:high] = np.diff(first)
        sums.first_row[low:high] = row.take(first[:-1])
        sums.last_row[low:high] = row.take(first[1:] - 1)
        return True

    def _rows(self, part: _Part) -> _Rows:
        slices = [
            [column[block.bounds[part.first] : block.bounds[part.last + 1]] for column in block.rows]
            for block in self._blocks
        ]
        return _Rows._make(map(np.concatenate, zip(*slices, strict=True)))


def _narrowed(column: _Numbers) -> _Numbers:
    """The same numbers, none of them negative, in 32 bits where they all fit, else in 63."""
    return column.astype(np.uint32 if int(column.max(initial=0)) < 1 << 32 else np.int64, copy=False)
