"""DCP's boxes on our grid: the arrays that boxes of ranks make, and the runs of chunks that a box fills.

DCP cuts tensors as it likes (rows, columns, both, uneven, strided, by hand); what it cuts are boxes. A chunk holds
whole trailing dims, so row cuts need nothing of the grid: they meet every chunk in one run, and neighbours share the
chunk at their border. Column cuts would meet each chunk in a run per row, so the last dim that is cut becomes a
packed dim whose parts end where the boxes do. Boxes that fit no grid stay right and are only slower. Pure. Neighbours:
`checkpoint.grid` and `checkpoint.reshard` (the geometry), `box_writer`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from behemoth.checkpoint.box import Box
from behemoth.checkpoint.grid import Grid
from behemoth.checkpoint.layout import ArraySpec
from behemoth.checkpoint.reshard import Slices, plan_box
from behemoth.spec.mesh import Mesh


class ChunkRun(NamedTuple):
    """Bytes of one chunk, contiguous there, and the part of the box's own tensor that they hold. `array` is the number
    of the box, `offset` and `length` count bytes: a span, as `checkpoint.turns` knows them."""

    array: int
    chunk: int
    offset: int
    length: int
    part: Slices


def mesh_of(num_ranks: int) -> Mesh:
    """The mesh of a checkpoint by DCP: its ranks, all on one axis. The format does not use DCP's own meshes."""
    return Mesh(dp=num_ranks, edp=num_ranks)


def array_spec(name: str, dtype: str, shape: tuple[int, ...], boxes: Sequence[Box]) -> ArraySpec:
    """The array that these boxes, none of them empty, make up. Raises Invalid for what no array can be."""
    cut = [dim for dim, size in enumerate(shape) if any(box[dim] != (0, size) for box in boxes)]
    last = cut[-1] if cut else 0
    edges = sorted({0, shape[last], *(edge for box in boxes for edge in box[last])}) if cut else []
    if len(edges) < 3 or math.prod(shape[:last]) == 1:
        return ArraySpec(name=name, dtype=dtype, shape=shape, may_be_zero=True)
    parts = tuple(stop - start for start, stop in itertools.pairwise(edges))
    # Over an axis of one rank: the parts alone say where chunks end.
    return ArraySpec(name=name, dtype=dtype, shape=shape, dims=((last, "tp"),), packed=(last, parts), may_be_zero=True)


def runs_of(grid: Grid, box: Box, number: int = 0) -> Iterator[ChunkRun]:
    """What box `number`, not empty, fills of each chunk that it meets, in the order of chunks and bytes."""
    itemsize = grid.spec.itemsize
    for read in plan_box(grid, 0, box).reads:
        (copy,) = read.copies
        for outer, source in _contiguous(copy.source, grid.chunk_shape):
            start = sum(part.start * weight for part, weight in zip(source, _weights(grid.chunk_shape), strict=True))
            length = math.prod(part.stop - part.start for part in source)
            part = (*_at(copy.target, outer), *copy.target[len(outer) :])
            yield ChunkRun(number, read.chunk, start * itemsize, length * itemsize, part)


def ends_array(grid: Grid, box: Box) -> bool:
    """Whether a box holds the array's last element; of boxes that cover it once exactly one does."""
    return all(stop == size for (_, stop), size in zip(box, grid.spec.shape, strict=True))


def _contiguous(source: Slices, chunk_shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Slices]]:
    """A part of a chunk as parts that are contiguous there, each with its place along the dims before."""
    last = max((dim for dim, part in enumerate(source) if part.stop - part.start < chunk_shape[dim]), default=0)
    for outer in itertools.product(*(range(part.stop - part.start) for part in source[:last])):
        yield outer, (*_at(source, outer), *source[last:])


def _at(part: Slices, outer: tuple[int, ...]) -> Slices:
    """The single indexes that are `outer` from where the part begins."""
    places = zip(part, outer, strict=False)
    return tuple(slice(whole.start + index, whole.start + index + 1) for whole, index in places)


def _weights(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
