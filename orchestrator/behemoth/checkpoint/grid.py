"""Where every byte of an array lies in its objects: closed forms of the layout, so that ranks need not communicate.

An array is one Zarr v3 `sharding_indexed` object, or several that tile it: the chunk in slot s of a shard at
s * stride, its CRC-32C behind it, the index at the end. `cuts` says what is a chunk and what a shard: a box that a rank
holds meets a chunk in one contiguous range. Only the dim that chunks cut may be padded, as the tail of a chunk.
The module computes and does no I/O. Neighbours: `local_boxes` (what a rank holds), `plan` (who writes what).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.box import Box, Interval
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c, trailer
from behemoth.checkpoint.cuts import box_shard_shape, chunk_shape
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout

PAGE_BYTES = 4096
ALIGNED_BYTES = 1 << 20
"""Chunks with payloads from here on begin at pages."""
INDEX_ENTRY_BYTES = 16

Ints = npt.NDArray[np.int64]
_Chunks = TypeVar("_Chunks", int, Ints)


class Meeting(NamedTuple):
    """The chunks that a box intersects, in the box's C order, as columns of equal length."""

    chunks: Ints
    first: Ints
    """The first element of the intersection, counted in the box's C order."""
    offsets: Ints
    """The same element, counted in the chunk's C order."""
    elements: Ints
    """Elements of the intersection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The save grid of one array. Sizes in elements unless they say bytes; chunks and shards count in C order of their
    grids, and slots, the places of a shard's chunks, in C order within it. All shards are alike."""

    spec: ArraySpec
    chunk_shape: tuple[int, ...]
    chunks_per_dim: tuple[int, ...]
    shard_shape: tuple[int, ...]
    """In chunks; it divides `chunks_per_dim`."""
    cut_dim: int
    """The dim along which chunks cut; before it a chunk has one index, behind it whole shares."""

    @property
    def num_chunks(self) -> int:
        return math.prod(self.chunks_per_dim)

    @property
    def payload_bytes(self) -> int:
        """Bytes of a chunk, padding included, CRC not."""
        return math.prod(self.chunk_shape) * self.spec.itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes of a chunk as it is stored: its payload, and the CRC behind that."""
        return self.payload_bytes + TRAILER_BYTES

    @property
    def stride_bytes(self) -> int:
        """Distance of two chunks; that of large ones is rounded up to pages so that reads are aligned."""
        exact = self.stored_bytes
        return exact if self.payload_bytes < ALIGNED_BYTES else -(-exact // PAGE_BYTES) * PAGE_BYTES

    @property
    def gap_bytes(self) -> int:
        """Zeros between a chunk's CRC and the next chunk."""
        return self.stride_bytes - self.stored_bytes

    @property
    def shards_per_dim(self) -> tuple[int, ...]:
        return tuple(num // width for num, width in zip(self.chunks_per_dim, self.shard_shape, strict=True))

    @property
    def num_shards(self) -> int:
        return math.prod(self.shards_per_dim)

    @property
    def num_slots(self) -> int:
        """Chunks of a shard."""
        return math.prod(self.shard_shape)

    @property
    def index_offset_bytes(self) -> int:
        """Where a shard's index begins."""
        return self.num_slots * self.stride_bytes

    @property
    def index_bytes(self) -> int:
        """Size of a shard's index, its CRC included."""
        return self.num_slots * INDEX_ENTRY_BYTES + TRAILER_BYTES

    @property
    def file_bytes(self) -> int:
        """Size of a shard as an object: all strides, and the index."""
        return self.index_offset_bytes + self.index_bytes

    def shard_key(self, shard: int) -> str:
        """Key of a shard below the array's folder: `c/0/0`, or `c` for an array without dims."""
        return "/".join(["c", *(str(index) for index in _indexes(shard, self.shards_per_dim))])

    @property
    def shard_keys(self) -> list[str]:
        """The keys of all shards, in C order of their grid."""
        return [self.shard_key(shard) for shard in range(self.num_shards)]

    def place(self, chunk: _Chunks) -> tuple[_Chunks, _Chunks]:
        """The shard in which a chunk lies, and its slot there; for an array of chunks, two arrays."""
        if self.num_shards == 1:
            return chunk * 0, chunk
        shard, slot, rest = chunk * 0, chunk * 0, chunk
        for dim, (width, num_shards) in enumerate(zip(self.shard_shape, self.shards_per_dim, strict=True)):
            weight = self._chunk_weight(dim)
            index, rest = rest // weight, rest % weight
            shard, slot = shard * num_shards + index // width, slot * width + index % width
        return shard, slot

    def chunks_of(self, shard: int) -> Ints:
        """The chunks of a shard, in order of their slots."""
        slots = np.arange(self.num_slots, dtype=np.int64)
        if self.num_shards == 1:
            return slots
        begins = (at * width for at, width in zip(_indexes(shard, self.shards_per_dim), self.shard_shape, strict=True))
        within = np.unravel_index(slots, self.shard_shape)
        indexes = tuple(begin + index for begin, index in zip(begins, within, strict=True))
        return np.ravel_multi_index(indexes, self.chunks_per_dim).astype(np.int64)

    def chunk_offset_bytes(self, chunk: int) -> int:
        """Where a chunk begins in its shard."""
        return self.place(chunk)[1] * self.stride_bytes

    def chunk_box(self, chunk: int) -> tuple[slice, ...]:
        """The part of the logical array that a chunk holds, without padding."""
        return tuple(
            slice(index * size, min((index + 1) * size, full))
            for index, size, full in zip(
                _indexes(chunk, self.chunks_per_dim), self.chunk_shape, self.spec.shape, strict=True
            )
        )

    def data_bytes(self, chunk: int) -> int:
        """Bytes of a chunk that are data; zeros follow up to `payload_bytes`."""
        if not self._tail:
            return self.payload_bytes
        num_elements: int = math.prod(part.stop - part.start for part in self.chunk_box(chunk))
        return num_elements * self.spec.itemsize

    def all_data_bytes(self) -> Ints:
        """`data_bytes` of every chunk."""
        whole = np.full(self.num_chunks, self.payload_bytes, dtype=np.int64)
        if self._tail:
            # Along the padded dim only the last chunk is short; dims behind it may have several shares.
            behind = math.prod(self.chunks_per_dim[self.cut_dim + 1 :])
            per_cut = self.chunks_per_dim[self.cut_dim]
            whole.reshape(-1, per_cut, behind)[:, -1, :] = self._tail * self._row_elements * self.spec.itemsize
        return whole

    def meeting(self, box: Box, flat: Interval) -> Meeting:
        """The chunks that elements `flat` (at least one, in C order) of a box which some rank holds meet."""
        start, stop = flat
        cut, row, size = self.cut_dim, self._row_elements, self.chunk_shape[self.cut_dim] if box else 1
        low, high = box[cut] if box else (0, 1)
        per_outer = (high - low) * row
        outer = np.arange(start // per_outer, -(-stop // per_outer), dtype=np.int64)[:, None]
        number = np.arange(low // size, -(-high // size), dtype=np.int64)
        begin = np.maximum(number * size, low)
        end = np.minimum((number + 1) * size, high)
        first = outer * per_outer + (begin - low) * row
        last = outer * per_outer + (end - low) * row
        inside = np.maximum(first, start)
        elements = np.minimum(last, stop) - inside
        offsets = (begin - number * size) * row + inside - first
        is_met = elements > 0
        chunks = self._outer_chunks(box, outer) + number * self._chunk_weight(cut) + self._behind(box)
        return Meeting(
            *(column[is_met] for column in (np.broadcast_to(chunks, is_met.shape), inside, offsets, elements))
        )

    def _outer_chunks(self, box: Box, outer: Ints) -> Ints:
        """For each index of the box's dims before the cut dim, in C order: the chunk at index 0 from the cut dim on."""
        numbers, remainder = np.zeros_like(outer), outer
        for dim in reversed(range(self.cut_dim)):
            begin, end = box[dim]
            remainder, at = np.divmod(remainder, end - begin)
            numbers = numbers + (begin + at) * self._chunk_weight(dim)
        return numbers

    def _behind(self, box: Box) -> int:
        """What the box's place along the dims behind the cut dim adds to the numbers of its chunks."""
        behind = range(self.cut_dim + 1, len(box))
        return sum(box[dim][0] // self.chunk_shape[dim] * self._chunk_weight(dim) for dim in behind)

    def _chunk_weight(self, dim: int) -> int:
        """Distance of chunks that are neighbours along `dim`."""
        return math.prod(self.chunks_per_dim[dim + 1 :])

    def index(self) -> bytes:
        """A shard's index: (offset, size) of every slot as little-endian u64, then its CRC-32C."""
        entries = np.empty((self.num_slots, 2), dtype="<u8")
        entries[:, 0] = np.arange(self.num_slots, dtype=np.uint64) * np.uint64(self.stride_bytes)
        entries[:, 1] = self.stored_bytes
        body = entries.tobytes()
        return body + trailer(crc32c(body))

    def zarr_json(self) -> bytes:
        """The array's metadata (Zarr v3 core specification; `sharding_indexed`: ZEP 2), compact."""
        shard = [width * size for width, size in zip(self.shard_shape, self.chunk_shape, strict=True)]
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
    def _row_elements(self) -> int:
        """Elements of a chunk at one index of the cut dim."""
        return math.prod(self.chunk_shape[self.cut_dim + 1 :])

    @property
    def _tail(self) -> int:
        """Indexes of the cut dim in the last chunk along it when that is padded, else 0."""
        return self.spec.shape[self.cut_dim] % self.chunk_shape[self.cut_dim] if self.spec.shape else 0


@lru_cache(maxsize=16)
def grids(layout: Layout) -> tuple[Grid, ...]:
    """The grid of every array, in the layout's order."""
    return tuple(_grid(layout, array) for array in layout.arrays)


def cuts_of(starts: Ints, bounds: Ints) -> Ints:
    """The elements of a box at which another chunk or another piece begins, sorted, each once: chunks begin at
    `starts`, pieces lie between `bounds`; both are sorted.

    Not by numpy's `unique`: it hashes since 2.3, which takes a hundred times as long for a million chunks.
    """
    cuts: Ints = np.sort(np.concatenate([starts, bounds[:-1]]), kind="stable")
    cuts = cuts[cuts < bounds[-1]]
    return cuts[np.diff(cuts, prepend=-1) > 0]


def group_json() -> bytes:
    """Metadata of a Zarr v3 group; not consolidated: one dtype unknown to zarr would make it refuse the whole group."""
    return _compact({"zarr_format": 3, "node_type": "group", "attributes": {}})


def _grid(layout: Layout, spec: ArraySpec) -> Grid:
    sizes = tuple(layout.axis_size(axis) for _, axis in spec.dims)
    chunk, cut_dim = chunk_shape(spec, sizes, layout.chunking)
    chunks_per_dim = tuple(-(-full // size) for full, size in zip(spec.shape, chunk, strict=True))
    return Grid(
        spec=spec,
        chunk_shape=chunk,
        chunks_per_dim=chunks_per_dim,
        shard_shape=box_shard_shape(spec, sizes, chunk) if layout.sharding == "box" else chunks_per_dim,
        cut_dim=cut_dim,
    )


def _indexes(number: int, per_dim: tuple[int, ...]) -> tuple[int, ...]:
    """The indexes of the `number`-th cell of a grid, in C order."""
    found, left = [], int(number)  # numpy takes ten times as long for one number, and each read of a chunk asks
    for size in reversed(per_dim):
        left, index = divmod(left, size)
        found.append(index)
    return tuple(reversed(found))


def _fill_value(dtype: str) -> object:
    """A value that never stands for data; the specification requires one."""
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
