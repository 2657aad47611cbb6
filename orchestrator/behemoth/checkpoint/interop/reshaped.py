"""Lazy reshapes for name maps: one dim as several (unflatten), and several as one (flatten).

A box of the result is several boxes of the inner tensor, each of which is read by itself, straight into its place where
strides allow it, so that memory is bounded by the box. Neighbours: `views`, `steps`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box, Interval, flat_boxes, shape_of
from behemoth.checkpoint.interop.tensors import Raw, Tensor, read_box


@dataclass(frozen=True, slots=True, kw_only=True)
class Flattened:
    """Dims [dim, dim + num_dims) of the inner tensor as one, in C order."""

    inner: Tensor
    dim: int
    num_dims: int

    def __post_init__(self) -> None:
        num_dims = len(self.inner.shape)
        if self.num_dims < 1 or self.dim + self.num_dims > num_dims:
            raise Invalid(
                f"flatten: expected dims below {num_dims} of shape {list(self.inner.shape)}, got {self.num_dims} from "
                f"{self.dim} on",
                code="map-dim",
            )

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.inner.shape
        return (*shape[: self.dim], math.prod(self._group), *shape[self.dim + self.num_dims :])

    def grain(self, dim: int) -> int:
        if dim != self.dim:
            return self.inner.grain(dim if dim < self.dim else dim + self.num_dims - 1)
        grain = 1
        for at in reversed(range(self.num_dims)):
            size, of_dim = self._group[at], self.inner.grain(self.dim + at)
            grain *= math.gcd(of_dim, size) if of_dim < size else size
            if of_dim < size:
                break
        return grain

    def read_into(self, box: Box, out: Raw) -> None:
        whole = tuple((0, size) for size in self._group)
        place = 0
        for part in flat_boxes(whole, box[self.dim]):
            sizes = shape_of(part)
            target = out[(slice(None),) * self.dim + (slice(place, place + math.prod(sizes)),)]
            inner = (*box[: self.dim], *part, *box[self.dim + 1 :])
            _read_reshaped(self.inner, inner, target)
            place += math.prod(sizes)

    @property
    def _group(self) -> tuple[int, ...]:
        return self.inner.shape[self.dim : self.dim + self.num_dims]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unflattened:
    """Dim `dim` of the inner tensor as several of `sizes`, in C order."""

    inner: Tensor
    dim: int
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = self.inner.shape
        if not 0 <= self.dim < len(shape) or math.prod(self.sizes) != shape[self.dim]:
            raise Invalid(
                f"unflatten along dim {self.dim}: expected sizes whose product is that dim of shape {list(shape)}, got "
                f"{list(self.sizes)}",
                code="map-sizes",
            )

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.inner.shape[: self.dim], *self.sizes, *self.inner.shape[self.dim + 1 :])

    def grain(self, dim: int) -> int:
        at = dim - self.dim
        if not 0 <= at < len(self.sizes):
            return self.inner.grain(dim if at < 0 else dim - len(self.sizes) + 1)
        behind = math.prod(self.sizes[at + 1 :])
        grain = self.inner.grain(self.dim)
        return max(1, math.gcd(grain, self.sizes[at] * behind) // behind)

    def read_into(self, box: Box, out: Raw) -> None:
        group = box[self.dim : self.dim + len(self.sizes)]
        behind = box[self.dim + len(self.sizes) :]
        for place, run in _runs(group, self.sizes):
            target = out[(slice(None),) * self.dim + place]
            _read_reshaped(self.inner, (*box[: self.dim], run, *behind), target)


def _runs(group: Sequence[Interval], sizes: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], Interval]]:
    """The parts of a box of dims of `sizes` that lie in one piece, flat, in C order: where in the box, and which
    elements."""
    cut = len(sizes) - 1  # behind this dim the box has every dim in full
    while cut > 0 and group[cut] == (0, sizes[cut]):
        cut -= 1
    behind = math.prod(sizes[cut + 1 :])
    start, stop = group[cut]
    for outer in product(*(range(low, high) for low, high in group[:cut])):
        flat = 0
        for index, size in zip(outer, sizes, strict=False):
            flat = flat * size + index
        first = flat * sizes[cut]
        place = tuple(slice(index - low, index - low + 1) for index, (low, _) in zip(outer, group, strict=False))
        yield place, ((first + start) * behind, (first + stop) * behind)


def _read_reshaped(inner: Tensor, box: Box, out: Raw) -> None:
    """Elements of a box into an array of as many in another shape: straight, where the strides of `out` allow it."""
    sizes = shape_of(box)
    try:
        target = out.reshape(sizes, copy=False)
    except ValueError:
        out[...] = read_box(inner, box).reshape(out.shape)
        return
    inner.read_into(box, target)
