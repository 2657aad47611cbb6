"""Values of a state dict that are no tensors, as typed records: what Python has beyond msgpack gets a mark.

Never pickle: what has no form here is refused by name, and the caller decides. A marked value is a dict with one key
that begins with `%`, so that everybody can read a record without this module. Neighbours: `checkpoint.records`, which
says what a record holds, and `contents`, where the values of a checkpoint lie.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import torch

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.records import Value
from behemoth.dcp.dtypes import TORCH_DTYPES
from behemoth.dcp.numpy_values import array_of, record_of, scalar_of
from behemoth.dcp.text import is_text

MAX_LEVELS = 9
"""Nesting limit of containers; each may take three levels of a record, which has at most 32."""
_MARK = "%"
_HINT = (
    "convert it to one of these, or leave it out; BehemothWriter(allow_pickle=True) keeps it as a pickle, which "
    "runs code when it is loaded"
)
_TENSOR_HINT = (
    "a planner that flattens the state dict (flatten_state_dict=True) finds tensors in dicts and lists, not in tuples, "
    "sets or classes: make a list of a tuple"
)
_INTS = range(-(1 << 63), 1 << 64)
_PLAIN = (bool, bytes, float)


def to_record(value: object, key: str) -> Value:
    """The typed form of a value. Equal types only: a subclass would come back as its base.

    Raises Invalid with the code `dcp-value`, naming `key` and the type, for what has none.
    """
    return _encoded(value, key, 0)


def from_record(value: Value, key: str) -> object:
    """The inverse of `to_record`. Raises Corrupt for a mark that is unknown or misused."""
    if isinstance(value, list):
        return [from_record(item, key) for item in value]
    if not isinstance(value, Mapping):
        return value
    mark = next(iter(value), "")
    if not mark.startswith(_MARK):
        return {name: from_record(item, key) for name, item in value.items()}
    try:
        return _DECODERS[mark](value[mark], key)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Corrupt(
            f"value {key!r}: expected a marked value of this release, got {value!s:.80}",
            hint="a newer Behemoth may have written it",
            code="dcp-value-rubbish",
        ) from error


def _encoded(value: object, path: str, level: int) -> Value:
    kind = type(value)
    if level > MAX_LEVELS:
        raise Invalid(
            f"value {path!r}: expected at most {MAX_LEVELS} containers within one another, got more",
            hint="flatten it, or leave it out",
            code="dcp-value",
        )
    if isinstance(value, str) and kind is str:
        return value if is_text(value) else {"%str": value.encode(errors="surrogatepass")}
    if value is None or (isinstance(value, _PLAIN) and kind in _PLAIN):
        return value
    if isinstance(value, int) and kind is int:
        return value if value in _INTS else {"%int": str(value)}
    if isinstance(value, list) and kind is list:
        return _items(value, path, level)
    if isinstance(value, dict) and kind is dict and all(_is_plain_name(name) for name in value):
        return {name: _encoded(item, f"{path}.{name}", level + 1) for name, item in value.items()}
    return _marked(value, path, level)


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and type(name) is str and name[:1] != _MARK and is_text(name)


def _marked(value: object, path: str, level: int) -> Value:
    kind = type(value)
    if isinstance(value, tuple) and kind in (tuple, torch.Size):
        return {"%tuple" if kind is tuple else "%size": _items(value, path, level)}
    if isinstance(value, dict) and kind in (dict, OrderedDict):
        pairs = ((name, item) for name, item in value.items())
        return {"%dict" if kind is dict else "%ordered-dict": [_items(pair, path, level) for pair in pairs]}
    if isinstance(value, set | frozenset) and kind in (set, frozenset):
        items = sorted(_items(value, path, level), key=msgspec.msgpack.encode)  # equal sets give equal bytes
        return {"%set" if kind is set else "%frozenset": items}
    if isinstance(value, complex) and kind is complex:
        return {"%complex": [value.real, value.imag]}
    if isinstance(value, slice):
        return {"%slice": _items((value.start, value.stop, value.step), path, level)}
    if isinstance(value, io.BytesIO) and kind is io.BytesIO:
        return {"%bytes-io": value.getvalue()}
    if isinstance(value, torch.dtype) and str(value).removeprefix("torch.") in TORCH_DTYPES:
        return {"%dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"%device": str(value)}
    of_numpy = record_of(value)
    if of_numpy is not None:
        return of_numpy
    raise Invalid(
        f"value {path!r}: expected None, a number, str, bytes, list, tuple, dict, set, numpy array of numbers or text, "
        f"or the like, got {_named(value)}, which only pickle could keep",
        hint=_TENSOR_HINT if isinstance(value, torch.Tensor) else _HINT,
        code="dcp-value",
    )


def _named(value: object) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"{kind} of {value.dtype}" if isinstance(value, np.ndarray) else kind


def _items(values: Iterable[object], path: str, level: int) -> list[Value]:
    return [_encoded(item, f"{path}[{index}]", level + 1) for index, item in enumerate(values)]


def _pairs(items: Any, key: str) -> Iterable[tuple[Any, object]]:
    for name, item in items:
        yield from_record(name, key), from_record(item, key)


_DECODERS: Mapping[str, Callable[[Any, str], object]] = {
    "%int": lambda text, _: int(text),
    "%str": lambda data, _: data.decode(errors="surrogatepass"),
    "%tuple": lambda items, key: tuple(from_record(item, key) for item in items),
    "%size": lambda items, _: torch.Size(items),
    "%dict": lambda items, key: dict(_pairs(items, key)),
    "%ordered-dict": lambda items, key: OrderedDict(_pairs(items, key)),
    "%set": lambda items, key: {from_record(item, key) for item in items},
    "%frozenset": lambda items, key: frozenset(from_record(item, key) for item in items),
    "%complex": lambda parts, _: complex(*parts),
    "%slice": lambda items, key: slice(*(from_record(item, key) for item in items)),
    "%ndarray": lambda told, _: array_of(told["dtype"], told["shape"], told["data"]),
    "%scalar": lambda told, _: scalar_of(told["dtype"], told["data"]),
    "%bytes-io": lambda data, _: io.BytesIO(data),
    "%dtype": lambda name, _: TORCH_DTYPES[name],
    "%device": lambda text, _: torch.device(text),
}
