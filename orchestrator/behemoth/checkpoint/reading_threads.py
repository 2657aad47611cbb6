"""How many threads read a checkpoint: several per processor where reads wait for a disk or a network.

Reads from the page cache are copies by the processors, where more threads than processors only slow each other down.
Neighbours: `reader`, which gets the number, and its callers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from behemoth.base.errors import NotFound
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.opened import Commit
from behemoth.ports import KeepsFiles, ObjectStore

THREADS_PER_READER = 4
"""While one checks and copies, others read, though threads of one disk tend to end their reads together."""
CACHED_SHARE = 0.9
"""Files of which the page cache holds this much are faster read through it than past it."""
NUM_PROBES = 64
"""How many chunks, evenly spread, are looked up in the page cache: looking up all would take a while."""


def reading_threads(store: ObjectStore, commit: Commit, *, threads: int) -> int:
    """For `read_rank` and its kin, where `threads` may compute. Memory is a chunk for each."""
    try:
        if isinstance(store, KeepsFiles) and are_cached(store, _spread(commit)):
            return threads
    except NotFound:
        pass  # who reads says what is missing
    return threads * THREADS_PER_READER


def are_cached(store: KeepsFiles, ranges: Iterable[tuple[str, int, int]]) -> bool:
    """Whether the page cache holds most of `ranges` (key, offset and length in bytes). Raises NotFound."""
    return store.cached_share(ranges) >= CACHED_SHARE


def _spread(commit: Commit) -> list[tuple[str, int, int]]:
    """Some chunks, as far apart as there are bytes between them."""
    of_arrays = grids(commit.layout)
    ends = np.cumsum([grid.num_chunks for grid in of_arrays])
    num_chunks = int(ends[-1]) if len(ends) else 0
    ranges = []
    for number in range(0, num_chunks, max(1, -(-num_chunks // NUM_PROBES))):
        array = int(np.searchsorted(ends, number, side="right"))
        grid = of_arrays[array]
        chunk = number - int(ends[array]) + grid.num_chunks
        ranges.append((commit.shard_of(array, chunk), grid.chunk_offset_bytes(chunk), grid.stride_bytes))
    return ranges
