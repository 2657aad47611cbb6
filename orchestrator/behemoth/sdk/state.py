"""The state of a program as it declares it: its arrays with their logical shapes, and small typed values.

Every rank declares the same arrays; only the local piece differs. The neighbours are `run`, which saves and restores
a State, and `behemoth.checkpoint.layout`, which holds the rules of sharing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Rank
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.cuts import with_close_chunks
from behemoth.checkpoint.layout import ArraySpec, Layout, Sharding, SplitAxes
from behemoth.checkpoint.plan import Piece, plan_rank
from behemoth.checkpoint.records import (
    RANKS_ARRAY,
    RUN_ARRAY,
    Value,
    decode_record,
    encode_record,
    is_blank,
    rank_records_spec,
    run_record_spec,
)
from behemoth.sdk.arrays import Bytes, LocalArray
from behemoth.sdk.declared import bucket_of, packed_of, padded_of, shape_of
from behemoth.sdk.devices import DeviceBytes, Lanes
from behemoth.spec.mesh import Axes, Mesh

RECORD_BYTES = 32 << 10
"""Default capacity of a record: room for the random number states of torch, numpy and Python."""
_FLAT = "with q = ceil(numel / size), piece i is [i q, min((i + 1) q, numel))"
_FLAT_ROWS = "with q = ceil(rows / size), piece i has rows [i q, min((i + 1) q, rows))"
_WITH_CP = 'what is shared over all dense replicas has flat_over=("cp", "dp")'
_FLAT_BUCKET = "with q = ceil(size / holders), holder i has what lies in [i q, min((i + 1) q, size)) of the bucket"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Array:
    local: LocalArray | None
    shape: tuple[int, ...]
    dims: tuple[tuple[int, SplitAxes], ...]
    packed: tuple[int, tuple[int, ...]] | None
    padded: tuple[int, int] | None
    flat_over: Axes | None
    flat_rows: bool
    flat_bucket: tuple[int, int] | None
    stage: int | None
    dtype: str
    is_mutable_in_forward: bool
    may_be_zero: bool
    is_frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    get: Callable[[], Value]
    set: Callable[[Value], None]
    memory: Bytes


class State:
    """Declarations of one program. Used by one thread; frozen by `Run.restore`."""

    def __init__(self) -> None:
        self._arrays: dict[str, _Array] = {}
        self._records: dict[str, _Record] = {}
        self._layout: Layout | None = None

    def array(
        self,
        name: str,
        value: object,
        *,
        shape: tuple[int, ...],
        dims: Mapping[int, SplitAxes] | None = None,
        packed: Mapping[int, Sequence[int]] | None = None,
        padded: Mapping[int, int] | None = None,
        flat_over: Axes | None = None,
        flat_rows: bool = False,
        flat_bucket: tuple[int, int] | None = None,
        stage: int | None = None,
        dtype: str | None = None,
        mutable_in_forward: bool = False,
        may_be_zero: bool = False,
        frozen: bool = False,
    ) -> None:
        """Declare one logical array of `shape`, of which this rank holds `value` (numpy or torch, contiguous).

        `dims` splits a dim over a mesh axis: q = ceil(size / num), coordinate i has [i q, min((i + 1) q, size)), which
        may be empty. Several axes, innermost first, count as one: ("edp", "etp") cuts over etp, and each share over edp
        (FSDP2 on top of tensor parallelism). `packed` names the one split dim that consists of parts (gate|up, q|k|v),
        with their sizes: each is split by itself, and this rank's shares lie one behind the other. `padded` gives the
        size that a split dim has in the program (a vocabulary, padded): that is what is split, and `value` is this
        rank's share without the padding behind the dim's own end. `flat_over` shares the block that results as
        contiguous flat ranges over a data-parallel axis, by the same rule over its elements in C order, or, with
        `flat_rows`, over the rows of its dim 0 (FSDP2). Over several axes, innermost first, they count as one: ("cp",
        "dp") are the replicas of a dense block, of which `mesh.coordinate(("cp", "dp"))` is this one. `flat_bucket`
        (begin, size): the block lies in a buffer of that size, from that element on, and the buffer is shared
        (`behemoth.sdk.bucket`). `stage`: only ranks of that pipeline stage hold it; others give None as `value`, and
        the `dtype`. An array that may change between `save` and `fence` (amax histories, scales) is
        `mutable_in_forward`. `may_be_zero`: turning all-zero is healthy. `frozen`: staying as it is is healthy,
        whatever updates are announced; equal on all ranks, like the rest.

        Raises Invalid.
        """
        self._check_new(name)
        local = LocalArray(name, value) if value is not None else None
        if local is None and dtype is None:
            raise Invalid(
                f"array {name!r}: expected a value, or the dtype of one that another stage holds, got neither"
            )
        declared = _Array(
            local=local,
            shape=shape_of(name, shape),
            dims=tuple(sorted((dims or {}).items())),
            packed=packed_of(name, packed),
            padded=padded_of(name, padded),
            flat_over=flat_over,
            flat_rows=flat_rows,
            flat_bucket=None if flat_bucket is None else bucket_of(name, flat_bucket),
            stage=stage,
            dtype=dtype or (local.dtype if local is not None else ""),
            is_mutable_in_forward=mutable_in_forward,
            may_be_zero=may_be_zero,
            is_frozen=frozen,
        )
        _check_dtype(name, declared)
        self._arrays[name] = declared

    def record(
        self, *, get: Callable[[], Value], set: Callable[[Value], None], capacity_bytes: int = RECORD_BYTES
    ) -> None:
        """Declare a small typed value (None, bool, int, float, str, bytes, lists and dicts of these) that is equal on
        all ranks: cursors, schedules. `get` is called inside `save`, `set` inside `restore`."""
        self._add_record(RUN_ARRAY, get, set, capacity_bytes)

    def rank_record(
        self, *, get: Callable[[], Value], set: Callable[[Value], None], capacity_bytes: int = RECORD_BYTES
    ) -> None:
        """As `record`, with a value of its own for every rank: random number states.

        `set` is not called when the checkpoint was saved by another number of ranks: what each of them kept for itself
        belongs to none of these, which begin as the program begins them.
        """
        self._add_record(RANKS_ARRAY, get, set, capacity_bytes)

    def _add_record(
        self, name: str, get: Callable[[], Value], set_value: Callable[[Value], None], capacity_bytes: int
    ) -> None:
        self._check_open(name)
        if name in self._records:
            raise Invalid(f"{name}: expected one such record, got a second", hint="put both values into one dict")
        self._records[name] = _Record(get=get, set=set_value, memory=np.zeros(capacity_bytes, dtype=np.uint8))

    def _check_new(self, name: str) -> None:
        self._check_open(name)
        if name in self._arrays or name in (RUN_ARRAY, RANKS_ARRAY):
            raise Invalid(f"array {name!r}: expected each name once, got it twice", code="array-duplicate")

    def _check_open(self, name: str) -> None:
        if self._layout is not None:
            raise Conflict(f"{name!r}: expected all declarations before restore, got one after it")


class BoundState:
    """A State bound to a rank of a mesh: the layout, this rank's plan, and its bytes."""

    def __init__(self, state: State, mesh: Mesh, rank: Rank, *, sharding: Sharding = "array") -> None:
        """`sharding`: as the run's store wants it; nothing is saved outside of a run."""
        self._state = state
        layout = Layout(mesh=mesh, arrays=tuple(_specs(state, mesh)), sharding=sharding)
        self.layout = with_close_chunks(layout)
        self.plan = plan_rank(self.layout, rank)
        self._held = {piece.name: piece for piece in self.plan.pieces}
        self._lanes = Lanes()
        self._check_local_shapes()
        state._layout = self.layout

    def is_of(self, state: State) -> bool:
        return self._state is state

    @property
    def num_bytes(self) -> int:
        """Bytes that this rank copies per save."""
        return self.plan.data_bytes

    @property
    def frozen(self) -> tuple[int, ...]:
        """Positions in the layout of the arrays that are declared `frozen`."""
        arrays = self._state._arrays
        names = (array.name for array in self.layout.arrays)
        return tuple(at for at, name in enumerate(names) if name in arrays and arrays[name].is_frozen)

    def early_names(self) -> list[str]:
        """Names of the pieces that must be copied inside `save`, because they may change before `fence`."""
        arrays = self._state._arrays
        return [name for name in self._held if name in self._state._records or arrays[name].is_mutable_in_forward]

    def write_records(self) -> None:
        """Encode the current values of the records into their memory. Raises Invalid when one is too large or of a type
        that records do not have."""
        for record in self._state._records.values():
            encoded = encode_record(record.get(), record.memory.nbytes)
            record.memory[:] = np.frombuffer(encoded, dtype=np.uint8)

    def read_records(self, *, left_out: Collection[int] = ()) -> None:
        """Hand the restored records to the program; `left_out` are positions of arrays that were not restored."""
        for name, record in self._state._records.items():
            if self.layout.positions[name] in left_out or (name == RANKS_ARRAY and is_blank(record.memory.data)):
                continue
            record.set(decode_record(record.memory.tobytes()))

    def sources(self) -> dict[str, memoryview | DeviceBytes]:
        """The bytes to save, by name. Copies from devices are ordered after what the calling thread has queued
        there."""
        return self._memories(is_out=False)

    def targets(self) -> dict[str, memoryview | DeviceBytes]:
        """The memory to restore to, by name. Devices are as in `sources`."""
        return self._memories(is_out=True)

    def pin(self, arena: Arena) -> None:
        """Pin the staging memory, so that devices which hold arrays copy straight from and to it, if they can."""
        for array in self._state._arrays.values():
            if array.local is not None:
                array.local.reach(self._lanes)
        self._lanes.pin(arena.memory)

    def _memories(self, *, is_out: bool) -> dict[str, memoryview | DeviceBytes]:
        found = {name: self._memory(name, is_out=is_out) for name in self._held}
        self._lanes.follow()
        return {name: memory.data if isinstance(memory, np.ndarray) else memory for name, memory in found.items()}

    def _memory(self, name: str, *, is_out: bool) -> Bytes | DeviceBytes:
        record = self._state._records.get(name)
        if record is not None:
            return record.memory
        array = self._state._arrays[name]
        _check_dtype(name, array)
        _check_local(self._held[name], array, self.layout.mesh)
        local = array.local
        assert local is not None
        return local.content_to_fill(self._lanes) if is_out else local.content(self._lanes)

    def _check_local_shapes(self) -> None:
        for piece in self.plan.pieces:
            array = self._state._arrays.get(piece.name)
            if array is not None:
                _check_local(piece, array, self.layout.mesh)


