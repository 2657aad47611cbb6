"""The element types that both torch and the format know: they have the same names. Neighbour: `checkpoint.layout`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from behemoth.base.errors import Invalid
from behemoth.checkpoint.layout import DTYPES

TORCH_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES if hasattr(torch, name)}
_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def dtype_name(dtype: torch.dtype, *, key: str) -> str:
    """The format's name of a dtype. `key` is the tensor's, for the error. Raises Invalid for one that it has not."""
    name = _NAMES.get(dtype)
    if name is None:
        raise Invalid(
            f"tensor {key!r}: expected a known dtype, got {dtype}",
            hint=f"known dtypes: {', '.join(TORCH_DTYPES)}; save others as a view of integers",
            code="dcp-dtype",
        )
    return name


def torch_dtype(name: str, *, key: str) -> torch.dtype:
    """torch's dtype of a name in the format. Raises Invalid where this torch has none."""
    dtype = TORCH_DTYPES.get(name)
    if dtype is None:
        raise Invalid(
            f"array {key!r}: expected a dtype that torch {torch.__version__} has, got {name}",
            hint="load it with a newer torch, or leave it out of the state dict",
            code="dcp-dtype",
        )
    return dtype
