"""Teaches zarr-python the element types of low-precision training: `import behemoth.zarr_dtypes`, then open as usual.

zarr-python 3.1.6 knows neither bfloat16 nor the eight-bit floats; TensorStore does, under these very names. The types
come from `ml_dtypes`, as TensorStore's do. Importing registers them, twice does no harm. Must not import anything else
of Behemoth: it stands alone for people who only read checkpoints. Neighbour: `behemoth.checkpoint.grid`, which writes
the metadata that these types read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast, overload

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import DTypeJSON, HasEndianness, HasItemSize
from zarr.dtype import ZDType, data_type_registry

try:  # later releases, which need Python 3.12, warn of the name below
    from zarr.errors import DataTypeValidationError  # type: ignore[attr-defined,unused-ignore]
except ImportError:
    from zarr.dtype import DataTypeValidationError

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How zarr v3 writes what JSON cannot (core specification 3.0, "Fill value list")."""


@dataclass(frozen=True, kw_only=True)
class _MlFloat(ZDType[Any, Any], HasItemSize):
    """A float type of ml_dtypes. Exists in zarr v3 only: version 2 has no name for it."""

    _scalar: ClassVar[type[np.generic]]
    _numbers_in_json: ClassVar[bool] = True

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> Self:
        if dtype != np.dtype(cls._scalar):
            raise DataTypeValidationError(f"zarr data type {cls._zarr_v3_name}: got numpy type {dtype}")
        return cls()

    def to_native_dtype(self) -> np.dtype[Any]:
        return np.dtype(self._scalar)

    @property
    def item_size(self) -> int:
        """Bytes per element."""
        return self.to_native_dtype().itemsize

    @classmethod
    def _from_json_v2(cls, data: DTypeJSON) -> Self:
        raise DataTypeValidationError(f"zarr data type {cls._zarr_v3_name}: does not exist in zarr v2, got {data!r}")

    @classmethod
    def _from_json_v3(cls, data: DTypeJSON) -> Self:
        if data not in (cls._zarr_v3_name, {"name": cls._zarr_v3_name}):
            raise DataTypeValidationError(f"zarr data type {cls._zarr_v3_name}: got {data!r}")
        return cls()

    @overload
    def to_json(self, zarr_format: Literal[2]) -> Any: ...
    @overload
    def to_json(self, zarr_format: Literal[3]) -> str: ...
    def to_json(self, zarr_format: Literal[2, 3]) -> Any:
        _require_v3(self._zarr_v3_name, zarr_format)
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.integer, np.floating, self._scalar))

    def cast_scalar(self, data: object) -> Any:
        """The nearest value of this type. Raises TypeError for what is no real number."""
        if isinstance(data, self._scalar):
            return data
        if not self._check_scalar(data):
            raise TypeError(f"zarr data type {self._zarr_v3_name}: expected a real number, got {data!r}")
        return self._from_float(float(cast(float, data)))

    def default_scalar(self) -> Any:
        """All bits zero: 0, and 2^-127 where the type has no zero."""
        return np.zeros((), self._scalar)[()]

    def from_json_scalar(self, data: object, *, zarr_format: Literal[2, 3]) -> Any:
        """From a number, "NaN", "Infinity", "-Infinity" or the bits as "0x..". Raises TypeError, ValueError."""
        _require_v3(self._zarr_v3_name, zarr_format)
        match data:
            case str() if data in _SPECIAL:
                return self._from_float(_SPECIAL[data])
            case str():
                return self._from_hex(data)
            case bool():
                raise TypeError(f"zarr fill value of {self._zarr_v3_name}: expected a number, got {data}")
            case int() | float():
                return self._from_float(float(data))
            case _:
                raise TypeError(f"zarr fill value of {self._zarr_v3_name}: expected a number, got {data!r}")

    def to_json_scalar(self, data: object, *, zarr_format: Literal[2, 3]) -> float | str:
        """A number, a name such as "NaN", or the bits as "0x.." for any NaN other than the usual one."""
        _require_v3(self._zarr_v3_name, zarr_format)
        scalar = self.cast_scalar(data)
        value = float(scalar)
        if math.isfinite(value) and self._numbers_in_json:
            return value
        for name, special in _SPECIAL.items():
            if self._from_float(special).tobytes() == scalar.tobytes():
                return name
        return f"0x{scalar.tobytes()[::-1].hex()}"

    def _from_float(self, value: float) -> Any:
        if value == 0 and not math.copysign(1, value) < 0:
            return self.default_scalar()  # as TensorStore does, also where the type has no zero
        return np.float64(value).astype(self._scalar)

    def _from_hex(self, text: str) -> Any:
        digits = text.removeprefix("0x")
        if digits == text or len(digits) != 2 * self.item_size or not set(digits.lower()) <= set("0123456789abcdef"):
            expected = f"a number, NaN, Infinity, -Infinity or 0x and {2 * self.item_size} hexadecimal digits"
            raise ValueError(f"zarr fill value of {self._zarr_v3_name}: expected {expected}, got {text!r}")
        return np.frombuffer(bytes.fromhex(digits)[::-1], self._scalar)[0]


