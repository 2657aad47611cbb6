"""Small typed state (cursors, schedules, random number states) as bytes in an array of fixed capacity. Never pickle.

The capacity is part of the layout, so that the grid stays a closed form; the length in front tells the rest. It must
not know what the values mean. Neighbours: the SDK, which encodes what a program hands it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TypeAlias

import msgspec
from typing_extensions import Buffer

from behemoth.base.decoding import UNDECODABLE, told
from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.layout import ArraySpec

RUN_ARRAY = "state/run"
"""uint8[capacity], the same on every rank."""
RANKS_ARRAY = "state/ranks"
"""uint8[world, capacity], a row for each rank."""

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[str, Value] | None"

MAX_DEPTH = 32
_LENGTH = struct.Struct("<Q")
_INTS = range(-(1 << 63), 1 << 64)  # msgpack's


def run_record_spec(capacity_bytes: int) -> ArraySpec:
    """The replicated record of a run."""
    return ArraySpec(name=RUN_ARRAY, dtype="uint8", shape=(capacity_bytes,), may_be_zero=True)


def rank_records_spec(num_ranks: int, capacity_bytes: int) -> ArraySpec:
    """One record for each rank."""
    return ArraySpec(
        name=RANKS_ARRAY, dtype="uint8", shape=(num_ranks, capacity_bytes), dims=((0, "rank"),), may_be_zero=True
    )


def encode_record(value: Value, capacity_bytes: int) -> bytes:
    """Length (u64, little-endian), msgpack, zeros up to `capacity_bytes`. Equal values give equal bytes.

    Raises Invalid, with the path of the value, for what has no typed form (a tuple or a numpy scalar would come back
    as something else, an object would need pickle), and when the record is too long.
    """
    _check(value, "record", 0)
    body = msgspec.msgpack.encode(value)
    if _LENGTH.size + len(body) > capacity_bytes:
        raise Invalid(
            f"record: expected at most {capacity_bytes - _LENGTH.size} bytes, got {len(body)}",
            hint="save large values as arrays, or raise the capacity before the run's first save",
            code="record-size",
        )
    return (_LENGTH.pack(len(body)) + body).ljust(capacity_bytes, b"\0")


def record_size_bytes(value: Value) -> int:
    """The least capacity that holds a value."""
    return _LENGTH.size + len(msgspec.msgpack.encode(value))


def decode_record(data: Buffer) -> Value:
    """Raises Corrupt for what `encode_record` did not make: whoever takes a value apart need not fear its depth."""
    view = memoryview(data).cast("B")
    length = _LENGTH.unpack_from(view)[0] if len(view) >= _LENGTH.size else -1
    if not 0 < length <= len(view) - _LENGTH.size:
        raise Corrupt(f"record of {len(view)} bytes: expected a length within it, got {length}", code="record-rubbish")
    try:
        value: Value = msgspec.msgpack.decode(view[_LENGTH.size : _LENGTH.size + length])
        _check(value, "record", 0)
    except (*UNDECODABLE, Invalid) as error:
        raise Corrupt(f"record of {len(view)} bytes: {told(error)}", code="record-rubbish") from error
    if any(view[_LENGTH.size + length :]):
        raise Corrupt(f"record of {len(view)} bytes: expected zeros behind it", code="record-rubbish")
    return value


def is_blank(data: Buffer) -> bool:
    """Whether there is no record: a rank has none in a checkpoint of another number of ranks."""
    return not any(memoryview(data).cast("B"))


def _check(value: object, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Invalid(f"{path[:200]}: expected at most {MAX_DEPTH} levels", code="record-depth")
    # Exact types: a subclass (numpy.float64 is a float, an IntEnum an int) would come back as its base.
    kind = type(value)
    if value is None or kind in (bool, str, bytes, float):
        return
    if isinstance(value, int) and kind is int and value in _INTS:
        return
    if isinstance(value, list) and kind is list:
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
        return
    if isinstance(value, Mapping) and kind is dict and all(type(key) is str for key in value):
        for key, item in value.items():
            _check(item, f"{path}.{key}", depth + 1)
        return
    raise Invalid(
        f"{path}: expected None, bool, 64-bit int, float, str, bytes, list or dict with str keys, got {kind.__name__}",
        hint="convert it to one of these",
        code="record-type",
    )
