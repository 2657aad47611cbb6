"""The tensors of a save, resolved as late as possible and released as soon as they are written, and their bytes.

A planner may make a tensor when it is asked, which takes memory; several threads may need the same one. Neighbours:
`rank_writer`, which knows the planner, `box_writer` and `bucket_writer`, which ask.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from behemoth.checkpoint.reshard import Slices


class Tensors:
    """Tensors by number, each asked of `resolve` when it is first needed. Thread-safe; `resolve` is called by one
    thread at a time."""

    def __init__(self, resolve: Callable[[int], torch.Tensor]) -> None:
        self._resolve = resolve
        self._held: dict[int, torch.Tensor] = {}
        self._lock = threading.Lock()

    def of(self, number: int) -> torch.Tensor:
        """The tensor of that number. Raises what `resolve` does."""
        with self._lock:
            if number not in self._held:
                self._held[number] = self._resolve(number)
            return self._held[number]

    def drop(self, number: int) -> None:
        """Release the tensor of that number."""
        with self._lock:
            self._held.pop(number, None)


def holds_elements(tensor: torch.Tensor) -> bool:
    """Whether its elements are in memory of its own: not those of a subclass that is made of other tensors (quantized
    weights), or of none (fake ones). Parameters hold theirs."""
    dispatch: object = type(tensor).__torch_dispatch__
    return dispatch is torch.Tensor.__torch_dispatch__ and tensor.layout == torch.strided and not tensor.is_meta


def bytes_of(tensor: torch.Tensor, part: Slices) -> memoryview:
    """The elements of a part in C order; the tensor's own memory where they are contiguous on the CPU."""
    elements = tensor[part].detach().cpu().resolve_conj().resolve_neg().contiguous()
    raw: memoryview = elements.reshape(-1).view(torch.uint8).numpy().data
    return raw
