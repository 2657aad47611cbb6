"""Where a shard is cut into parts of a multipart upload: closed forms of which ranks hold its bytes.

A part has at least 5 MiB, and one rank uploads it; bytes that other ranks hold are sent to that rank first. So a flat
piece that is large enough becomes a part, and smaller pieces are joined so that the fewest bytes move. With pieces of s
bytes and parts of at least m > s bytes, the uploader of a part holds at most s of it, so that at least 1 - s / m of the
bytes move, whatever the rule. Pure. Neighbour: `uploads`, which chooses who uploads each part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from behemoth.ports import MAX_PARTS, MIN_PART_BYTES

MAX_DATA_BYTES = 4 << 30
"""Most bytes of data in a part; the rest of MAX_PART_BYTES is room for padding, CRCs, gaps and the index."""
MAX_GROUP = 64
"""Most pieces of a group. Longer groups move fewer bytes at their ends, but more of those inside."""
FEW_PIECES = 4
"""Where a part has at least this many pieces, parts end where pieces do: other cuts would save at most 1 / 20 of the
bytes that move."""
MAX_OFFSETS = 3
"""Most different offsets of groups among the arrays of one kind; each is planned separately. Where two parts are made
of three pieces, the holder of the middle one uploads nothing: with three offsets each piece is the middle one in
turn."""


class PartCut(NamedTuple):
    """A part: data [begin, end) of its shard, of segments first .. last. `turn`: parts of a shard that have the same
    one share no segment, or are of one segment whose holders take turns."""

    begin: int
    end: int
    first: int
    last: int
    turn: int


@lru_cache(maxsize=4096)
def cut_parts(bounds: tuple[int, ...], num_holders: int, offset: int = 0) -> tuple[PartCut, ...]:
    """The parts of a shard whose segments lie between `bounds`, in bytes of data from 0 on; each has `num_holders`
    holders.

    What a segment's several holders can share out is cut for all of them, as far as parts stay large enough. Small
    segments before a large one take no more of it than they need: who sends their part may hold none of the rest.
    Where all are small and one holder has each, groups of them are cut so that few bytes move. In each group some
    holder uploads nothing: with another `offset` it is another one.
    """
    least = _least(bounds)
    if _are_joined_closely(bounds, least, num_holders):
        return tuple(_cut_small(bounds, least, offset))
    return tuple(_cut_large(bounds, least, num_holders))


def num_offsets(bounds: tuple[int, ...], num_holders: int) -> int:
    """How many offsets make a difference. Where a part has many pieces, each of their holders can upload it instead."""
    least = _least(bounds)
    if not _are_joined_closely(bounds, least, num_holders):
        return 1
    return min(MAX_OFFSETS, _group_size(_edges(bounds), least))


def _are_joined_closely(bounds: Sequence[int], least: int, num_holders: int) -> bool:
    largest = max(end - start for start, end in itertools.pairwise(bounds))
    return num_holders == 1 and largest < least < largest * FEW_PIECES


def _least(bounds: tuple[int, ...]) -> int:
    """Bytes of a part, so that there are not too many of them."""
    return max(MIN_PART_BYTES, -(-bounds[-1] // (MAX_PARTS - 1)))


def _cut_large(bounds: tuple[int, ...], least: int, num_holders: int) -> Iterator[PartCut]:
    begin, first = 0, -1
    for segment, (start, end) in enumerate(itertools.pairwise(bounds)):
        if start == end:
            continue
        first = segment if first < 0 else first
        if begin < start and end - begin >= 2 * least:
            yield PartCut(begin, begin + least, first, segment, -1)
            begin, first = begin + least, segment
        if end - begin >= least or end == bounds[-1]:
            yield from _split(begin, end, first, segment, least, num_holders)
            begin, first = end, -1


def _split(begin: int, end: int, first: int, last: int, least: int, num_holders: int) -> Iterator[PartCut]:
    size = end - begin
    num = max(-(-size // MAX_DATA_BYTES), min(size // least, num_holders if first == last else 1), 1)
    for turn in range(num):
        yield PartCut(begin + size * turn // num, begin + size * (turn + 1) // num, first, last, turn)


def _cut_small(bounds: tuple[int, ...], least: int, offset: int) -> Iterator[PartCut]:
    edges = _edges(bounds)
    cuts = _joined(edges, least, _group_size(edges, least), offset)
    firsts = np.searchsorted(bounds, cuts[:-1], side="right") - 1
    lasts = np.searchsorted(bounds, cuts[1:], side="left") - 1
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        # A part is longer than any segment, so that only neighbours have one in common.
        yield PartCut(begin, end, int(firsts[number]), int(lasts[number]), number % 2)


def _edges(bounds: Sequence[int]) -> tuple[int, ...]:
    """Where pieces that are not empty begin, and where the last one ends."""
    return tuple(sorted(set(bounds)))


@lru_cache(maxsize=4096)
def _group_size(edges: tuple[int, ...], least: int) -> int:
    """How many neighbouring pieces, each smaller than `least`, are cut together so that the fewest bytes move."""
    sizes = range(1, min(MAX_GROUP, len(edges) - 1) + 1)
    return max(sizes, key=lambda size: _kept(edges, _joined(edges, least, size, 0)))


def _joined(edges: tuple[int, ...], least: int, size: int, offset: int) -> list[int]:
    """Where parts begin, and where the last ends, in groups of `size` pieces, of which the first has `offset`. Groups
    that are too small for a part go with their neighbours."""
    cuts = starts = [0]
    for edge in (*edges[(offset % size or size) : -1 : size], edges[-1]):
        is_last = edge == edges[-1]
        if is_last or (edge - starts[-1] >= least and edges[-1] - edge >= least):
            cuts = cuts + [starts[-1] + cut for cut in _cuts(edge - starts[-1], least)]
            starts = [*starts, edge]
    return cuts


def _cuts(length: int, least: int) -> list[int]:
    """Where the parts of a group end. From both its ends on they have `least` bytes, the first and the last a whole
    piece, which each next one lacks a little more of; in the middle lies a piece that nobody uploads whole."""
    num = max(length // least, 1)
    from_start = num // 2
    middle = [] if num == 1 else [(from_start * least + length - (num - from_start) * least) // 2]
    left = [least * count for count in range(1, from_start)]
    right = [length - least * count for count in range(num - from_start - 1, -1, -1)]
    return [*left, *middle, *right]


def _kept(edges: tuple[int, ...], cuts: list[int]) -> int:
    """Bytes that do not move when each part is uploaded by the holder of the most of it."""
    bounds, begins, ends = np.array(edges), np.array(cuts[:-1]), np.array(cuts[1:])
    first, last = np.searchsorted(bounds, begins, side="right") - 1, np.searchsorted(bounds, ends, side="left") - 1
    kept = np.maximum(np.minimum(bounds[first + 1], ends) - begins, ends - np.maximum(bounds[last], begins))
    inner = np.diff(bounds)
    for at in range(1, int((last - first).max())):
        kept = np.maximum(kept, np.where(first + at < last, inner[np.minimum(first + at, len(inner) - 1)], 0))
    return int(kept.sum())
