"""Reads values that torch.save made without running code of theirs; numpy's are rebuilt from dtype, shape and bytes.

torch's own `weights_only` refuses numpy. To allow numpy's functions would be to call them with whatever the file says,
so names of its pickles stand for classes of this module, which only keep what they are given, as in `metadata_file`.
Not for several threads at once: torch keeps what is allowed in one place. Neighbours: `foreign`, `rank_writer`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import IO, Any

import torch

from behemoth.dcp.numpy_values import array_of, scalar_of


class _Dtype:
    """What numpy pickles of a dtype: its name, and then its byte order."""

    def __init__(self, text: str, *_flags: object) -> None:
        self.text = text
        self.order = "|"
        self.unit: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.order, subarray, names, fields, *_ = state
        if subarray is not None or names is not None or fields is not None:
            raise ValueError("expected a plain dtype, got a record or a subarray")
        self.unit = state[8] if len(state) > 8 else None  # metadata of times: (None, (unit, multiple, ...))

    @property
    def name(self) -> str:
        text = f"{'<' if self.order == '=' else self.order}{self.text}"
        if self.unit is None:
            return text
        unit, multiple, *_ = self.unit[1]
        if isinstance(unit, bytes):
            unit = unit.decode()
        return text if unit == "generic" else f"{text}[{'' if multiple == 1 else multiple}{unit}]"


class _Ndarray:
    """Stands for the class alone, as an argument."""


class _Array:
    """What numpy pickles of an array: nothing at first, all of it as its state."""

    def __init__(self, _kind: object, _shape: object, _code: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def value(self) -> object:
        _version, shape, dtype, is_fortran, data = self.state
        array = array_of(dtype.name, shape[::-1] if is_fortran else shape, data)
        return array.T.copy() if is_fortran else array


class _Scalar:
    def __init__(self, dtype: _Dtype, data: object) -> None:
        self.dtype = dtype
        self.data = data

    def value(self) -> object:
        if isinstance(self.data, bytes) and self.dtype.text.startswith("U"):
            order = "be" if self.dtype.order == ">" else "le"
            return scalar_of("str", self.data.decode(f"utf-32-{order}", errors="surrogatepass"))
        if self.dtype.text.startswith("S"):
            return scalar_of("bytes", self.data)
        return scalar_of(self.dtype.name, self.data)


def _no_bytes() -> bytes:
    """An empty bytes object, as the oldest pickles write it; `bytes` itself would accept a length."""
    return b""


_STAND_INS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Ndarray, "numpy.ndarray"),
    *((_no_bytes, f"{builtins}.bytes") for builtins in ("builtins", "__builtin__")),
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_Scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def load_plain(file: IO[bytes]) -> object:
    """Raises whatever torch does for what only code could load, and ValueError for arrays that are none."""
    with torch.serialization.safe_globals(_STAND_INS):
        loaded = torch.load(file, weights_only=True, map_location="cpu")
    return _rebuilt(loaded)


def _rebuilt(value: object) -> object:
    """The value with arrays in place of their stand-ins, in dicts, lists and tuples; records have no other
    containers."""
    match value:
        case _Array() | _Scalar():
            return value.value()
        case dict() if type(value) in (dict, OrderedDict):
            return type(value)((_rebuilt(name), _rebuilt(item)) for name, item in value.items())
        case list() if type(value) is list:
            return [_rebuilt(item) for item in value]
        case tuple() if type(value) is tuple:
            return tuple(_rebuilt(item) for item in value)
        case _:
            return value
