"""Sizes of parts in a name map: numbers, sizes of other dims, the rest, and named sizes of the map.

A named size is a number, or the size of a dim of tensors that both sides have (`router.weight` gives the number of
experts), because some layouts cannot be inverted from the shape of one tensor. Neighbours: `steps`, which uses sizes,
`rules`, which measures the named ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.checkpoint.interop.patterns import Pattern
from behemoth.checkpoint.interop.tensors import Tensor

Size = int | str
"""Size of a part: a number of elements, `dim N` for the size of that dim, `rest`, or a name of the map's sizes. Where
parts follow one another along a dim, all rests share what is left evenly; where one dim becomes several, there is at
most one rest."""
Named = Mapping[str, int]
"""What the names of a map stand for."""

_OF_DIM = re.compile(r"dim (\d{1,2})")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
REST = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePlace:
    """A dim of all tensors of a pattern, which must agree."""

    pattern: Pattern
    dim: int

    def measure(self, name: str, tensors: Mapping[str, Tensor]) -> int | None:
        """None where there is no such tensor. Raises Invalid where they differ, or have no such dim."""
        found: dict[int, str] = {}
        for key, tensor in tensors.items():
            if self.pattern.match(key) is None:
                continue
            if self.dim >= len(tensor.shape):
                raise Invalid(
                    f"size {name!r}: expected a dim {self.dim} of tensor {key!r}, got shape {list(tensor.shape)}",
                    code="map-sizes",
                )
            found.setdefault(tensor.shape[self.dim], key)
        if len(found) > 1:
            (one, first), (other, second) = list(found.items())[:2]
            raise Invalid(
                f"size {name!r}: expected the same of all tensors, got {one} of {first!r} and {other} of {second!r}",
                code="map-sizes",
            )
        return next(iter(found), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSize:
    """A number, or where to look for it on each side."""

    name: str
    value: int | None = None
    source: SizePlace | None = None
    target: SizePlace | None = None

    def inverse(self) -> NamedSize:
        return NamedSize(name=self.name, value=self.value, source=self.target, target=self.source)


def measured(sizes: Sequence[NamedSize], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What each name stands for among these tensors; what nothing tells is left out."""
    found: dict[str, int] = {}
    for size in sizes:
        place = size.source
        value = place.measure(size.name, tensors) if size.value is None and place is not None else size.value
        if value is not None:
            found[size.name] = value
    return found


def check_sizes(sizes: Sequence[Size], names: Collection[str]) -> None:
    """Raises Invalid for a size that says nothing; `names` are those of the map."""
    for size in sizes:
        is_right = size >= 1 if isinstance(size, int) else size in (REST, *names) or _OF_DIM.fullmatch(size) is not None
        if not is_right:
            raise Invalid(
                f"size {size!r}: expected a number >= 1, 'rest', 'dim N' or a name under sizes",
                code="map-sizes",
            )


def is_size_name(text: str) -> bool:
    """Whether a map may call a size so."""
    return _NAME.fullmatch(text) is not None and text != REST


def part_sizes(shape: tuple[int, ...], dim: int, sizes: Sequence[Size], named: Named, *, what: str) -> list[int]:
    """Parts of a dim that lie one behind the other, in elements. Raises Invalid when they do not fill it."""
    fixed = _fixed(shape, dim, sizes, named, what)
    num_rests = fixed.count(None)
    left = shape[dim] - sum(size for size in fixed if size is not None)
    share, remainder = divmod(left, num_rests) if num_rests else (0, left)
    if remainder or left < num_rests:
        raise _unfilled(shape, dim, sizes, fixed, what)
    return [share if size is None else size for size in fixed]


def factor_sizes(shape: tuple[int, ...], dim: int, sizes: Sequence[Size], named: Named, *, what: str) -> list[int]:
    """The dims that one dim becomes. Raises Invalid when their product is not its size."""
    fixed = _fixed(shape, dim, sizes, named, what)
    num_rests = fixed.count(None)
    rest, remainder = divmod(shape[dim], math.prod(size for size in fixed if size is not None))
    if num_rests > 1 or remainder or (not num_rests and rest != 1):
        raise _unfilled(shape, dim, sizes, fixed, what)
    return [rest if size is None else size for size in fixed]


def _fixed(shape: tuple[int, ...], dim: int, sizes: Sequence[Size], named: Named, what: str) -> list[int | None]:
    if dim >= len(shape):
        raise Invalid(f"{what}: expected a dim below {len(shape)} of shape {list(shape)}, got {dim}", code="map-dim")
    return [_resolved(size, shape, named, what) for size in sizes]


def _resolved(size: Size, shape: tuple[int, ...], named: Named, what: str) -> int | None:
    if isinstance(size, int):
        return size
    if size == REST:
        return None
    match = _OF_DIM.fullmatch(size)
    if match is None:
        if size not in named:
            raise Invalid(
                f"{what}: expected a tensor that tells the size {size!r}, got none",
                hint=f"take the tensors along that tell it, or say it with --size {size}=N",
                code="map-sizes",
            )
        return named[size]
    if int(match[1]) >= len(shape):
        raise Invalid(f"{what}: expected a dim below {len(shape)}, got size {size!r}", code="map-sizes")
    return shape[int(match[1])]


def _unfilled(
    shape: tuple[int, ...], dim: int, sizes: Sequence[Size], fixed: Sequence[int | None], what: str
) -> Invalid:
    told = [
        str(size) if number is None or size == number else f"{size} ({number})"
        for size, number in zip(sizes, fixed, strict=True)
    ]
    return Invalid(
        f"{what} along dim {dim}: expected sizes that fill {shape[dim]} elements of shape {list(shape)}, got "
        f"[{', '.join(told)}]",
        code="map-sizes",
    )
