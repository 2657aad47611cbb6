"""The changes of layout that a name map may ask for, as values; each knows its own inverse.

A step takes rows of tensors: a row for each name of a rule, in it one tensor for each value of the word that a stack
runs over, or a single one. Neighbours: `views` does the work lazily, `rules` puts steps in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.interop.views import Joined, Permuted, Stacked, inverse_order, split, unstack

Rows = list[list[Tensor]]
Size = int | str
"""Of a part: elements, `dim N` for as many as that dim has, or `rest`, which all rests share evenly."""

_OF_DIM = re.compile(r"dim (\d{1,2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Permute:
    order: tuple[int, ...]

    def apply(self, rows: Rows) -> Rows:
        return [[Permuted(inner=tensor, order=self.order) for tensor in row] for row in rows]

    def inverse(self) -> Permute:
        return Permute(order=inverse_order(self.order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One name becomes several."""

    dim: int
    sizes: tuple[Size, ...]

    def apply(self, rows: Rows) -> Rows:
        (row,) = rows
        parts = [
            split(tensor, self.dim, part_sizes(tensor.shape, self.dim, self.sizes, what="split")) for tensor in row
        ]
        return [list(column) for column in zip(*parts, strict=True)]

    def inverse(self) -> Concat:
        return Concat(dim=self.dim, sizes=self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat:
    """Several names become one; their sizes must be those into which the way back would split it."""

    dim: int
    sizes: tuple[Size, ...]

    def apply(self, rows: Rows) -> Rows:
        counts = [len(row) for row in rows]
        if len(set(counts)) > 1:
            raise Invalid(f"concat: expected as many tensors of each name, got {counts}", code="map-incomplete")
        return [[self._joined(parts) for parts in zip(*rows, strict=True)]]

    def inverse(self) -> Split:
        return Split(dim=self.dim, sizes=self.sizes)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        joined = Joined(parts=tuple(parts), dim=self.dim)
        expected = part_sizes(joined.shape, self.dim, self.sizes, what="concat")
        got = [part.shape[self.dim] for part in parts]
        if got != expected:
            raise Invalid(f"concat along dim {self.dim}: expected parts of {expected}, got {got}", code="map-parts")
        return joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The tensors that differ in the word `over` become one, along a new dim."""

    dim: int
    over: str

    def apply(self, rows: Rows) -> Rows:
        return [[Stacked(parts=tuple(row), dim=self.dim)] for row in rows]

    def inverse(self) -> Unstack:
        return Unstack(dim=self.dim, over=self.over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstack:
    """One tensor for each index of a dim; the word `over` is its number."""

    dim: int
    over: str

    def apply(self, rows: Rows) -> Rows:
        return [[part for tensor in row for part in unstack(tensor, self.dim)] for row in rows]

    def inverse(self) -> Stack:
        return Stack(dim=self.dim, over=self.over)


Step = Permute | Split | Concat | Stack | Unstack


def check_sizes(sizes: Sequence[Size]) -> None:
    """Raises Invalid for a size that says nothing."""
    for size in sizes:
        is_right = size >= 1 if isinstance(size, int) else size == "rest" or _OF_DIM.fullmatch(size) is not None
        if not is_right:
            raise Invalid(f"size {size!r}: expected a number >= 1, 'rest' or 'dim N'", code="map-sizes")


def part_sizes(shape: tuple[int, ...], dim: int, sizes: Sequence[Size], *, what: str) -> list[int]:
    """The parts of a dim in elements. Raises Invalid when they do not fill it."""
    if dim >= len(shape):
        raise Invalid(f"{what}: expected a dim below {len(shape)} of shape {list(shape)}, got {dim}", code="map-dim")
    fixed = [_fixed(size, shape, what) for size in sizes]
    num_rests = fixed.count(None)
    left = shape[dim] - sum(size for size in fixed if size is not None)
    share, remainder = divmod(left, num_rests) if num_rests else (0, left)
    if remainder or left < num_rests:
        raise Invalid(
            f"{what} along dim {dim}: expected sizes that fill {shape[dim]} elements of shape {list(shape)}, got "
            f"{list(sizes)}",
            code="map-sizes",
        )
    return [share if size is None else size for size in fixed]


def _fixed(size: Size, shape: tuple[int, ...], what: str) -> int | None:
    if isinstance(size, int):
        return size
    match = _OF_DIM.fullmatch(size)
    if match is None:
        return None
    if int(match[1]) >= len(shape):
        raise Invalid(f"{what}: expected a dim below {len(shape)}, got size {size!r}", code="map-sizes")
    return shape[int(match[1])]
