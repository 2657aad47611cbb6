"""Where every byte of an array lies in its file: closed forms of the layout, so that ranks write without talking.

An array is one Zarr v3 `sharding_indexed` object: chunk k at k * stride, its CRC-32C behind it, the index at the end.
Chunk boundaries contain the model-parallel block boundaries and never those of a flat range. A chunk is a run of
consecutive elements of one block: shape (1, .., 1, c, full, .., full). So whatever a rank holds meets a chunk in one
contiguous range. Only a dim that is not split may be padded, and padding is the tail of a chunk.
The module computes and does no I/O. Neighbour: `plan`, which says who writes what.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c, trailer
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout

MAX_CHUNK_BYTES = 8 << 20
"""Payload of a chunk where the divisors of a block allow it."""
POOR_CHUNK_BYTES = MAX_CHUNK_BYTES // 8
"""Below this a divisor is not worth its chunks: an unsplit dim is padded instead, a split one gets larger chunks."""
PAGE_BYTES = 4096
INDEX_ENTRY_BYTES = 16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The save grid of one array. Sizes in elements unless they say bytes; chunks count in C order of their grid."""

    spec: ArraySpec
    block_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    chunks_per_dim: tuple[int, ...]
    chunks_per_block_dim: tuple[int, ...]
    row_elements: int
    """Elements of a block that are cut into chunks together; the last chunk of a row may be padded."""
    chunk_elements: int

    @property
    def num_chunks(self) -> int:
        return math.prod(self.chunks_per_dim)

    @property
    def payload_bytes(self) -> int:
        """Bytes of a chunk, padding included, CRC not."""
        return self.chunk_elements * self.spec.itemsize

    @property
    def stride_bytes(self) -> int:
        """Distance of two chunks: payload and CRC; from 1 MiB on, rounded up to pages so that reads are aligned."""
        exact = self.payload_bytes + TRAILER_BYTES
        return exact if self.payload_bytes < POOR_CHUNK_BYTES else -(-exact // PAGE_BYTES) * PAGE_BYTES

    @property
    def gap_bytes(self) -> int:
        """Zeros between a chunk's CRC and the next chunk."""
        return self.stride_bytes - self.payload_bytes - TRAILER_BYTES

    @property
    def index_offset_bytes(self) -> int:
        return self.num_chunks * self.stride_bytes

    @property
    def index_bytes(self) -> int:
        return self.num_chunks * INDEX_ENTRY_BYTES + TRAILER_BYTES

    @property
    def file_bytes(self) -> int:
        return self.index_offset_bytes + self.index_bytes

    @property
    def chunk_key(self) -> str:
        """Key of the shard object below the array's folder: `c/0/0`, or `c` for an array without dims."""
        return "/".join(["c", *("0" for _ in self.spec.shape)])

    def chunk_offset_bytes(self, chunk: int) -> int:
        return chunk * self.stride_bytes

    def chunk_box(self, chunk: int) -> tuple[slice, ...]:
        """The part of the logical array that a chunk holds, without padding."""
        return tuple(
            slice(index * size, min((index + 1) * size, full))
            for index, size, full in zip(self._chunk_indexes(chunk), self.chunk_shape, self.spec.shape, strict=True)
        )

    def data_bytes(self, chunk: int) -> int:
        """Bytes of a chunk that are data; zeros follow up to `payload_bytes`."""
        if self.row_elements % self.chunk_elements == 0:
            return self.payload_bytes
        num_elements: int = math.prod(part.stop - part.start for part in self.chunk_box(chunk))
        return num_elements * self.spec.itemsize

    def all_data_bytes(self) -> Ints:
        """`data_bytes` of every chunk."""
        whole = np.full(self.num_chunks, self.payload_bytes, dtype=np.int64)
        tail = self.row_elements % self.chunk_elements
        if tail:
            per_row = -(-self.row_elements // self.chunk_elements)
            # Along the padded dim only the last chunk is short; dims behind it may be split and count further inside.
            behind = self.num_chunks // math.prod(self.chunks_per_dim[: self._cut_dim + 1])
            whole.reshape(-1, per_row, behind)[:, -1, :] = tail * self.spec.itemsize
        return whole

    def block_chunk_starts(self) -> Ints:
        """First element, within a block, of each of its chunks; then the number of elements of the block."""
        num_rows = math.prod(self.block_shape) // self.row_elements
        within_row = np.arange(0, self.row_elements, self.chunk_elements, dtype=np.int64)
        starts = (np.arange(num_rows, dtype=np.int64)[:, None] * self.row_elements + within_row).ravel()
        return np.append(starts, num_rows * self.row_elements)

    def chunks_of_block(self, block: Sequence[int], local: Ints) -> Ints:
        """The array's chunk numbers for chunks `local` (counted in C order) of the block with the given coordinates."""
        numbers = np.zeros_like(local)
        remainder, weight = local, 1
        for dim in reversed(range(len(self.chunks_per_dim))):
            remainder, within = np.divmod(remainder, self.chunks_per_block_dim[dim])
            numbers = numbers + (block[dim] * self.chunks_per_block_dim[dim] + within) * weight
            weight *= self.chunks_per_dim[dim]
        return numbers

    def index(self) -> bytes:
        """The shard's index: (offset, size) of every chunk as little-endian u64, then its CRC-32C."""
        entries = np.empty((self.num_chunks, 2), dtype="<u8")
        entries[:, 0] = np.arange(self.num_chunks, dtype=np.uint64) * np.uint64(self.stride_bytes)
        entries[:, 1] = self.payload_bytes + TRAILER_BYTES
        body = entries.tobytes()
        return body + trailer(crc32c(body))

    def zarr_json(self) -> bytes:
        """The array's metadata (Zarr v3 core specification; `sharding_indexed`: ZEP 2), compact."""
        shard = [per_dim * size for per_dim, size in zip(self.chunks_per_dim, self.chunk_shape, strict=True)]
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": list(self.chunk_shape),
            "codecs": inner,
            "index_codecs": inner,
            "index_location": "end",
        }
        return _compact(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.spec.shape),
                "data_type": self.spec.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": _fill_value(self.spec.dtype),
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": {"behemoth": {"name": self.spec.name}},
            }
        )

    @property
    def _cut_dim(self) -> int:
        """The dim along which chunks cut a row: all dims behind it are whole in a chunk."""
        behind = self.row_elements
        for dim in reversed(range(len(self.block_shape))):
            if math.prod(self.block_shape[dim:]) == behind:
                return dim
        return 0

    def _chunk_indexes(self, chunk: int) -> tuple[int, ...]:
        return tuple(int(index) for index in np.unravel_index(chunk, self.chunks_per_dim)) if self.spec.shape else ()


