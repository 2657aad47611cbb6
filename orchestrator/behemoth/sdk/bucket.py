"""A flat buffer with several tensors and padding in it, of which each data-parallel rank holds one range: the layout of
Megatron's distributed optimizer.

A range begins and ends anywhere, in the middle of tensors and of padding. What is saved are the tensors; padding is
nothing that a checkpoint knows, so that the next run may pad and group them in another way. Neighbour: `state`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from behemoth.base.errors import Invalid
from behemoth.checkpoint.layout import ArraySpec, SplitAxes, axis_size
from behemoth.checkpoint.local_boxes import local_shape, share_of
from behemoth.sdk.declared import packed_of, padded_of
from behemoth.sdk.place import RankMesh
from behemoth.sdk.state import State
from behemoth.sdk.tensors import is_tensor
from behemoth.spec.mesh import Axes, check_axes


class _Buffer(Protocol):
    """What numpy arrays and torch tensors have in common here."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, elements: slice) -> _Buffer: ...
    def __setitem__(self, elements: slice, value: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A tensor in a bucket: `name`, `shape`, `dims`, `packed`, `padded` as `State.array` takes them. Its local block
    begins at element `begin` of the whole buffer; None: where the slot before it ends, its padded rows included."""

    name: str
    shape: tuple[int, ...]
    dims: Mapping[int, SplitAxes] | None = None
    packed: Mapping[int, Sequence[int]] | None = None
    padded: Mapping[int, int] | None = None
    begin: int | None = None


def declare_bucket(
    state: State,
    mesh: RankMesh,
    value: object | None,
    slots: Sequence[Slot],
    *,
    size: int,
    flat_over: Axes = "dp",
    stage: int | None = None,
    dtype: str | None = None,
    may_be_zero: bool = False,
    frozen: bool = False,
) -> None:
    """Declare the tensors of a buffer of `size` elements, padding included, of which this rank holds `value`.

    With q = ceil(size / holders), holder i has elements i q up to min((i + 1) q, size), as numpy array or torch tensor
    of one dim, contiguous. Elements that are in no slot are padding: they are set to zero now, and are not saved. Ranks
    of other pipeline stages than `stage` give None as `value`, and the `dtype`. `flat_over` (("cp", "dp") where the
    buffer is shared over both) and the flags are those of `State.array`. Raises Invalid for slots that overlap or do
    not fit, and for a value of another size.
    """
    check_axes(flat_over, name="bucket")
    start, stop = share_of(size, mesh.size(flat_over), mesh.coordinate(flat_over))
    buffer = None if value is None else _checked(value, stop - start, size, flat_over)
    end = room = 0
    for slot in slots:
        begin = room if slot.begin is None else slot.begin
        if begin < room:
            raise Invalid(
                f"bucket: expected slot {slot.name!r} behind the one before it, from element {room} on, got {begin}",
                hint="give the slots in the order of the buffer",
                code="bucket-order",
            )
        _clear(buffer, end - start, begin - start)
        end, room = (begin + length for length in _lengths(slot, mesh))
        state.array(
            slot.name,
            _part(buffer, begin - start, end - start),
            shape=slot.shape,
            dims=slot.dims,
            packed=slot.packed,
            padded=slot.padded,
            flat_over=flat_over,
            flat_bucket=(begin, size),
            stage=stage,
            dtype=dtype,
            may_be_zero=may_be_zero,
            frozen=frozen,
        )
    _clear(buffer, end - start, size - start)


def _checked(value: object, expected: int, size: int, flat_over: Axes) -> _Buffer:
    """`value` with its type and shape checked. Raises Invalid."""
    if not isinstance(value, np.ndarray) and not is_tensor(value):
        raise Invalid(
            f"bucket: expected a numpy array or a torch tensor, got {type(value).__name__}", code="array-type"
        )
    buffer = cast(_Buffer, value if isinstance(value, np.ndarray) else value.detach())
    if tuple(buffer.shape) != (expected,):
        raise Invalid(
            f"bucket: expected this rank's {expected} of {size} elements over {flat_over}, got shape "
            f"{tuple(buffer.shape)}",
            hint="with q = ceil(size / holders), holder i has [i q, min((i + 1) q, size))",
            code="array-local-shape",
        )
    return buffer


def _lengths(slot: Slot, mesh: RankMesh) -> tuple[int, int]:
    """The number of elements of the block of this rank before `flat_over` cuts it, and the number that it takes up in
    the buffer, which counts padded rows."""
    spec = ArraySpec(
        name=slot.name,
        dtype="uint8",  # any: only shapes are asked for
        shape=slot.shape,
        dims=tuple(sorted((slot.dims or {}).items())),
        packed=packed_of(slot.name, slot.packed),
        padded=padded_of(slot.name, slot.padded),
    )
    sizes = [axis_size(mesh.sizes, axis) for _, axis in spec.dims]
    places = [mesh.rank if axis == "rank" else mesh.coordinate(axis) for _, axis in spec.dims]
    shape = local_shape(spec, sizes, places)
    room = list(shape)
    if spec.padded is not None:
        dim, padded = spec.padded
        room[dim] = -(-padded // dict(zip((dim for dim, _ in spec.dims), sizes, strict=True))[dim])
    return math.prod(shape), math.prod(room)


def _part(buffer: _Buffer | None, begin: int, end: int) -> _Buffer | None:
    """Elements begin..end of the buffer, counted from the start of this rank's range and clipped to it."""
    return None if buffer is None else buffer[_within(begin, end)]


def _clear(buffer: _Buffer | None, begin: int, end: int) -> None:
    if buffer is not None:
        buffer[_within(begin, end)] = 0


def _within(begin: int, end: int) -> slice:
    return slice(max(begin, 0), max(end, 0))
