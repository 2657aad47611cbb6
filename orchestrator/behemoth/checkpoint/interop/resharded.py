"""A committed checkpoint as the source of another one, in another layout: of another mesh, in part, converted.

The same plan and the same reads as a restore, for boxes of the new checkpoint in place of what a rank holds: each saved
chunk that some pieces meet is read once for all of them and checked. Neighbours: `checkpoint.reshard`,
`checkpoint.matching` (which array is which), `unit_writer`, which asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from behemoth.checkpoint.box import Box, Interval, shape_of
from behemoth.checkpoint.caching import CachingStore
from behemoth.checkpoint.computed_scales import ComputedScales
from behemoth.checkpoint.conversion import ScalesOf
from behemoth.checkpoint.filling import least_bytes
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.tensors import Raw, raw_dtype
from behemoth.checkpoint.interop.units import UnitPiece, Units, units_of
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.plan import ALIGNMENT_BYTES
from behemoth.checkpoint.reshard import plan_pieces
from behemoth.checkpoint.reshard_reader import read_slabs
from behemoth.checkpoint.stopping import Cancelled, never
from behemoth.ports import ObjectStore, SavesTo

BLOCK_BYTES = 8 << 20
"""Size of a piece: about a chunk. Small, so that a batch holds neighbours of several objects, which come from the same
bytes of the source."""
MIN_BATCH_BYTES, MAX_BATCH_BYTES = 64 << 20, 256 << 20
"""Bounds of the bytes of pieces that are read together, and held, where no scales are computed."""
HELD_BYTES = 5 << 30
"""Most bytes held for pieces that are read together because they need the same computed scales: saved values that wait
for scales, and their results. The largest expert matrix of the reference Behemoth has 3.25 GiB in float32, and 832 MiB
in float8."""
SCALES_BYTES = 64 << 20
"""Cache of chunks of saved scales: a batch needs a few scales of a chunk, and the next batch mostly the same chunk. In
the reference Behemoth such chunks have 36 KiB, with blocks of 128 x 128."""


class _Wanted(NamedTuple):
    """A piece, and its offset in the area; implements `reshard.Wanted`."""

    array: int
    box: Box
    flat: Interval
    arena_offset: int
    nbytes: int


class CheckpointSource:
    """The Source of a checkpoint of `layout` that is made of `commit`; `found` as `matching.origins` tells. Its reads
    end with Conflict once it is `cancelled()`."""

    def __init__(
        self,
        store: ObjectStore,
        commit: Commit,
        layout: Layout,
        found: Sequence[Origin],
        *,
        cancelled: Cancelled = never,
    ) -> None:
        self._store = store
        self._commit = commit
        self._layout = layout
        self._found = found
        self._cancelled = cancelled
        self._scales = CachingStore(store, limit_bytes=SCALES_BYTES)
        self._computed = ComputedScales(limit_bytes=SCALES_BYTES)

    def read(self, pieces: Sequence[UnitPiece], *, threads: int) -> Iterator[Raw]:
        """See the protocol. Holds all of them, and what waits for their scales. Raises Corrupt naming array, chunk and
        file."""
        wanted: list[_Wanted] = []
        end = 0
        for piece in pieces:
            itemsize = self._layout.arrays[piece.array].itemsize
            flat = (0, piece.num_bytes // itemsize)
            wanted.append(_Wanted(piece.array, piece.box, flat, end, piece.num_bytes))
            end += -(-piece.num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        area = np.empty(end, dtype=np.uint8)
        work = plan_pieces(self._commit.layout, self._layout, wanted, self._found)
        read_slabs(
            self._store,
            self._commit,
            work,
            area,
            threads=threads,
            scales_store=self._scales,
            kept_bytes=HELD_BYTES,
            remembered=self._computed,
            cancelled=self._cancelled,
        )
        for one in wanted:
            data = area[one.arena_offset : one.arena_offset + one.nbytes]
            yield data.view(raw_dtype(self._layout.arrays[one.array].dtype)).reshape(shape_of(one.box))


def batch_bytes(saved: Layout, layout: Layout) -> int:
    """Bytes of pieces that are read together so that they share chunks: two rows of chunks, of the layout with the
    wider rows. A batch that begins within a row reads half of it a second time."""
    widest = max(
        grid.payload_bytes * math.prod(grid.chunks_per_dim[grid.cut_dim + 1 :])
        for one in (saved, layout)
        for grid in grids(one)
    )
    return min(max(2 * widest, MIN_BATCH_BYTES), MAX_BATCH_BYTES)


def reshard_units(layout: Layout, store: SavesTo, found: Sequence[Origin]) -> Units:
    """The units in which a checkpoint is written to a store. Of computed scales a piece is a chunk: they are written
    with their values, so that few of them keep much together."""
    holders = [position for position, origin in enumerate(found) if isinstance(origin, ScalesOf)]
    return units_of(
        layout, block_bytes=BLOCK_BYTES, least_bytes=partial(least_bytes, store), by_chunk=frozenset(holders)
    )
