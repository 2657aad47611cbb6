"""Where every byte of an array lies in its file: closed forms of the layout, so that ranks write without talking.

An array is one Zarr v3 `sharding_indexed` object: chunk k at k * stride, its CRC-32C behind it, the index at the end. A
chunk has the shape (1, .., 1, c, full, .., full), where a full dim is the array's own or the share that every rank has
of it. So whatever box of the array a rank holds meets a chunk in one contiguous range, and a flat range of the box
does. Where the sizes have fitting divisors, c is one, and each chunk belongs to one box; it never follows the
boundaries of a flat range. Only the dim that c cuts may be padded, and padding is the tail of a chunk.
The module computes and does no I/O. Neighbours: `boxes` (what a rank holds), `plan` (who writes what).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.boxes import Box, Interval, parts_of, share_of
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c, trailer
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout

MAX_CHUNK_BYTES = 8 << 20
"""Payload of a chunk where the divisors of a block allow it."""
POOR_CHUNK_BYTES = MAX_CHUNK_BYTES // 8
"""Below this a divisor is not worth its chunks: an unsplit dim is padded instead, a split one gets larger chunks."""
PAGE_BYTES = 4096
INDEX_ENTRY_BYTES = 16

Ints = npt.NDArray[np.int64]


class Meeting(NamedTuple):
    """The chunks that a box meets, in the box's C order, as columns."""

    chunks: Ints
    first: Ints
    """The box's element with which the common part begins."""
    offsets: Ints
    """The chunk's element with which it begins."""
    elements: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The save grid of one array. Sizes in elements unless they say bytes; chunks count in C order of their grid."""

    spec: ArraySpec
    chunk_shape: tuple[int, ...]
    chunks_per_dim: tuple[int, ...]
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
        """Numbers of the chunks at index 0 from the cut dim on, for indexes of the box's dims before it in C order."""
        numbers, remainder = np.zeros_like(outer), outer
        for dim in reversed(range(self.cut_dim)):
            begin, end = box[dim]
            remainder, at = np.divmod(remainder, end - begin)
            numbers = numbers + (begin + at) * self._chunk_weight(dim)
        return numbers

    def _behind(self, box: Box) -> int:
        """What the box's shares of the dims behind the cut add to the numbers of its chunks."""
        behind = range(self.cut_dim + 1, len(box))
        return sum(box[dim][0] // self.chunk_shape[dim] * self._chunk_weight(dim) for dim in behind)

    def _chunk_weight(self, dim: int) -> int:
        """Distance of chunks that are neighbours along `dim`."""
        return math.prod(self.chunks_per_dim[dim + 1 :])

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
    def _row_elements(self) -> int:
        """Elements of a chunk at one index of the cut dim."""
        return math.prod(self.chunk_shape[self.cut_dim + 1 :])

    @property
    def _tail(self) -> int:
        """Indexes of the cut dim in the last chunk along it when that is padded, else 0."""
        return self.spec.shape[self.cut_dim] % self.chunk_shape[self.cut_dim] if self.spec.shape else 0

    def _chunk_indexes(self, chunk: int) -> tuple[int, ...]:
        return tuple(int(index) for index in np.unravel_index(chunk, self.chunks_per_dim)) if self.spec.shape else ()


@lru_cache(maxsize=16)
def grids(layout: Layout) -> tuple[Grid, ...]:
    """The grid of every array, in the layout's order."""
    return tuple(_grid(array, tuple(layout.axis_size(axis) for _, axis in array.dims)) for array in layout.arrays)


def group_json() -> bytes:
    """Metadata of a Zarr v3 group; not consolidated: one dtype unknown to zarr would make it refuse the whole group."""
    return _compact({"zarr_format": 3, "node_type": "group", "attributes": {}})


def _grid(spec: ArraySpec, sizes: tuple[int, ...]) -> Grid:
    """`sizes`: of the axes of the split dims."""
    chunk_shape, cut_dim = _chunk_shape(spec, sizes)
    return Grid(
        spec=spec,
        chunk_shape=chunk_shape,
        chunks_per_dim=tuple(-(-full // size) for full, size in zip(spec.shape, chunk_shape, strict=True)),
        cut_dim=cut_dim,
    )


def _chunk_shape(spec: ArraySpec, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The chunk's shape, and the dim that it cuts: whole shares from the last dim on, while they fit and are equal."""
    num_of_dim = {dim: num for (dim, _), num in zip(spec.dims, sizes, strict=True)}
    chunk = [1] * len(spec.shape)
    behind_bytes = spec.itemsize
    for dim in reversed(range(len(spec.shape))):
        starts = share_starts(spec, dim, num_of_dim.get(dim, 1))
        share = spec.shape[dim] // len(starts)
        is_even = starts == tuple(range(0, spec.shape[dim], share)) and share * len(starts) == spec.shape[dim]
        if not is_even:
            chunk[dim] = _cut_uneven(spec.shape[dim], math.gcd(*starts), behind_bytes)
            return tuple(chunk), dim
        if behind_bytes * share > MAX_CHUNK_BYTES:
            chunk[dim] = _cut(share, behind_bytes, is_split=dim in num_of_dim)
            return tuple(chunk), dim
        chunk[dim] = share
        behind_bytes *= share
    return tuple(chunk), 0


def share_starts(spec: ArraySpec, dim: int, num: int) -> tuple[int, ...]:
    """Where the shares of a dim begin that are not empty: of `num` holders, in each of its parts."""
    shares = ((begin, share_of(size, num, index)) for begin, size in parts_of(spec, dim) for index in range(num))
    return tuple(begin + start for begin, (start, stop) in shares if start < stop)


@lru_cache(maxsize=4096)
def _cut_uneven(size: int, step: int, behind_bytes: int) -> int:
    """Rows of `behind_bytes` per chunk where shares differ and begin at multiples of `step`: a divisor of that if one
    is worth its chunks, so that a chunk has one holder, else what fits."""
    most = max(1, MAX_CHUNK_BYTES // behind_bytes)
    fitting = max(count for count in _divisors(step) if count <= most)
    if fitting * behind_bytes >= min(POOR_CHUNK_BYTES, size * behind_bytes // 2):
        return fitting
    return -(-size // -(-size // most))


@lru_cache(maxsize=4096)
def _cut(size: int, behind_bytes: int, *, is_split: bool) -> int:
    """Rows of `behind_bytes` per chunk, of `size` rows."""
    most = max(1, MAX_CHUNK_BYTES // behind_bytes)
    divisors = _divisors(size)
    fitting = max(count for count in divisors if count <= most)
    if fitting * behind_bytes >= POOR_CHUNK_BYTES:
        return fitting
    if is_split:
        return min(count for count in divisors if count > most)
    return -(-size // -(-size // most))


def _divisors(size: int) -> list[int]:
    small = np.arange(1, math.isqrt(size) + 1, dtype=np.int64)
    small = small[size % small == 0]
    divisors: list[int] = np.concatenate([small, size // small]).tolist()
    return divisors


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