def _specs(state: State, mesh: Mesh) -> list[ArraySpec]:
    specs = [_spec(name, array).without_idle_axes(mesh) for name, array in state._arrays.items()]
    for name, record in state._records.items():
        size = record.memory.nbytes
        specs.append(rank_records_spec(mesh.num_ranks, size) if name == RANKS_ARRAY else run_record_spec(size))
    return specs


def _spec(name: str, array: _Array) -> ArraySpec:
    return ArraySpec(
        name=name,
        dtype=array.dtype,
        shape=array.shape,
        dims=array.dims,
        packed=array.packed,
        padded=array.padded,
        flat_over=array.flat_over,
        flat_rows=array.flat_rows,
        flat_bucket=array.flat_bucket,
        stage=array.stage,
        may_be_zero=array.may_be_zero,
    )


def _check_dtype(name: str, array: _Array) -> None:
    """Raises Invalid when the value's type is not the declared one. Checked at each use: `tensor.data = ...` may change
    it, and bytes of another type of the same size would be saved under the wrong name."""
    if array.local is not None and array.local.dtype != array.dtype:
        raise Invalid(
            f"array {name!r}: expected elements of {array.dtype}, as declared, got {array.local.dtype}",
            hint="declare the type that the value has, and keep it",
            code="array-dtype",
        )


