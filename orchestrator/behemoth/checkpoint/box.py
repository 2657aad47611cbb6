"""A box of an array: for each dim where it starts and where it stops. The arithmetic of that, on integers alone.

Must not know what an array is or who holds it. Neighbours: `local_boxes` (what a rank holds), and `grid`, whose
chunks are boxes too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = tuple[int, int]
"""From a first index up to another, exclusive."""
Box = tuple[Interval, ...]
"""Per dim; of an array without dims it is empty, and has one element."""


def shape_of(box: Box) -> tuple[int, ...]:
    """The sizes of a box, per dim."""
    return tuple(stop - start for start, stop in box)


def num_elements(box: Box) -> int:
    """Elements of a box."""
    return math.prod(shape_of(box))


def slices_of(box: Box) -> tuple[slice, ...]:
    """The index that takes a box out of its array."""
    return tuple(slice(start, stop) for start, stop in box)


def slices_within(box: Box, outer: Box) -> tuple[slice, ...]:
    """The index that takes a box out of an outer one that is an array of its own."""
    return tuple(slice(start - begin, stop - begin) for (start, stop), (begin, _) in zip(box, outer, strict=True))


def moved(box: Box, begin: Sequence[int]) -> Box:
    """A box of a part of an array that begins there, as a box of the array; no index: the part is the array."""
    return tuple((start + at, stop + at) for (start, stop), at in zip(box, begin, strict=True)) if begin else box


def enclosing(boxes: Sequence[Box]) -> Box:
    """The smallest box that has all of these in it."""
    return tuple((min(low for low, _ in dim), max(high for _, high in dim)) for dim in zip(*boxes, strict=True))


def flat_boxes(box: Box, flat: Interval) -> list[Box]:
    """Elements [start, stop) of a box, in its C order, as boxes one behind the other, each whole in its C order. At
    most 2 n - 1 for n dims."""
    start, stop = flat
    if start >= stop:
        return []
    if not box:
        return [()]
    (low, _), inner = box[0], box[1:]
    per_index = num_elements(inner)
    first, skip = divmod(start, per_index)
    last, rest = divmod(stop, per_index)
    if first == last:
        return [((low + first, low + first + 1), *part) for part in flat_boxes(inner, (skip, rest))]
    head = flat_boxes(inner, (skip, per_index)) if skip else []
    whole = first + bool(skip)
    found = [((low + first, low + first + 1), *part) for part in head]
    if whole < last:
        found.append(((low + whole, low + last), *inner))
    tail = flat_boxes(inner, (0, rest))
    return found + [((low + last, low + last + 1), *part) for part in tail]
