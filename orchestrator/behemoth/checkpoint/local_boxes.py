"""What one rank holds of an array, as boxes: the arithmetic of splits, packed dims and flat ranges.

A rank holds one box, or one per part of a packed dim (gate|up); together they are its local array. A flat range of the
local array, in C order, meets each box in one contiguous range of that box's own C order: that is why a distributed
optimizer needs no exchange to save. Pure arithmetic on integers. Neighbours: `layout` (the rules), `grid` (which chunks
a box meets), `windows` (the same in the program's memory).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from behemoth.checkpoint.box import Box, Interval, num_elements, shape_of
from behemoth.checkpoint.layout import ArraySpec


class LocalBox(NamedTuple):
    """A box of the logical array, and where it lies within the local array (both per dim, start and stop)."""

    box: Box
    place: Box

    @property
    def num_elements(self) -> int:
        return num_elements(self.box)


def share_of(size: int, num: int, index: int, *, padded: int | None = None) -> Interval:
    """Part `index` of `size` elements over `num` holders: ceil(size / num) each, so that late ones may be short or
    empty (torch.chunk, DTensor's Shard, FSDP). `padded`: what a program shares instead of `size`, whose elements come
    first (Megatron's vocabulary)."""
    share = -(-(padded or size) // num)
    return min(index * share, size), min((index + 1) * share, size)


def local_boxes(spec: ArraySpec, sizes: Sequence[int], coordinates: Sequence[int]) -> tuple[LocalBox, ...]:
    """The boxes at `coordinates` on the axes of `spec.dims`, whose `sizes` are given, parts of a packed dim in order.

    Empty boxes are left out.
    """
    ranges: list[list[Interval]] = [[(0, size)] for size in spec.shape]
    for (dim, _), num, index in zip(spec.dims, sizes, coordinates, strict=False):  # a flat coordinate may follow
        ranges[dim] = shares_of(spec, dim, num, index)
    places = [_places(intervals) for intervals in ranges]
    held = [
        LocalBox(tuple(box), tuple(place))
        for box, place in zip(itertools.product(*ranges), itertools.product(*places), strict=True)
    ]
    return tuple(one for one in held if one.num_elements)


def shares_of(spec: ArraySpec, dim: int, num: int, index: int) -> list[Interval]:
    """What holder `index` of `num` has of each part of a dim; one part where it is not packed."""
    sizes = spec.part_sizes(dim)
    begins = itertools.accumulate(sizes, initial=0)
    return [
        (begin + start, begin + stop)
        for begin, size, padded in zip(begins, sizes, spec.shared_sizes(dim), strict=False)
        for start, stop in [share_of(size, num, index, padded=padded)]
    ]


def local_shape(spec: ArraySpec, sizes: Sequence[int], coordinates: Sequence[int]) -> tuple[int, ...]:
    """Shape of the local array: a packed dim has what the rank holds of its parts, one behind the other."""
    shape = list(spec.shape)
    for (dim, _), num, index in zip(spec.dims, sizes, coordinates, strict=False):
        shape[dim] = sum(stop - start for start, stop in shares_of(spec, dim, num, index))
    return tuple(shape)


def flat_range(spec: ArraySpec, shape: Sequence[int], num: int, index: int) -> Interval:
    """First and last + 1 element, in C order of a local array of `shape`, that holder `index` of `num` has; whole rows
    of dim 0, or what lies in its range of a bucket, where the spec says so."""
    return _flat_range(shape, num, index, is_rows=spec.flat_rows, bucket=spec.flat_bucket)


def within(held: LocalBox, shape: Sequence[int], flat: Interval) -> Interval:
    """The elements of a box, in its own C order, that a flat range of its local array of `shape` has."""
    return _num_before(held.place, shape, flat[0]), _num_before(held.place, shape, flat[1])


def piece_bounds(spec: ArraySpec, held: LocalBox, shape: Sequence[int], num: int) -> tuple[int, ...]:
    """[num + 1]: where `within` cuts a box for `num` holders: the begin of each piece, then the end of the last.
    Elements of the box in its C order."""
    return _piece_bounds(held.place, tuple(shape), num, is_rows=spec.flat_rows, bucket=spec.flat_bucket)


@lru_cache(maxsize=4096)
def _piece_bounds(
    place: Box, shape: tuple[int, ...], num: int, *, is_rows: bool, bucket: tuple[int, int] | None
) -> tuple[int, ...]:
    """Cached, because most boxes of a mesh lie alike in their local arrays."""
    starts = (_flat_range(shape, num, index, is_rows=is_rows, bucket=bucket)[0] for index in range(num))
    return tuple(_num_before(place, shape, at) for at in (*starts, math.prod(shape)))


def _flat_range(
    shape: Sequence[int], num: int, index: int, *, is_rows: bool, bucket: tuple[int, int] | None
) -> Interval:
    num_elements = math.prod(shape)
    if bucket is not None:
        begin, size = bucket
        start, stop = share_of(size, num, index)
        return min(max(start - begin, 0), num_elements), min(max(stop - begin, 0), num_elements)
    if not is_rows or not shape:
        return share_of(num_elements, num, index)
    start, stop = share_of(shape[0], num, index)
    row = num_elements // shape[0] if shape[0] else 0
    return start * row, stop * row


def _num_before(place: Box, shape: Sequence[int], flat: int) -> int:
    """Elements of the box at `place` that come before element `flat` of the local array."""
    sizes = shape_of(place)
    count, inner, inner_of_box = 0, math.prod(shape), math.prod(sizes)
    if flat >= inner:
        return inner_of_box
    for (start, stop), size, full in zip(place, sizes, shape, strict=True):
        inner, inner_of_box = inner // full, inner_of_box // size
        at, flat = divmod(flat, inner)
        count += min(max(at - start, 0), size) * inner_of_box
        if not start <= at < stop:
            break
    return count


def _places(intervals: Sequence[Interval]) -> list[Interval]:
    """The same intervals, one behind the other."""
    ends = list(itertools.accumulate(stop - start for start, stop in intervals))
    return [(end - (stop - start), end) for end, (start, stop) in zip(ends, intervals, strict=True)]
