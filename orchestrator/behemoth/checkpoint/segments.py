"""Which pieces a shard's bytes belong to, in order: the basis on which uploads are planned.

The data of a shard are the data of its slots, one behind the other; padding, CRCs and gaps do not count. In a shard
that lies within one box each piece is one segment of them. Where a shard holds several boxes, since their shares have
no common measure, a piece has several. Pure. Neighbours: `grid` (shards and slots), `uploads`, which cuts parts.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from behemoth.checkpoint.grid import Grid, Ints, cuts_of
from behemoth.checkpoint.loads import Cell, cells, num_flat
from behemoth.checkpoint.local_boxes import piece_bounds
from behemoth.checkpoint.sharing import Kind


class Segments(NamedTuple):
    """Bytes bounds[i] .. bounds[i + 1] of a shard's data are of piece pieces[i]."""

    bounds: tuple[int, ...]
    pieces: tuple[int, ...]


def segments_of(kind: Kind) -> tuple[Segments, ...]:
    """The segments of each shard of an array of this kind. O(chunks + pieces)."""
    chunk, offset, _, piece = pieces_of(kind)
    starts = data_starts(kind.grid)
    shard, slot = kind.grid.place(chunk)
    begin = starts[slot] + offset
    order = np.lexsort((begin, shard))
    shard, begin, piece = shard[order], begin[order], piece[order]
    is_first = np.flatnonzero((np.diff(shard, prepend=-1) != 0) | (np.diff(piece, prepend=-1) != 0))
    shard, begin, piece = shard[is_first], begin[is_first], piece[is_first]
    total = int(starts[-1])
    edges = np.searchsorted(shard, np.arange(kind.grid.num_shards + 1))
    return tuple(
        Segments((*begin[low:high].tolist(), total), tuple(piece[low:high].tolist()))
        for low, high in itertools.pairwise(edges.tolist())
    )


def pieces_of(kind: Kind) -> Ints:
    """[4, rows]: chunk, first byte in it, length in bytes and piece, a row for each chunk that a piece meets. Cell
    after cell, part after part, each in its own order. O(chunks + pieces)."""
    num = num_flat(kind)
    rows = [_of_cell(kind, at * num, cell) for at, cell in enumerate(cells(kind)) if cell.parts]
    return np.concatenate(rows, axis=1)


def data_starts(grid: Grid) -> Ints:
    """Where the data of each slot of a shard begins among the shard's data, in bytes, and where they end.

    Alike in all shards: only a shard that spans the whole of the padded dim has padding.
    """
    sizes = grid.all_data_bytes()[grid.chunks_of(0)]
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def in_shard(grid: Grid, data: Ints) -> Ints:
    """Where bytes of a shard's data lie in the shard; of their end, where the shard ends."""
    starts = data_starts(grid)
    slot = np.searchsorted(starts, data, side="right") - 1
    place: Ints = slot * grid.stride_bytes + data - starts[slot]
    return np.where(data == starts[-1], grid.file_bytes, place)


def _of_cell(kind: Kind, first_piece: int, cell: Cell) -> Ints:
    """Rows of `pieces_of`."""
    grid, itemsize = kind.grid, kind.grid.spec.itemsize
    rows = []
    for held in cell.parts:
        bounds = np.array(piece_bounds(grid.spec, held, cell.shape, num_flat(kind)), dtype=np.int64)
        meeting = grid.meeting(held.box, (0, held.num_elements))
        cuts = cuts_of(meeting.first, bounds)
        met = np.searchsorted(meeting.first, cuts, side="right") - 1
        offsets = meeting.offsets[met] + cuts - meeting.first[met]
        lengths = np.diff(cuts, append=held.num_elements)
        pieces = first_piece + np.searchsorted(bounds, cuts, side="right") - 1
        rows.append(np.stack([meeting.chunks[met], offsets * itemsize, lengths * itemsize, pieces]))
    return np.concatenate(rows, axis=1)
