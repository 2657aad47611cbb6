"""Where an array is cut: into chunks, the unit of CRCs, and into shards of whole chunks, the objects of a store.

A chunk has the shape (1, .., 1, c, full, .., full), where a full dim is the array's own or the share that every rank
has of it. So whatever box of the array a rank holds meets a chunk in one contiguous range, and a flat range of the box
does. Where the sizes have fitting divisors, c is one, and each chunk belongs to one box; it never follows the
boundaries of a flat range. Pure arithmetic on shapes. Neighbour: `grid`, which places chunks in their objects.

Readers compute what lies on disk by these rules, so none of them may ever change. A better one is added under a name
(`layout.Chunking`), which only layouts have for which it makes a difference.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from behemoth.checkpoint.layout import ArraySpec, Chunking, Layout
from behemoth.checkpoint.local_boxes import shares_of

MAX_CHUNK_BYTES = 8 << 20
"""Payload of a chunk where the divisors of a block allow it."""
POOR_CHUNK_BYTES = MAX_CHUNK_BYTES // 8
"""Below this a divisor is not worth its chunks: an unsplit dim is padded instead, a split one gets larger chunks."""
LEAST_BYTES = 1 << 20
"""Arrays of less are cut plainly: their padding is nobody's concern."""
MAX_PADDED = 100
"""Close chunks pad a hundredth of an array at most. CRCs, the index and the pages at which large chunks begin take up
to four thousandths more. A tenth of that would take ten times the chunks where a dim is small and prime."""
MAX_HELD_CHUNK_BYTES = 4 * MAX_CHUNK_BYTES
"""A close chunk may be larger than others up to this, if it belongs to one box then."""
MAX_SHARDS_PER_SHARE = 4
"""Along a dim whose shares differ. Each is an object, which costs a request at least: where shares have no better
common measure, several boxes lie in one shard instead."""

_Shape = tuple[int, ...]


def with_close_chunks(layout: Layout) -> Layout:
    """By what a new checkpoint of this layout is saved: the layout itself, unless close chunks of any of its arrays are
    others than plain ones. So most layouts keep their digest, and older releases read what is saved by them."""
    alike = {(array.shape, array.itemsize, array.dims, array.packed, array.padded): array for array in layout.arrays}
    for array in alike.values():
        sizes = tuple(layout.axis_size(axis) for _, axis in array.dims)
        if chunk_shape(array, sizes, "close") != chunk_shape(array, sizes, "plain"):
            return replace(layout, chunking="close")
    return layout


def chunk_shape(spec: ArraySpec, sizes: _Shape, chunking: Chunking) -> tuple[_Shape, int]:
    """The chunk's shape, and the dim that it cuts: whole shares from the last dim on, while they fit and are equal.
    `sizes`: of the axes of the split dims."""
    num_of_dim = _num_of_dim(spec, sizes)
    chunk = [1] * len(spec.shape)
    behind_bytes = spec.itemsize
    for dim in reversed(range(len(spec.shape))):
        size, starts = spec.shape[dim], _share_starts(spec, dim, num_of_dim.get(dim, 1))
        share, step = size // len(starts), math.gcd(*starts)
        is_even = starts == tuple(range(0, size, share)) and share * len(starts) == size
        if is_even and behind_bytes * share <= MAX_CHUNK_BYTES:
            chunk[dim] = share
            behind_bytes *= share
            continue
        if is_even:
            chunk[dim] = _cut(share, behind_bytes, is_split=dim in num_of_dim)
        else:
            chunk[dim] = _cut_uneven(size, step, behind_bytes)
        if chunking == "close" and spec.num_bytes >= LEAST_BYTES:
            chunk[dim] = _cut_closely(size, step, behind_bytes, plain=chunk[dim])
        return tuple(chunk), dim
    return tuple(chunk), 0


def box_shard_shape(spec: ArraySpec, sizes: _Shape, chunk: _Shape) -> _Shape:
    """Chunks of a shard along each dim, so that shards tile the array and each lies within one box of one rank.

    Where the shares of a dim have no common measure that also measures the dim and is worth its objects, shards are not
    cut along it. `chunk`: the shape that `chunk_shape` gives.
    """
    num_of_dim = _num_of_dim(spec, sizes)
    return tuple(
        _shard_width(size, _share_starts(spec, dim, num_of_dim.get(dim, 1)), chunk[dim])
        for dim, size in enumerate(spec.shape)
    )


def _shard_width(size: int, starts: _Shape, chunk: int) -> int:
    width = math.gcd(*starts, size)
    is_cut = width % chunk == 0 and size // width <= MAX_SHARDS_PER_SHARE * len(starts)
    return width // chunk if is_cut else -(-size // chunk)


def _num_of_dim(spec: ArraySpec, sizes: _Shape) -> dict[int, int]:
    return {dim: num for (dim, _), num in zip(spec.dims, sizes, strict=True)}


def _share_starts(spec: ArraySpec, dim: int, num: int) -> _Shape:
    """Where the shares of a dim begin that are not empty: of `num` holders, in each of its parts."""
    shares = (share for index in range(num) for share in shares_of(spec, dim, num, index))
    return tuple(sorted(start for start, stop in shares if start < stop))


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


@lru_cache(maxsize=4096)
def _cut_closely(size: int, step: int, behind_bytes: int, *, plain: int) -> int:
    """The same without much padding, and for shares without a divisor of use without chunks as large as these.
    `plain`: what the rules above give, which is kept where it is good. `step`: 0 where no share ends within the dim.

    The last line looks at 100 counts at most: of more rows than that, any number of equal chunks has little padding.
    """
    padded = size // MAX_PADDED
    if -size % plain <= padded and plain * behind_bytes <= MAX_HELD_CHUNK_BYTES:
        return plain
    most = max(1, MAX_CHUNK_BYTES // behind_bytes)
    held = max((count for count in _divisors(step) if count <= most and -size % count <= padded), default=0)
    if held * behind_bytes >= POOR_CHUNK_BYTES:
        return held
    equal = -(-size // -(-size // most))
    return next(count for count in range(equal, 0, -1) if -size % count <= padded)


def _divisors(size: int) -> list[int]:
    small = np.arange(1, math.isqrt(size) + 1, dtype=np.int64)
    small = small[size % small == 0]
    divisors: list[int] = np.concatenate([small, size // small]).tolist()
    return divisors
