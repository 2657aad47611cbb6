"""Which rows of arrays are taken, a row being an index of the first dim: experts 3 to 5 of a stack. Values and no I/O.

Neighbours: `interop.relayout` and `app.batches.tensors`, which take them; `name_patterns` has the patterns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from behemoth.base.errors import Invalid
from behemoth.checkpoint.name_patterns import NamePatterns


class RowRange(msgspec.Struct, frozen=True, kw_only=True):
    """Rows [start, stop) of the arrays whose names match a shell pattern."""

    pattern: str
    start: int
    stop: int


def ranges_of(ranges: Sequence[RowRange], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """By name the rows of each array of which only some are taken. Raises Invalid for a pattern that matches no array,
    or one that has not so many rows, and for two that match the same array."""
    found: dict[str, tuple[int, int]] = {}
    for one in ranges:
        wanted = NamePatterns([one.pattern])
        names = [name for name in shapes if wanted.has(name)]
        if not names:
            raise _refused(one.pattern, f"to match one of {len(shapes)} arrays, got none")
        for name in names:
            num_rows = shapes[name][0] if shapes[name] else 0
            if name in found:
                raise _refused(one.pattern, f"arrays that no other pattern matches, got {name!r}")
            if one.stop > num_rows:
                raise _refused(one.pattern, f"arrays of {one.stop} rows or more, got {name!r} with {num_rows}")
            found[name] = one.start, one.stop
    return found


def _refused(pattern: str, expected: str) -> Invalid:
    return Invalid(
        f"rows of {pattern!r}: expected {expected}",
        hint="a row is an index of the first dim, and patterns such as 'model/*.experts.*' match whole names",
        code="rows",
    )