@lru_cache(maxsize=16)
def grids(layout: Layout) -> tuple[Grid, ...]:
    """The grid of every array, in the layout's order."""
    return tuple(_grid(array, layout.block_shape(array)) for array in layout.arrays)


def group_json() -> bytes:
    """Metadata of a Zarr v3 group; not consolidated: one dtype unknown to zarr would make it refuse the whole group."""
    return _compact({"zarr_format": 3, "node_type": "group", "attributes": {}})


def _grid(spec: ArraySpec, block_shape: tuple[int, ...]) -> Grid:
    chunk_shape, cut_dim = _chunk_shape(spec, block_shape)
    return Grid(
        spec=spec,
        block_shape=block_shape,
        chunk_shape=chunk_shape,
        chunks_per_dim=tuple(-(-full // size) for full, size in zip(spec.shape, chunk_shape, strict=True)),
        chunks_per_block_dim=tuple(-(-full // size) for full, size in zip(block_shape, chunk_shape, strict=True)),
        row_elements=math.prod(block_shape[cut_dim:]),
        chunk_elements=math.prod(chunk_shape),
    )


def _chunk_shape(spec: ArraySpec, block_shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The chunk's shape, and the dim that it cuts: whole dims from the last one on, while they fit."""
    chunk = [1] * len(block_shape)
    behind_bytes = spec.itemsize
    for dim in reversed(range(len(block_shape))):
        if behind_bytes * block_shape[dim] > MAX_CHUNK_BYTES:
            is_split = any(dim == split for split, _ in spec.dims)
            chunk[dim] = _cut(block_shape[dim], behind_bytes, is_split=is_split)
            return tuple(chunk), dim
        chunk[dim] = block_shape[dim]
        behind_bytes *= block_shape[dim]
    return tuple(chunk), 0


@lru_cache(maxsize=4096)
def _cut(size: int, behind_bytes: int, *, is_split: bool) -> int:
    """Rows of `behind_bytes` per chunk, of `size` rows."""
    most = max(1, MAX_CHUNK_BYTES // behind_bytes)
    small = np.arange(1, math.isqrt(size) + 1)
    small = small[size % small == 0]
    divisors = np.unique(np.concatenate([small, size // small]))
    fitting = int(divisors[divisors <= most][-1])
    if fitting * behind_bytes >= POOR_CHUNK_BYTES:
        return fitting
    if is_split:
        return int(divisors[divisors > most][0])
    return -(-size // -(-size // most))


def _fill_value(dtype: str) -> object:
    """Never stands for data, but the specification wants one."""
    kind = DTYPES[dtype].kind
    match kind:
        case "b":
            return False
        case "i" | "u":
            return 0
        case "c":
            return [0.0, 0.0]
        case _:
            return 0.0


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
