"""State dicts of one process, compared: for tests that need no world."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp


def save(state: dict[str, Any], **options: Any) -> None:
    """dcp.save in this process alone, which torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, **options)


def load(state: dict[str, Any], **options: Any) -> dict[str, Any]:
    """dcp.load in this process alone; the state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, **options)
    return state


def blank(tree: Any) -> Any:
    """The same tree to load into: zeros for tensors, None for values."""
    if isinstance(tree, dict):
        return {name: blank(value) for name, value in tree.items()}
    if isinstance(tree, list) and any(isinstance(value, torch.Tensor) for value in tree):
        return [blank(value) for value in tree]
    return torch.zeros_like(tree) if isinstance(tree, torch.Tensor) else None


def same(one: Any, other: Any) -> bool:
    """Equal types and bits throughout."""
    if type(one) is not type(other):
        return False
    match one:
        case dict():
            return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
        case list() | tuple():
            return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
        case torch.Tensor():
            return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
        case np.ndarray() | np.generic():
            return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
        case io.BytesIO():
            return bool(one.getvalue() == other.getvalue())
        case _:
            return bool(one == other)


def _bits(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data