@dataclass(frozen=True, kw_only=True)
class BFloat16(_MlFloat, HasEndianness):
    """bfloat16: 8 bits of exponent, 7 of fraction."""

    dtype_cls = type(np.dtype(ml_dtypes.bfloat16))
    _zarr_v3_name = "bfloat16"
    _scalar = ml_dtypes.bfloat16

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> Self:
        native: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        if dtype == native:
            return cls()
        if dtype == native.newbyteorder(">"):
            return cls(endianness="big")
        raise DataTypeValidationError(f"zarr data type bfloat16: got numpy type {dtype}")

    def to_native_dtype(self) -> np.dtype[Any]:
        native: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return native if self.endianness == "little" else native.newbyteorder(">")


@dataclass(frozen=True, kw_only=True)
class Float8E4M3FN(_MlFloat):
    """float8_e4m3fn: no infinities, one NaN per sign (Micikevicius et al., arXiv:2209.05433)."""

    dtype_cls = type(np.dtype(ml_dtypes.float8_e4m3fn))
    _zarr_v3_name = "float8_e4m3fn"
    _scalar = ml_dtypes.float8_e4m3fn


@dataclass(frozen=True, kw_only=True)
class Float8E5M2(_MlFloat):
    """float8_e5m2: as IEEE 754 would make it (arXiv:2209.05433)."""

    dtype_cls = type(np.dtype(ml_dtypes.float8_e5m2))
    _zarr_v3_name = "float8_e5m2"
    _scalar = ml_dtypes.float8_e5m2


@dataclass(frozen=True, kw_only=True)
class Float8E8M0FNU(_MlFloat):
    """float8_e8m0fnu: powers of two and NaN, the scales of the MX formats (OCP Microscaling Formats 1.0)."""

    dtype_cls = type(np.dtype(ml_dtypes.float8_e8m0fnu))
    _zarr_v3_name = "float8_e8m0fnu"
    _numbers_in_json = False  # TensorStore 0.1.86 reads the fill value 1.5 as 2^-63; bits it reads right
    _scalar = ml_dtypes.float8_e8m0fnu


DATA_TYPES: Mapping[str, type[_MlFloat]] = {
    cls._zarr_v3_name: cls for cls in (BFloat16, Float8E4M3FN, Float8E5M2, Float8E8M0FNU)
}
"""What importing this module registers, by name."""


def register() -> None:
    """Make the types known to zarr-python. Idempotent; called once by the import."""
    for name, cls in DATA_TYPES.items():
        data_type_registry.register(name, cls)


def _require_v3(name: str, zarr_format: int) -> None:
    if zarr_format != 3:
        raise ValueError(f"zarr data type {name}: expected zarr format 3, got {zarr_format}")


register()