def _check_local(piece: Piece, array: _Array, mesh: Mesh) -> None:
    """Raises Invalid unless the local piece has the shape that the declaration gives this rank."""
    if array.local is None:
        raise Invalid(
            f"array {piece.name!r}: expected this rank's piece, since it is of stage {array.stage}, got None",
            code="array-missing",
        )
    got = array.local.shape
    expected, share = piece.share.local_shape, piece.share
    if array.flat_over is not None:
        if math.prod(got) != share.num_elements:
            raise Invalid(
                f"array {piece.name!r}: expected a flat piece of {share.num_elements} elements (elements "
                f"{share.flat[0]} to {share.flat[1]} of a block of shape {expected}, over {array.flat_over}), got "
                f"shape {got}",
                hint=_flat_hint(array, mesh),
                code="array-local-shape",
            )
        return
    if got != expected:
        raise Invalid(
            f"array {piece.name!r}: expected a local piece of shape {expected} (logical {array.shape}, split "
            f"{dict(array.dims)}), got {got}",
            hint="shape is that of the whole array, the value that of this rank's piece",
            code="array-local-shape",
        )


def _flat_hint(array: _Array, mesh: Mesh) -> str:
    rule = _FLAT_ROWS if array.flat_rows else _FLAT_BUCKET if array.flat_bucket else _FLAT
    is_without_cp = array.flat_over == "dp" and mesh.cp > 1
    return f"{rule}; {_WITH_CP}" if is_without_cp else rule
