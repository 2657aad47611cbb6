"""Lazy changes of layout: each turns a box of the result into boxes of the inner tensors, without a copy.

In all of them a box of the result is a box of each inner tensor; `reshaped` has those of which it is several.
Neighbours: `tensors`, `rules`, which says what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.interop.tensors import Raw, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Permuted:
    """Dim i is dim `order[i]` of the inner tensor."""

    inner: Tensor
    order: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.inner.shape))):
            raise Invalid(
                f"permute {list(self.order)}: expected each dim of shape {self.inner.shape} once", code="map-permute"
            )

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.inner.shape[dim] for dim in self.order)

    def grain(self, dim: int) -> int:
        return self.inner.grain(self.order[dim])

    def read_into(self, box: Box, out: Raw) -> None:
        back = inverse_order(self.order)
        self.inner.read_into(tuple(box[dim] for dim in back), out.transpose(back))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliced:
    """Indexes [start, stop) of one dim."""

    inner: Tensor
    dim: int
    start: int
    stop: int

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return _replaced(self.inner.shape, self.dim, self.stop - self.start)

    def grain(self, dim: int) -> int:
        grain = self.inner.grain(dim)
        return math.gcd(grain, self.start) if dim == self.dim else grain

    def read_into(self, box: Box, out: Raw) -> None:
        start, stop = box[self.dim]
        inner = (*box[: self.dim], (start + self.start, stop + self.start), *box[self.dim + 1 :])
        self.inner.read_into(inner, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """One index of a dim, which is gone then."""

    inner: Tensor
    dim: int
    index: int

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.inner.shape[: self.dim], *self.inner.shape[self.dim + 1 :])

    def grain(self, dim: int) -> int:
        return self.inner.grain(dim if dim < self.dim else dim + 1)

    def read_into(self, box: Box, out: Raw) -> None:
        inner = (*box[: self.dim], (self.index, self.index + 1), *box[self.dim :])
        self.inner.read_into(inner, np.expand_dims(out, self.dim))


@dataclass(frozen=True, slots=True, kw_only=True)
class Concatenated:
    """Parts one behind another along a dim."""

    parts: tuple[Tensor, ...]
    dim: int
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        first = self.parts[0]
        _check_dim("concat", self.dim, len(first.shape))
        for part in self.parts:
            same = _replaced(part.shape, self.dim, 0) if len(part.shape) == len(first.shape) else part.shape
            if part.dtype != first.dtype or same != _replaced(first.shape, self.dim, 0):
                raise _unlike("concat", first, part)
        total = sum(part.shape[self.dim] for part in self.parts)
        object.__setattr__(self, "shape", _replaced(first.shape, self.dim, total))

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    def grain(self, dim: int) -> int:
        if dim != self.dim:
            return self.parts[0].grain(dim)
        return math.gcd(*(part.grain(dim) for part in self.parts), *(part.shape[dim] for part in self.parts))

    def read_into(self, box: Box, out: Raw) -> None:
        start, stop = box[self.dim]
        begin = 0
        for part in self.parts:
            end = begin + part.shape[self.dim]
            low, high = max(begin, start), min(end, stop)
            if low < high:
                inner = (*box[: self.dim], (low - begin, high - begin), *box[self.dim + 1 :])
                part.read_into(
                    inner, np.moveaxis(np.moveaxis(out, self.dim, 0)[low - start : high - start], 0, self.dim)
                )
            begin = end


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacked:
    """Parts of one shape along a new dim."""

    parts: tuple[Tensor, ...]
    dim: int

    def __post_init__(self) -> None:
        first = self.parts[0]
        _check_dim("stack", self.dim, len(first.shape) + 1)
        for part in self.parts:
            if (part.dtype, part.shape) != (first.dtype, first.shape):
                raise _unlike("stack", first, part)

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        inner = self.parts[0].shape
        return (*inner[: self.dim], len(self.parts), *inner[self.dim :])

    def grain(self, dim: int) -> int:
        return 1 if dim == self.dim else self.parts[0].grain(dim if dim < self.dim else dim - 1)

    def read_into(self, box: Box, out: Raw) -> None:
        start, stop = box[self.dim]
        inner = (*box[: self.dim], *box[self.dim + 1 :])
        rows = np.moveaxis(out, self.dim, 0)
        for index in range(start, stop):
            self.parts[index].read_into(inner, rows[index - start, ...])


def inverse_order(order: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes an order of dims."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def split(inner: Tensor, dim: int, sizes: Sequence[int]) -> list[Tensor]:
    """Parts of the given sizes along a dim, which the sizes fill."""
    parts: list[Tensor] = []
    start = 0
    for size in sizes:
        parts.append(Sliced(inner=inner, dim=dim, start=start, stop=start + size))
        start += size
    return parts


def unstack(inner: Tensor, dim: int) -> list[Tensor]:
    """One tensor for each index of a dim. Raises Invalid where there is no such dim."""
    _check_dim("unstack", dim, len(inner.shape))
    return [Picked(inner=inner, dim=dim, index=index) for index in range(inner.shape[dim])]


def _replaced(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _check_dim(what: str, dim: int, num_dims: int) -> None:
    if not 0 <= dim < num_dims:
        raise Invalid(f"{what}: expected a dim below {num_dims}, got {dim}", code="map-dim")


def _unlike(what: str, first: Tensor, other: Tensor) -> Invalid:
    return Invalid(
        f"{what}: expected parts like {first.dtype}{list(first.shape)}, got {other.dtype}{list(other.shape)}",
        code="map-parts",
    )
