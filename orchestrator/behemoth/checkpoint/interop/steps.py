"""The changes of layout of a name map, as values; each has an inverse.

A step maps rows of tensors to rows: one row for each name of a rule, and in it one tensor for each value of the word
over which the rule stacks, or a single tensor. `named`: the values of the map's named sizes. Neighbours: `sizes` (of
parts), `views` and `reshaped` do the work lazily, `rules` puts steps in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.reshaped import Flattened, Unflattened
from behemoth.checkpoint.interop.sizes import Named, Size, factor_sizes, part_sizes
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.interop.views import Concatenated, Permuted, Stacked, inverse_order, split, unstack

Rows = list[list[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Permute:
    """Dim i of the result is dim `order[i]`."""

    order: tuple[int, ...]

    def apply(self, rows: Rows, named: Named) -> Rows:  # noqa: ARG002 (the signature of all)
        return [[Permuted(inner=tensor, order=self.order) for tensor in row] for row in rows]

    def inverse(self) -> Permute:
        return Permute(order=inverse_order(self.order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One name becomes several."""

    dim: int
    sizes: tuple[Size, ...]

    def apply(self, rows: Rows, named: Named) -> Rows:
        (row,) = rows
        return [list(column) for column in zip(*(self._parts(tensor, named) for tensor in row), strict=True)]

    def inverse(self) -> Concat:
        return Concat(dim=self.dim, sizes=self.sizes)

    def _parts(self, tensor: Tensor, named: Named) -> list[Tensor]:
        return split(tensor, self.dim, part_sizes(tensor.shape, self.dim, self.sizes, named, what="split"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat:
    """Several names become one; their sizes must be those into which the way back would split it."""

    dim: int
    sizes: tuple[Size, ...]

    def apply(self, rows: Rows, named: Named) -> Rows:
        counts = [len(row) for row in rows]
        if len(set(counts)) > 1:
            raise Invalid(f"concat: expected equally many tensors of each name, got {counts}", code="map-incomplete")
        return [[self._joined(parts, named) for parts in zip(*rows, strict=True)]]

    def inverse(self) -> Split:
        return Split(dim=self.dim, sizes=self.sizes)

    def _joined(self, parts: Sequence[Tensor], named: Named) -> Tensor:
        joined = Concatenated(parts=tuple(parts), dim=self.dim)
        expected = part_sizes(joined.shape, self.dim, self.sizes, named, what="concat")
        got = [part.shape[self.dim] for part in parts]
        if got != expected:
            raise Invalid(f"concat along dim {self.dim}: expected parts of {expected}, got {got}", code="map-parts")
        return joined


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The tensors that differ in the word `over` become one, along a new dim."""

    dim: int
    over: str

    def apply(self, rows: Rows, named: Named) -> Rows:  # noqa: ARG002
        return [[Stacked(parts=tuple(row), dim=self.dim)] for row in rows]

    def inverse(self) -> Unstack:
        return Unstack(dim=self.dim, over=self.over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstack:
    """One tensor for each index of a dim; the word `over` is its number."""

    dim: int
    over: str

    def apply(self, rows: Rows, named: Named) -> Rows:  # noqa: ARG002
        return [[part for tensor in row for part in unstack(tensor, self.dim)] for row in rows]

    def inverse(self) -> Stack:
        return Stack(dim=self.dim, over=self.over)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unflatten:
    """One dim becomes several, in C order."""

    dim: int
    sizes: tuple[Size, ...]

    def apply(self, rows: Rows, named: Named) -> Rows:
        return [[self._unflattened(tensor, named) for tensor in row] for row in rows]

    def inverse(self) -> Flatten:
        return Flatten(dim=self.dim, sizes=self.sizes)

    def _unflattened(self, tensor: Tensor, named: Named) -> Tensor:
        sizes = factor_sizes(tensor.shape, self.dim, self.sizes, named, what="unflatten")
        return Unflattened(inner=tensor, dim=self.dim, sizes=tuple(sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten:
    """Several dims become one; their sizes must be those into which the way back would part it."""

    dim: int
    sizes: tuple[Size, ...]

    def apply(self, rows: Rows, named: Named) -> Rows:
        return [[self._flattened(tensor, named) for tensor in row] for row in rows]

    def inverse(self) -> Unflatten:
        return Unflatten(dim=self.dim, sizes=self.sizes)

    def _flattened(self, tensor: Tensor, named: Named) -> Tensor:
        flat = Flattened(inner=tensor, dim=self.dim, num_dims=len(self.sizes))
        expected = factor_sizes(flat.shape, self.dim, self.sizes, named, what="flatten")
        got = list(tensor.shape[self.dim : self.dim + len(self.sizes)])
        if got != expected:
            raise Invalid(f"flatten from dim {self.dim} on: expected dims of {expected}, got {got}", code="map-parts")
        return flat


Step = Permute | Split | Concat | Stack | Unstack | Unflatten | Flatten


def sizes_of(step: Step) -> tuple[Size, ...]:
    """Those that a step names; none for one that has none."""
    return step.sizes if isinstance(step, Split | Concat | Unflatten | Flatten) else ()
