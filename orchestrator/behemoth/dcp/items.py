"""The fields of a DCP write item that describe a tensor, checked to be there. Neighbours: `save_plan` and
`rank_writer`, which read the same items on the coordinator and on their rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.distributed.checkpoint.planner import WriteItem

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box, num_elements


class TensorItem(NamedTuple):
    """A box of a tensor of `shape`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    box: Box

    @property
    def num_bytes(self) -> int:
        """Bytes of the box; 0 for an empty one."""
        return num_elements(self.box) * self.dtype.itemsize


def tensor_item(item: WriteItem) -> TensorItem:
    """Raises Invalid for an item of something else."""
    data = item.tensor_data
    if data is None:
        raise Invalid(f"item {item.index.fqn!r}: expected that of a tensor, got {item.type.name}", code="dcp-item")
    box = box_of(data.chunk.offsets, data.chunk.sizes)
    return TensorItem(item.index.fqn, data.properties.dtype, tuple(data.size), box)


def box_of(offsets: torch.Size, sizes: torch.Size) -> Box:
    """A box from DCP's offsets and sizes."""
    return tuple((offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
