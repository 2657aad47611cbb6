"""Which chunks of a checkpoint several ranks read when each of them restores its part. Pure.

Who reads for several ranks learns from it what to keep for the others, for whom, and until when. Neighbours: `reshard`,
which says what one rank reads, and `units`, which says what of an object a chunk is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from behemoth.base.ids import Rank
from behemoth.checkpoint.boxes import Box, enclosing
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reshard import Resharding, chunks_met, plan_resharding
from behemoth.checkpoint.units import Unit, chunk_unit


def read_by_several(
    commit: Commit, layout: Layout, found: Sequence[Origin], ranks: Iterable[Rank]
) -> dict[Unit, set[Rank]]:
    """The units that more than one of `ranks` of `layout` reads, and which of them; `found` as `matching.origins`
    tells. O(chunks that these ranks meet)."""
    readers: defaultdict[tuple[int, int], set[Rank]] = defaultdict(set)
    for rank in ranks:
        work = plan_resharding(commit.layout, layout, plan_rank(layout, rank), found)
        for chunk in chunks_read(commit.layout, work):
            readers[chunk].add(rank)
    return {chunk_unit(commit, *chunk): some for chunk, some in readers.items() if len(some) > 1}


def chunks_read(saved: Layout, work: Resharding) -> set[tuple[int, int]]:
    """Array and number of each chunk that a rank reads to do this: what it takes, and what it looks through for scales
    or finds them in."""
    found = {(read.array, read.chunk) for read in work.reads}
    boxes: defaultdict[int, list[Box]] = defaultdict(list)
    for scales, blocks in work.scales.items():
        if scales.saved is None:
            shape = grids(saved)[scales.values].spec.shape
            boxes[scales.values] += [scales.elements(box, shape) for box in blocks]
        else:
            num_dims = len(grids(saved)[scales.saved].spec.shape)
            boxes[scales.saved].append(scales.stored(enclosing(blocks), num_dims))
    for array, some in boxes.items():
        grid = grids(saved)[array]
        found |= {(array, chunk) for chunk in chunks_met(grid.chunk_shape, grid.chunks_per_dim, some)}
    return found
