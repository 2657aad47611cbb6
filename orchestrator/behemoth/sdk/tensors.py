"""What is used of torch, which is never imported here: a tensor can only exist when the program has imported it.

Nothing here looks at a tensor's memory. Neighbours: `arrays` (tensors in host memory), `devices` (all others).
"""

from __future__ import annotations

import sys
from typing import ClassVar, Protocol, TypeGuard


class Device(Protocol):
    """A torch.device."""

    @property
    def type(self) -> str: ...


class Tensor(Protocol):
    """What is used of a torch tensor."""

    __torch_dispatch__: ClassVar[object]
    dtype: object
    shape: tuple[int, ...]
    device: Device
    is_cpu: bool
    is_meta: bool
    is_nested: bool

    def is_conj(self) -> bool: ...
    def is_neg(self) -> bool: ...
    def data_ptr(self) -> int: ...
    def numel(self) -> int: ...
    def element_size(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    def detach(self) -> Tensor: ...
    def view(self, what: object) -> Tensor: ...
    def narrow(self, dim: int, start: int, length: int) -> Tensor: ...
    def as_strided(self, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor: ...
    def copy_(self, source: Tensor, *, non_blocking: bool = ...) -> Tensor: ...
    def __float__(self) -> float: ...
    def __int__(self) -> int: ...


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """True for a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
