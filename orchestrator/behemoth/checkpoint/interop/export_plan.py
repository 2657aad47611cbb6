"""What an export writes: which tensor goes into which safetensors file, and every byte's place there. Reads nothing.

Neighbours: `export` writes the files, `header` has the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from behemoth.base.errors import Invalid
from behemoth.checkpoint.box import Box, num_elements, shape_of
from behemoth.checkpoint.interop.header import HeadTensor, encode_header
from behemoth.checkpoint.interop.tensors import Tensor, blocks, grain_bytes, num_bytes, tiles
from behemoth.checkpoint.layout import DTYPES

SINGLE = "model.safetensors"
BLOCK_BYTES = 64 << 20
"""Bytes of a tensor that are held at a time."""
WIDE_BYTES = 256 << 20
"""The same of a tensor that has to go out in order and is stored in another one (transposed): what lies side by side in
the file comes from all of its chunks, which are read again for each block."""


class Block(NamedTuple):
    """A box of a tensor, contiguous in the file."""

    tensor: Tensor
    box: Box


class Tile(NamedTuple):
    """A box of a tensor that lies in the file from `begin` on; rows of the box are apart from each other there."""

    tensor: Tensor
    box: Box
    begin: int

    def runs(self) -> tuple[list[int], int]:
        """Where the contiguous pieces of the box begin in the file, in C order, and the bytes of each."""
        shape, sizes = self.tensor.shape, shape_of(self.box)
        pitches = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        first = len(shape)  # dims from here on are whole, or make one piece with those that are
        while first > 0 and (first == len(shape) or sizes[first] == shape[first]):
            first -= 1
        starts = np.zeros(1, dtype=np.int64)
        for dim in range(first):
            starts = (starts[:, None] + np.arange(*self.box[dim]) * pitches[dim]).reshape(-1)
        behind = sum(start * pitch for (start, _), pitch in zip(self.box[first:], pitches[first:], strict=True))
        itemsize = DTYPES[self.tensor.dtype].itemsize
        return (self.begin + (starts + behind) * itemsize).tolist(), math.prod(sizes[first:]) * itemsize


class FilePart(NamedTuple):
    """Bytes of a file that are written at once: the head, in the first one, and blocks that follow one another."""

    offset_bytes: int
    num_bytes: int
    head: bytes
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """One file: its head, and each tensor with the place of its first byte in the file."""

    name: str
    header: bytes
    tensors: tuple[tuple[Tensor, int], ...]
    size_bytes: int

    def parts(self, least_bytes: int) -> Iterator[FilePart]:
        """The whole file in order, each part but the last of at least so many bytes, and less than a block more. A
        tensor that is stored in another order is read as often as its grains have blocks of `WIDE_BYTES`."""
        begin, end, head, taken = 0, len(self.header), self.header, list[Block]()
        for tensor, _ in self.tensors:
            for box in blocks(tensor, limit_bytes=_block_bytes(tensor)):
                if end - begin >= least_bytes:
                    yield FilePart(begin, end - begin, head, tuple(taken))
                    begin, head, taken = end, b"", []
                taken.append(Block(tensor, box))
                end += num_elements(box) * DTYPES[tensor.dtype].itemsize
        yield FilePart(begin, end - begin, head, tuple(taken))

    def tiles(self) -> Iterator[Tile]:
        """All bytes behind the head, in an order in which nothing is read twice, a block at most at a time. Small
        elements come first: of float8 values that have been read the scales are known."""
        for tensor, begin in reversed(self.tensors):
            for box in tiles(tensor, limit_bytes=BLOCK_BYTES):
                yield Tile(tensor, box, begin)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What will be written. `index` is None when one file holds everything, as transformers has it."""

    files: tuple[FilePlan, ...]
    index: bytes | None
    num_tensors: int
    data_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files) + len(self.index or b"")


def plan_export(tensors: Mapping[str, Tensor], *, max_file_bytes: int, metadata: Mapping[str, str]) -> ExportPlan:
    """Share tensors out to files, in their order; one that is larger than `max_file_bytes` gets a file of its own.

    Reads nothing. The same arguments give the same plan. `metadata` goes into every file. Raises Invalid for no tensor
    at all, and for a dtype that safetensors does not know.
    """
    if not tensors:
        raise Invalid("export: expected at least one tensor, got none", hint="look at --select", code="export-empty")
    groups = _groups(tensors, max_file_bytes)
    files = []
    for number, names in enumerate(groups, start=1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        files.append(_file(name, {key: tensors[key] for key in names}, metadata))
    data_bytes = sum(num_bytes(tensor) for tensor in tensors.values())
    holders = {key: file.name for file, names in zip(files, groups, strict=True) for key in names}
    index = {"metadata": {"total_size": data_bytes}, "weight_map": dict(sorted(holders.items()))}
    return ExportPlan(
        files=tuple(files),
        index=json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n" if len(files) > 1 else None,
        num_tensors=len(tensors),
        data_bytes=data_bytes,
    )


def _block_bytes(tensor: Tensor) -> int:
    """As few and equal blocks of a grain as may be, where a grain is more than a block."""
    size_bytes = grain_bytes(tensor, limit_bytes=BLOCK_BYTES)
    return max(BLOCK_BYTES, -(-size_bytes // -(-size_bytes // WIDE_BYTES)))


def _groups(tensors: Mapping[str, Tensor], max_file_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = []
    filled = 0
    for name, tensor in tensors.items():
        size = num_bytes(tensor)
        if not groups or filled + size > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _file(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FilePlan:
    """Larger elements come first, so that every tensor begins at a multiple of its element's size."""
    order = sorted(tensors, key=lambda key: -DTYPES[tensors[key].dtype].itemsize)
    heads, end = [], 0
    for key in order:
        tensor = tensors[key]
        heads.append(HeadTensor(name=key, dtype=tensor.dtype, shape=tensor.shape, offset_bytes=end))
        end += num_bytes(tensor)
    header = encode_header(heads, metadata)
    placed = ((tensors[head.name], len(header) + head.offset_bytes) for head in heads)
    return FilePlan(name=name, header=header, tensors=tuple(placed), size_bytes=len(header) + end)
