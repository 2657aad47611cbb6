"""Lazy tensors, read box by box from any source: the basis of name maps, casts, exports and imports.

A model does not fit into memory, and a single tensor may not: only the box that was asked for is ever held. Elements
are passed as raw bits, because numpy copies elements of bfloat16 and float8 one by one. Must not open anything and must
not know file formats. Neighbours: `views` (lazy changes of layout), `casts` (of precision), `stored` and `foreign`
(sources).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.box import Box, shape_of
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.threads import run_all

Raw = npt.NDArray[Any]
"""Elements as unsigned integers of their size (complex128 as itself), in any strides."""


class Tensor(Protocol):
    """Something with a dtype and a shape that fills buffers.

    Exactly these members, because a change of layout needs the shape, a writer cuts blocks along grains, and one read
    with strides can serve every order of dims without a second copy. Thread-safe.
    """

    @property
    def dtype(self) -> str:
        """A name of `layout.DTYPES`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def grain(self, dim: int) -> int:
        """Elements along `dim` that are read together: a read that begins and ends at multiples reads nothing twice."""
        ...

    def read_into(self, box: Box, out: Raw) -> None:
        """Fill `out`, raw and of the box's shape. Blocks; raises what the source does, Corrupt for damage."""
        ...


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """The type of the raw elements of a dtype."""
    itemsize = DTYPES[dtype].itemsize
    return np.dtype("<c16" if itemsize == 16 else f"<u{itemsize}")


def num_bytes(tensor: Tensor) -> int:
    """Bytes of all elements."""
    return math.prod(tensor.shape) * DTYPES[tensor.dtype].itemsize


def whole(tensor: Tensor) -> Box:
    """The box of all elements."""
    return tuple((0, size) for size in tensor.shape)


def read_box(tensor: Tensor, box: Box) -> Raw:
    """The elements of a box, raw, in a new C-contiguous array."""
    out = np.empty(shape_of(box), raw_dtype(tensor.dtype))
    tensor.read_into(box, out)
    return out


def blocks(tensor: Tensor, *, limit_bytes: int) -> Iterator[Box]:
    """Boxes that follow one another in C order and cover the tensor, each contiguous and of at most `limit_bytes`, or
    of one element where that is larger. They end where grains do as far as a grain fits; what has larger ones, as a
    transposed tensor may, is read again for each block of a grain."""
    return blocks_of(tensor.shape, DTYPES[tensor.dtype].itemsize, limit_bytes=limit_bytes, grain=tensor.grain)


def tiles(tensor: Tensor, *, limit_bytes: int) -> Iterator[Box]:
    """Boxes that cover the tensor, each of at most `limit_bytes`, that end where grains do, so that nothing is read
    twice. They need not be contiguous: of a transposed tensor they are as high as its grains, and narrow. `blocks`
    where a single grain is larger than the limit."""
    sizes = [max(1, min(tensor.grain(dim), size)) for dim, size in enumerate(tensor.shape)]
    tile_bytes = DTYPES[tensor.dtype].itemsize * math.prod(sizes)
    if tile_bytes > limit_bytes:
        yield from blocks(tensor, limit_bytes=limit_bytes)
        return
    for dim in reversed(range(len(sizes))):
        grown = sizes[dim] * (limit_bytes // tile_bytes)
        tile_bytes = tile_bytes // sizes[dim] * min(grown, tensor.shape[dim])
        sizes[dim] = min(grown, tensor.shape[dim])
        if grown < tensor.shape[dim]:
            break
    begins = (range(0, full, size) for full, size in zip(tensor.shape, sizes, strict=True))
    for begin in product(*begins):
        yield tuple(
            (start, min(start + size, full)) for start, size, full in zip(begin, sizes, tensor.shape, strict=True)
        )


def grain_bytes(tensor: Tensor, *, limit_bytes: int) -> int:
    """Bytes of one grain along the dim in which `blocks` of that limit are cut: what is read together there."""
    row_bytes, cut = _cut_of(tensor.shape, DTYPES[tensor.dtype].itemsize, limit_bytes)
    return row_bytes * min(tensor.grain(cut), tensor.shape[cut]) if tensor.shape else row_bytes


def blocks_of(shape: tuple[int, ...], itemsize: int, *, limit_bytes: int, grain: Callable[[int], int]) -> Iterator[Box]:
    """As `blocks`, for a shape and element size alone; `grain(dim)` as `Tensor.grain`."""
    row_bytes, cut = _cut_of(shape, itemsize, limit_bytes)
    if not shape:
        yield ()
        return
    multiple = grain(cut)
    rows = max(1, limit_bytes // row_bytes)
    rows = rows - rows % multiple if rows >= multiple else rows
    behind = tuple((0, size) for size in shape[cut + 1 :])
    for outer in product(*(range(size) for size in shape[:cut])):
        before = tuple((index, index + 1) for index in outer)
        for start in range(0, shape[cut], rows):
            yield (*before, (start, min(start + rows, shape[cut])), *behind)


def _cut_of(shape: tuple[int, ...], itemsize: int, limit_bytes: int) -> tuple[int, int]:
    """The dim in which boxes of at most `limit_bytes` are cut, preceded by the bytes of one index along it."""
    row_bytes, cut = itemsize, len(shape) - 1
    while cut > 0 and row_bytes * shape[cut] <= limit_bytes:
        row_bytes *= shape[cut]
        cut -= 1
    return row_bytes, cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunked:
    """A tensor that is stored in chunks of `chunk_shape`, the last of a dim perhaps short.

    `load(number)` gives a chunk's elements in the shape of its box, counted in C order of the chunk grid; the caller
    is done with them before the same thread calls again. Up to `threads` threads load at once.
    """

    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    load: Callable[[int], Raw]
    threads: int

    def grain(self, dim: int) -> int:
        return self.chunk_shape[dim]

    def read_into(self, box: Box, out: Raw) -> None:
        def copy(meeting: _Meeting) -> None:
            out[meeting.place] = self.load(meeting.number)[meeting.inside]

        meetings = list(self._meetings(box))
        run_all(copy, meetings, threads=min(self.threads, len(meetings)), name="ckpt-interop")

    def _meetings(self, box: Box) -> Iterator[_Meeting]:
        grid = tuple(-(-full // size) for full, size in zip(self.shape, self.chunk_shape, strict=True))
        ranges = [
            range(start // size, -(-stop // size)) for (start, stop), size in zip(box, self.chunk_shape, strict=True)
        ]
        for indexes in product(*ranges):
            number = 0
            for index, count in zip(indexes, grid, strict=True):
                number = number * count + index
            yield _meeting(number, indexes, self.chunk_shape, box)


class _Meeting(NamedTuple):
    """The common part of a chunk and a box, seen from each."""

    number: int
    inside: tuple[slice, ...]
    place: tuple[slice, ...]


def _meeting(number: int, indexes: Sequence[int], chunk_shape: Sequence[int], box: Box) -> _Meeting:
    inside, place = [], []
    for index, size, (start, stop) in zip(indexes, chunk_shape, box, strict=True):
        begin = index * size
        low, high = max(begin, start), min(begin + size, stop)
        inside.append(slice(low - begin, high - begin))
        place.append(slice(low - start, high - start))
    return _Meeting(number, tuple(inside), tuple(place))
