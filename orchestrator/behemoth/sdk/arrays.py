"""The program's arrays as plain bytes where they lie, without copying.

numpy arrays and CPU tensors are taken in place by their address; the bytes of tensors on a device are copied piece by
piece (`devices`). torch is never imported here: a tensor can only exist when the program has imported it. The
neighbour `state` knows names and shapes.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.layout import DTYPES
from behemoth.sdk.devices import DeviceBytes, Lanes
from behemoth.sdk.tensors import Tensor, is_tensor

Bytes = npt.NDArray[np.uint8]


class LocalArray:
    """What this rank holds of an array. `value` is an ndarray or a torch tensor; its memory is looked up anew at each
    use, since programs may give a tensor new storage between steps."""

    def __init__(self, name: str, value: object) -> None:
        self._name = name
        self._value = value
        if not isinstance(value, np.ndarray) and not is_tensor(value):
            raise Invalid(
                f"array {name!r}: expected a numpy array or a torch tensor, got {type(value).__name__}",
                hint="use state.record for small values that are no arrays",
                code="array-type",
            )
        if isinstance(value, np.ma.MaskedArray):
            raise Invalid(
                f"array {name!r}: expected an array without a mask, got a masked one",
                hint="give its .data, and its .mask as an array of its own",
                code="array-type",
            )
        if is_tensor(value):
            _require_memory(name, value)

    @property
    def dtype(self) -> str:
        """The element type by its name in the checkpoint. Raises Invalid for one that cannot be saved."""
        value = self._value
        if isinstance(value, np.ndarray) and not value.dtype.isnative:
            raise Invalid(
                f"array {self._name!r}: expected elements in this machine's byte order, got {value.dtype.str}",
                hint="give array.astype(array.dtype.newbyteorder('=')) instead",
                code="array-dtype",
            )
        name = value.dtype.name if isinstance(value, np.ndarray) else str(_tensor(value).dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise Invalid(
                f"array {self._name!r}: expected a dtype that can be saved, got {name}",
                hint=f"known dtypes: {', '.join(DTYPES)}",
                code="array-dtype",
            )
        return name

    @property
    def shape(self) -> tuple[int, ...]:
        value = self._value
        return tuple(value.shape) if isinstance(value, np.ndarray) else tuple(_tensor(value).shape)

    def content(self, lanes: Lanes) -> Bytes | DeviceBytes:
        """Its memory as bytes, without a copy: to be copied before they change, or to be overwritten in place. Raises
        Invalid for strided or lazy tensors, and for freed storage."""
        self._require_plain()
        value = self._value
        if isinstance(value, np.ndarray):
            return np.asarray(value).reshape(-1).view(np.uint8)
        tensor = _tensor(value)
        if tensor.numel() and tensor.data_ptr() == 0:
            raise Invalid(
                f"array {self._name!r}: expected memory behind its tensor of shape {self.shape}, got none",
                hint="its storage was freed: declare the tensor that holds the values",
                code="array-type",
            )
        return _host_bytes(tensor) if tensor.is_cpu else DeviceBytes(self._name, tensor, lanes.to(tensor.device))

    def content_to_fill(self, lanes: Lanes) -> Bytes | DeviceBytes:
        """As `content`; Invalid for what cannot be overwritten."""
        if isinstance(self._value, np.ndarray) and not self._value.flags.writeable:
            raise Invalid(
                f"array {self._name!r}: expected an array that can be restored in place, got a read-only one",
                hint="give a writable copy",
                code="array-read-only",
            )
        return self.content(lanes)

    def reach(self, lanes: Lanes) -> None:
        """Open the lane to the tensor's device, if it is on one."""
        if is_tensor(self._value) and not self._value.is_cpu:
            lanes.to(self._value.device)

    def _require_plain(self) -> None:
        """Raises Invalid where the values are not contiguous in memory."""
        value = self._value
        is_contiguous = value.flags.c_contiguous if isinstance(value, np.ndarray) else _tensor(value).is_contiguous()
        if not is_contiguous:
            raise Invalid(
                f"array {self._name!r}: expected contiguous memory, got a strided view of shape {self.shape}",
                hint="give the contiguous array that the view is of, or keep a contiguous copy",
                code="array-strided",
            )
        if is_tensor(value) and (value.is_conj() or value.is_neg()):
            raise Invalid(
                f"array {self._name!r}: expected a tensor that holds its values, got a lazy conjugate or negative",
                hint="give tensor.resolve_conj().resolve_neg()",
                code="array-lazy",
            )


def _require_memory(name: str, tensor: Tensor) -> None:
    """Raises Invalid for a tensor whose address leads to no elements: wrapper subclasses (DTensor, tensors for tracing
    or of quantization libraries), nested tensors, and those on the meta device."""
    torch, kind = sys.modules["torch"], type(tensor)
    # A wrapper subclass overrides __torch_dispatch__ and keeps its elements in other tensors.
    is_plain = kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    if is_plain and not tensor.is_nested and not tensor.is_meta:
        return
    got = f"a {kind.__name__}" if not is_plain else "a nested one" if tensor.is_nested else "one on the meta device"
    raise Invalid(
        f"array {name!r}: expected a tensor with memory of its own, got {got}",
        hint="give what holds the elements; of a DTensor tensor.to_local(), and declare how the whole is shared out",
        code="array-type",
    )


def _tensor(value: object) -> Tensor:
    assert is_tensor(value)
    return value


def _host_bytes(tensor: Tensor) -> Bytes:
    num_bytes = tensor.numel() * tensor.element_size()
    if num_bytes == 0:
        return np.empty(0, dtype=np.uint8)
    # The ctypes array does not own the memory: whoever uses these bytes holds the tensor.
    return np.frombuffer(memoryview((ctypes.c_uint8 * num_bytes).from_address(tensor.data_ptr())), dtype=np.uint8)
