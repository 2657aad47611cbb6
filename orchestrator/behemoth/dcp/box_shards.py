"""The arrays of a save to a bucket: cut so that, as far as sizes allow, every object lies within one box of one rank.

There each rank uploads its boxes alone. The format cuts shards along the shares of a dim over a mesh axis, or along the
parts of one packed dim; the boxes of DTensor, FSDP2 and both together are such shares and parts. What has no common
measure (rows that the number of ranks does not divide) stays in one object, which several ranks fill. Pure. Neighbours:
`boxes` (the same for files), `checkpoint.cuts` (the rule), `object_parts` (who sends what).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from behemoth.checkpoint.box import Box
from behemoth.checkpoint.layout import ArraySpec, SplitAxis

_ALL: SplitAxis = "dp"
"""The axis of all ranks, and one of a single rank, over which a packed dim has its parts as they are (`mesh_of`)."""
_ONE: SplitAxis = "tp"


def box_spec(name: str, dtype: str, shape: tuple[int, ...], boxes: Sequence[Box], *, num_ranks: int) -> ArraySpec:
    """The array that these boxes, none of them empty, make up. Raises Invalid for what no array can be."""
    dims: dict[int, SplitAxis] = {}
    packed: tuple[int, tuple[int, ...]] | None = None
    for dim in reversed(range(len(shape))):
        edges = sorted({0, shape[dim], *(edge for box in boxes for edge in box[dim])})
        if len(edges) == 2:
            continue
        if _ALL not in dims.values() and edges == _shares(shape[dim], num_ranks):
            dims[dim] = _ALL
        elif packed is None:
            packed = dim, tuple(stop - start for start, stop in itertools.pairwise(edges))
            dims[dim] = _ONE
        elif _ALL not in dims.values() and _measures(shape[dim], num_ranks, edges):
            dims[dim] = _ALL
    return ArraySpec(
        name=name, dtype=dtype, shape=shape, dims=tuple(sorted(dims.items())), packed=packed, may_be_zero=True
    )


def _shares(size: int, num_ranks: int) -> list[int]:
    """Begins of all shares that are not empty, and the end of the last."""
    share = -(-size // num_ranks)
    return [*range(0, size, share), size]


def _measures(size: int, num_ranks: int, edges: Sequence[int]) -> bool:
    """Whether equal shares of all ranks end wherever boxes do."""
    return size % num_ranks == 0 and all(edge % (size // num_ranks) == 0 for edge in edges)
