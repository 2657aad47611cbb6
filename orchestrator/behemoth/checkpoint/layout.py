"""What one checkpoint holds, as logical arrays, and how the mesh shares them: a value that every rank computes alike.

Logical, because ranks come and go: an array keeps its name, shape and dtype whatever the mesh. The module does no I/O
and knows no byte of the files; `grid` places an array in its file, `plan` says which rank holds and writes what.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import ml_dtypes
import msgspec
import numpy as np

from behemoth.base.decoding import UNDECODABLE, decode_msgpack, told
from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.names import checked_name, escaped_paths
from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES, Axes, Axis, Mesh, check_axes, each_axis

SplitAxis = Axis | Literal["rank"]
"""A mesh axis, or `rank`: one slice for every rank of the world (random number states)."""
SplitAxes = SplitAxis | Axes
"""What one dim is split over: an axis, or several of one mesh that count as one, innermost first and in any order:
("edp", "etp") cuts over etp and each share over edp, as FSDP2 does on top of tensor parallelism."""

Sharding = Literal["array", "box"]
"""What one object holds: a whole array, or a box of it that a rank holds, in which that rank's flat range is contiguous
(`cuts`)."""

Chunking = Literal["plain", "close"]
"""By which rules arrays are cut into chunks: those of format 1.0, or such as pad hardly anything (`cuts`)."""

FORMAT_VERSION = 1
MAX_LAYOUT_BYTES = 256 << 20
MAX_DIMS = 32  # numpy and zarr stop there or soon after
MAX_SIZE = 1 << 46
"""Bound of the size of a dim, exclusive: finding divisors of larger sizes would take too much time and memory."""

_NUMPY_NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
DTYPES: Mapping[str, np.dtype[np.generic]] = {
    **{name: np.dtype(name) for name in _NUMPY_NAMES.split()},
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
    },
}
"""The supported element types by the names that zarr v3 and TensorStore give them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One logical array and how it is shared.

    `dims` pairs a tensor dim with the axis, or axes, over which it is split: with q = ceil(size / num), coordinate i
    has [i q, min((i + 1) q, size)), so late ones may be short or empty. `packed` gives the sizes of the parts that one
    of these dims consists of (gate|up, q|k|v): each part is split by itself, and a rank holds its shares one behind the
    other. The local array that results is shared further over `flat_over`, by the same rule, as contiguous ranges of
    its C-order elements, or, with `flat_rows`, of the rows of its dim 0. Several axes there, in the order of their
    mesh, count as one: the replicas of a dense block are those over cp and dp. With `flat_bucket` (begin, size) those
    elements are the ones from `begin` on of a buffer of `size` elements, which has other arrays and padding beside
    them: the buffer is what is shared by that rule, and a holder has of the array what lies in its range. `stage` is
    the only pipeline coordinate that holds the array. `padded` (dim, size) is for programs that pad a split dim (a
    vocabulary): it is shared as if it had `size` elements. Those behind its own end are the program's padding, which
    nobody holds and no checkpoint knows. Over all other axes an array is replicated. Axes are all of the dense
    mesh, or all of the expert mesh. `may_be_zero` says that turning all-zero is healthy for this array.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[tuple[int, SplitAxes], ...] = ()
    flat_over: Axes | None = None
    stage: int | None = None
    may_be_zero: bool = False
    packed: tuple[int, tuple[int, ...]] | None = None
    flat_rows: bool = False
    flat_bucket: tuple[int, int] | None = None
    padded: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        checked_name(self.name)
        if self.dtype not in DTYPES:
            raise Invalid(
                f"array {self.name!r}: expected a known dtype, got {self.dtype!r}",
                hint=f"known dtypes: {', '.join(DTYPES)}",
                code="array-dtype",
            )
        self._check_shape()
        self._check_axes()
        self._check_packed()
        self._check_flat()
        self._check_padded()

    def _check_shape(self) -> None:
        sizes_ok = all(type(size) is int and 1 <= size < MAX_SIZE for size in self.shape)
        if not sizes_ok or len(self.shape) > MAX_DIMS:
            raise Invalid(
                f"array {self.name!r}: expected at most {MAX_DIMS} sizes of 1 .. 2^46 - 1, got shape {self.shape!r}",
                hint="an array without elements has nothing to save: leave it out",
                code="array-shape",
            )
        if math.prod(self.shape) * self.itemsize >= 1 << 62:
            raise Invalid(f"array {self.name!r}: expected fewer than 2^62 bytes, got shape {self.shape}")

    def _check_axes(self) -> None:
        dims = [dim for dim, _ in self.dims]
        if len(set(dims)) != len(dims) or not all(0 <= dim < len(self.shape) for dim in dims):
            raise Invalid(
                f"array {self.name!r}: expected each split dim once within 0 .. {len(self.shape) - 1}, got {dims}",
                code="array-dims",
            )
        axes = [one for axes in self.axes for one in ((axes,) if axes == "rank" else each_axis(axes))]
        if unknown := [axis for axis in axes if axis not in (*get_args(Axis), "rank")]:
            raise Invalid(f"array {self.name!r}: expected mesh axes, got {unknown}", code="array-axes")
        is_rank_alone = "rank" not in axes or (self.axes == ("rank",) and self.stage is None)
        if () in self.axes or len(set(axes)) != len(axes) or not is_rank_alone:
            raise Invalid(
                f"array {self.name!r}: expected each axis once, and rank alone, got {list(self.axes)}",
                code="array-axes",
            )
        if self.stage is not None and ("pp" in axes or self.stage < 0):
            raise Invalid(
                f"array {self.name!r}: expected a stage >= 0 and no axis pp, got stage {self.stage} and {axes}",
                code="array-stage",
            )
        named = set(axes) - {"rank"}
        if not (named <= set(DENSE_AXES) or named <= set(EXPERT_AXES)):
            raise Invalid(
                f"array {self.name!r}: expected axes of one mesh, dense or expert, got {sorted(named)}",
                code="array-axes",
            )
        if self.flat_over is not None:
            check_axes(self.flat_over, name=f"array {self.name!r}")

    def _check_packed(self) -> None:
        if self.packed is not None:
            dim, sizes = self.packed
            is_split = any(dim == split for split, _ in self.dims)
            if not is_split or sum(sizes) != self.shape[dim] or min(sizes, default=0) < 1 or len(sizes) < 2:
                split_dims = [one for one, _ in self.dims]
                raise Invalid(
                    f"array {self.name!r}: expected two or more packed parts, each >= 1, that add up to a split dim, "
                    f"got {list(sizes)} for dim {dim} of shape {self.shape}, split dims {split_dims}",
                    code="array-packed",
                )

    def _check_flat(self) -> None:
        if self.flat_rows and (self.flat_over is None or not self.shape):
            raise Invalid(
                f"array {self.name!r}: expected flat_over and a shape with rows beside flat_rows, got "
                f"{self.flat_over} and {self.shape}",
                code="array-flat-rows",
            )
        if self.flat_bucket is not None:
            begin, size = self.flat_bucket
            if self.flat_over is None or self.flat_rows or begin < 0 or size < 1:
                raise Invalid(
                    f"array {self.name!r}: expected flat_over and no flat_rows beside flat_bucket, a begin >= 0 and a "
                    f"size >= 1, got {self.flat_over}, {self.flat_rows} and {self.flat_bucket}",
                    code="array-bucket",
                )

    def _check_padded(self) -> None:
        if self.padded is None:
            return
        dim, size = self.padded
        is_split = any(dim == split for split, _ in self.dims)
        is_packed = self.packed is not None and self.packed[0] == dim
        if not is_split or is_packed or not self.shape[dim] <= size < MAX_SIZE:
            raise Invalid(
                f"array {self.name!r}: expected a padded size of at least its own for a split dim that is not packed, "
                f"got {size} for dim {dim} of shape {self.shape}, split dims {[one for one, _ in self.dims]}",
                code="array-padded",
            )

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.itemsize

    def part_sizes(self, dim: int) -> tuple[int, ...]:
        """Sizes of the parts of a packed dim; the dim's own size where it is not packed."""
        return self.packed[1] if self.packed is not None and self.packed[0] == dim else (self.shape[dim],)

    def shared_sizes(self, dim: int) -> tuple[int, ...]:
        """The sizes by which the parts of a dim are split: their own, or the size with the program's padding."""
        return (self.padded[1],) if self.padded is not None and self.padded[0] == dim else self.part_sizes(dim)

    @property
    def axes(self) -> tuple[SplitAxes, ...]:
        """The axes along which the array is cut into pieces: those of the split dims in order, then `flat_over`. An
        entry of several axes counts as one."""
        split: tuple[SplitAxes, ...] = tuple(axis for _, axis in self.dims)
        return split if self.flat_over is None else (*split, self.flat_over)

    def without_idle_axes(self, mesh: Mesh) -> ArraySpec:
        """The same shares without axes of size 1 in joint axes: a program that names ("cp", "dp") and runs without cp
        then saves what releases without joint axes can read."""
        over = self.flat_over
        return replace(
            self,
            dims=tuple((dim, mesh.without_idle(axes) if isinstance(axes, tuple) else axes) for dim, axes in self.dims),
            flat_over=mesh.without_idle(over) if isinstance(over, tuple) else over,
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All arrays of a checkpoint in name order, and the mesh they lie on. Not slotted: derived values are cached.

    `sharding` tells how they are put into objects. Where a range of an object can be written, one for each array is
    enough, so that is the default; object storage takes whole parts, which suit one rank only in boxes. `chunking` is
    for `cuts.with_close_chunks` to choose, by which all new layouts go; the default is what older checkpoints have.
    """

    mesh: Mesh
    arrays: tuple[ArraySpec, ...]
    sharding: Sharding = "array"
    chunking: Chunking = "plain"

    def __post_init__(self) -> None:
        for name, given, known in (
            ("sharding", self.sharding, get_args(Sharding)),
            ("chunking", self.chunking, get_args(Chunking)),
        ):
            if given not in known:
                raise Invalid(f"layout: expected {name} {' or '.join(known)}, got {given!r}", code=f"layout-{name}")
        object.__setattr__(self, "arrays", tuple(sorted(self.arrays, key=lambda array: array.name)))
        for first, second in zip(self.arrays, self.arrays[1:], strict=False):
            if first.name == second.name:
                raise Invalid(f"layout: expected each array once, got {first.name!r} twice", code="array-duplicate")
        for array in self.arrays:
            _check_stage(self.mesh, array)
            _check_bucket(self.mesh, array)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Layout) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """For each array, its folder below the step's prefix; see `names.escaped_paths`."""
        return escaped_paths([array.name for array in self.arrays])

    @cached_property
    def positions(self) -> dict[str, int]:
        """Index of each array by name."""
        return {array.name: position for position, array in enumerate(self.arrays)}

    @cached_property
    def _encoded(self) -> bytes:
        arrays = [_as_first_written(array) for array in self.arrays]
        document: dict[str, object] = {"version": FORMAT_VERSION, "mesh": self.mesh, "arrays": arrays}
        if self.sharding != "array":  # of format 1.1: left out where it says nothing, so that digests stay
            document["sharding"] = self.sharding
        if self.chunking != "plain":  # of format 1.5, likewise
            document["chunking"] = self.chunking
        return msgspec.msgpack.encode(document)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the encoded form, hex: two layouts are the same exactly when it is."""
        return hashlib.sha256(self._encoded).hexdigest()

    def axis_size(self, axis: SplitAxes) -> int:
        return axis_size(self.mesh, axis)

    def encode(self) -> bytes:
        """Versioned msgpack, for `decode`; the same layout always gives the same bytes."""
        return self._encoded

    @staticmethod
    def decode(data: bytes) -> Layout:
        """Raises Corrupt for what is no layout, Invalid for one that this release cannot use."""
        if len(data) > MAX_LAYOUT_BYTES:
            raise Corrupt(f"layout: expected at most {MAX_LAYOUT_BYTES} bytes, got {len(data)}", code="layout-size")
        try:
            version = decode_msgpack(data, _Version).version
            if version == FORMAT_VERSION:
                document = decode_msgpack(data, _Document)
                return Layout(
                    mesh=document.mesh,
                    arrays=document.arrays,
                    sharding=document.sharding,
                    chunking=document.chunking,
                )
        except Invalid:
            raise
        except (*UNDECODABLE, ValueError, TypeError) as error:
            if isinstance(error.__cause__, Invalid):
                raise error.__cause__ from error
            raise Corrupt(f"layout: expected a msgpack document, got: {told(error)}", code="layout-rubbish") from error
        raise Invalid(
            f"layout: expected format version {FORMAT_VERSION}, got {version}",
            hint="a newer Behemoth wrote it: upgrade",
            code="format-unknown",
        )


_LATER_FIELDS = ("packed", "flat_rows", "flat_bucket", "padded")
"""Fields that ArraySpec has got since the first release of the format: left out where they have their default, so that
digests stay the same."""


def _as_first_written(array: ArraySpec) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(array)
    for name in _LATER_FIELDS:
        if not fields[name]:
            del fields[name]
    return fields


class _Version(msgspec.Struct, kw_only=True):
    version: int


class _Document(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: int
    mesh: Mesh
    arrays: tuple[ArraySpec, ...]
    sharding: Sharding = "array"
    chunking: Chunking = "plain"


def axis_size(mesh: Mesh, axis: SplitAxes) -> int:
    """Number of coordinates on `axis`; for `rank` the world size."""
    return mesh.num_ranks if axis == "rank" else mesh.size(axis)


def _check_stage(mesh: Mesh, array: ArraySpec) -> None:
    if array.stage is not None and array.stage >= mesh.pp:
        raise Invalid(
            f"array {array.name!r}: expected a stage below mesh.pp = {mesh.pp}, got {array.stage}", code="array-stage"
        )


def _check_bucket(mesh: Mesh, array: ArraySpec) -> None:
    """The largest block must fit, that of coordinate 0 on every axis."""
    if array.flat_bucket is None:
        return
    shape = list(array.shape)
    for dim, axis in array.dims:
        shape[dim] = sum(-(-size // axis_size(mesh, axis)) for size in array.shared_sizes(dim))
    begin, size = array.flat_bucket
    if begin + math.prod(shape) > size:
        raise Invalid(
            f"array {array.name!r}: expected its {math.prod(shape)} elements on a rank to fit into a bucket of {size} "
            f"from element {begin} on, got {begin + math.prod(shape) - size} too many",
            code="array-bucket",
        )
