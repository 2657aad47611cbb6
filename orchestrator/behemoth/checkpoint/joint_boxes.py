"""Boxes by which an array is read that two checkpoints have cut otherwise, so that hardly a chunk is read twice. Pure.

Each chunk is read whole, and once for every box that it meets. Chunks of both grids end where a common multiple of
their sizes does, so boxes of that size read each of them once. Where such a box is too large, it has whole chunks of
the grid that is coarser along a dim, as many as fit, and only those of the finer one that straddle its ends are read
twice. Neighbours: `grid`, and `diff`, which reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from behemoth.checkpoint.box import Box
from behemoth.checkpoint.grid import Grid

BOX_BYTES = 128 << 20
"""Most bytes of a box, unless a chunk is larger: a thread holds one. With chunks of 8 MiB, which most are, a sixteenth
of the finer side is read twice where the two sides have no common multiple."""


def joint_boxes(one: Grid, two: Grid, *, limit_bytes: int = BOX_BYTES) -> Iterator[Box]:
    """Boxes that tile an array of both grids, in C order. A box has at most `limit_bytes`, or as much as the larger
    chunk where that is more."""
    shape = one.spec.shape
    sizes = _box_shape(one, two, max(limit_bytes, one.payload_bytes, two.payload_bytes) // one.spec.itemsize)
    cuts = [
        [(at, min(at + size, full)) for at in range(0, full, size)] for size, full in zip(sizes, shape, strict=True)
    ]
    return itertools.product(*cuts)


def _box_shape(one: Grid, two: Grid, limit: int) -> list[int]:
    """Sizes per dim; at most `limit` elements."""
    chunks = list(zip(one.chunk_shape, two.chunk_shape, strict=True))
    sizes = [min(math.lcm(*pair), full) for pair, full in zip(chunks, one.spec.shape, strict=True)]
    # Where chunks cross, each long where the other is short, whole ones of the coarser grid may still be too many.
    for measure in (max, min):
        for dim, pair in enumerate(chunks):
            step, others = measure(pair), math.prod(sizes) // sizes[dim]
            if others * sizes[dim] > limit and sizes[dim] > step:
                sizes[dim] = max(step, limit // others // step * step)
    return sizes
