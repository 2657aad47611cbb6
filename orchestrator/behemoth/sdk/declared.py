"""Turns what a program declares of an array's dims into the form of a layout: integers, one packed and one padded dim.

Whether they fit together is checked by the layout. Neighbours: `state` and `bucket`, where they are declared.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

from behemoth.base.errors import Invalid


def shape_of(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as plain integers. Raises Invalid for other numbers, as all functions here."""
    return _whole(name, shape, "a shape", code="array-shape")


def packed_of(name: str, packed: Mapping[int, Sequence[int]] | None) -> tuple[int, tuple[int, ...]] | None:
    """The packed dim and its parts. Raises Invalid for more than one dim."""
    if not packed:
        return None
    if len(packed) > 1:
        raise Invalid(f"array {name!r}: expected one packed dim, got {sorted(packed)}", code="array-packed")
    ((dim, sizes),) = packed.items()
    return dim, _whole(name, sizes, f"packed parts of dim {dim}", code="array-packed")


def padded_of(name: str, padded: Mapping[int, int] | None) -> tuple[int, int] | None:
    """The padded dim and its size. Raises Invalid for more than one dim."""
    if not padded:
        return None
    if len(padded) > 1:
        raise Invalid(f"array {name!r}: expected one padded dim, got {sorted(padded)}", code="array-padded")
    ((dim, size),) = padded.items()
    return dim, _whole(name, [size], f"a padded size of dim {dim}", code="array-padded")[0]


def bucket_of(name: str, bucket: tuple[int, int]) -> tuple[int, int]:
    """Where the block begins in its bucket, and the size of the bucket, in elements."""
    begin, size = _whole(name, bucket, "begin and size of a bucket", code="array-bucket")
    return begin, size


def _whole(name: str, numbers: Sequence[int], what: str, *, code: str) -> tuple[int, ...]:
    try:
        return tuple(operator.index(number) for number in numbers)
    except TypeError as error:
        raise Invalid(f"array {name!r}: expected {what} of integers, got {numbers!r}", code=code) from error
