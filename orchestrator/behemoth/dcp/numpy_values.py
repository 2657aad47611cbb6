"""numpy's arrays and scalars as typed records: dtype, shape, bytes. What holds Python objects is refused.

Neighbours: `values`, whose marks these are; `plain_load`, which finds such values in files of torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.records import Value
from behemoth.dcp.text import is_text

_DTYPE = re.compile(r"[<>|](?:b1|[iu][1248]|f[248]|c(?:8|16)|[mM]8(?:\[\d*[A-Za-zμ]+\])?|[SU]\d{1,9})")
"""What is the same on every machine: no long double, no records, no objects."""


def record_of(value: object) -> dict[str, Value] | None:
    """The mark of an array or a scalar, None of anything else, a subclass of an array among them."""
    if isinstance(value, np.ndarray) and type(value) is np.ndarray and _is_plain(value.dtype):
        if not value.dtype.itemsize:
            return None
        return {"%ndarray": {"dtype": value.dtype.str, "shape": [*value.shape], "data": value.tobytes()}}
    # Element by element: `str` and `bytes` of these would cut zeros at the end off.
    if isinstance(value, np.str_) and type(value) is np.str_:
        text = "".join(value)
        return {"%scalar": {"dtype": "str", "data": text if is_text(text) else text.encode(errors="surrogatepass")}}
    if isinstance(value, np.bytes_) and type(value) is np.bytes_:
        return {"%scalar": {"dtype": "bytes", "data": bytes([*value])}}
    if isinstance(value, np.generic) and _is_plain(value.dtype) and type(value) is value.dtype.type:
        return {"%scalar": {"dtype": value.dtype.str, "data": value.tobytes()}}
    return None


def array_of(dtype: str, shape: Sequence[int], data: bytes) -> npt.NDArray[Any]:
    """An array of its own memory, in C order. Raises ValueError, TypeError for what `record_of` did not make."""
    kind = _plain_dtype(dtype)
    sizes = tuple(shape)
    if any(type(size) is not int or size < 0 for size in sizes) or len(data) != kind.itemsize * math.prod(sizes):
        raise ValueError(f"an array of {dtype} and shape {sizes}: got {len(data)} bytes")
    if not data:
        return np.empty(sizes, dtype=kind)
    return np.frombuffer(data, dtype=kind).reshape(sizes).copy()


def scalar_of(dtype: str, data: Any) -> np.generic:
    """Raises ValueError, TypeError for what `record_of` did not make."""
    if dtype == "str" and isinstance(data, str | bytes):
        return np.str_(data if isinstance(data, str) else data.decode(errors="surrogatepass"))
    if dtype == "bytes" and isinstance(data, bytes):
        return np.bytes_(data)
    scalar: np.generic = array_of(dtype, (1,), data)[0]
    return scalar


def _is_plain(dtype: np.dtype[Any]) -> bool:
    return _DTYPE.fullmatch(dtype.str) is not None


def _plain_dtype(text: str) -> np.dtype[Any]:
    """numpy would read much more into a text, objects and records among it."""
    if not _DTYPE.fullmatch(text):
        raise ValueError(f"expected a dtype of numbers, times or text, got {text!r:.40}")
    dtype = np.dtype(text)
    if not dtype.itemsize:
        raise ValueError(f"expected a dtype of some bytes, got {text!r}")
    return dtype
