"""Which chunks of a checkpoint several ranks read when each of them restores its part. Pure.

A node that reads a chunk once for all of its ranks needs to know for which ranks to keep it, and until when. Ranks of a
node may read a million chunks, so the answer is kept as columns: for each chunk one bit per rank. Neighbours:
`reshard`, which says what one rank reads, and `units`, which says what of an object a chunk is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.ids import Rank
from behemoth.checkpoint.box import Box, enclosing, flat_boxes, moved
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.conversion import ScalesOf
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.over_read import sources
from behemoth.checkpoint.reshard import blocks_needed, scales_of
from behemoth.checkpoint.sharing import kinds
from behemoth.checkpoint.units import ReadUnit

Bits = npt.NDArray[np.uint8]
"""[bytes, chunks or slots]: bit r of a column, the lowest of the first byte first, is the r-th rank."""


class SharedObject(NamedTuple):
    """The readers of an object's units, which have `unit_bytes` each and begin every `stride_bytes`. `readers`: see
    `Bits`, a column for each slot."""

    stride_bytes: int
    unit_bytes: int
    readers: Bits


class CommonChunks:
    """The units that several of `ranks` read, and which of these have not taken them yet. Not thread-safe.

    `find`: an object's readers by its key, None where no unit of it has several; asked once for each.
    """

    def __init__(self, ranks: Sequence[Rank], find: Callable[[str], SharedObject | None]) -> None:
        self._ranks = ranks
        self._bits = {rank: 1 << number for number, rank in enumerate(ranks)}
        self._find = find
        self._objects: dict[str, SharedObject | None] = {}
        self._ended = 0
        """Bits of ranks that take nothing more."""

    def left(self, unit: ReadUnit) -> frozenset[Rank]:
        """The ranks that have not taken a unit yet; empty where only one rank reads it."""
        found = self._place(unit)
        if found is None:
            return frozenset()
        shared, slot = found
        bits = int.from_bytes(shared.readers[:, slot].tobytes(), "little") & ~self._ended
        return _ranks_of(tuple(self._ranks), bits)

    def took(self, unit: ReadUnit, rank: Rank) -> None:
        """The rank has taken the unit, or does not need it any more."""
        found = self._place(unit)
        if found is not None:
            number, bit = divmod(self._bits[rank].bit_length() - 1, 8)
            found[0].readers[number, found[1]] &= 0xFF ^ (1 << bit)

    def ended(self, rank: Rank) -> None:
        """The rank needs no unit any more."""
        self._ended |= self._bits[rank]

    def _place(self, unit: ReadUnit) -> tuple[SharedObject, int] | None:
        if unit.key not in self._objects:
            self._objects[unit.key] = self._find(unit.key)
        shared = self._objects[unit.key]
        if shared is None:
            return None
        slot, within = divmod(unit.offset_bytes, shared.stride_bytes)
        is_one = not within and unit.length_bytes == shared.unit_bytes and slot < shared.readers.shape[1]
        return (shared, slot) if is_one else None


@lru_cache(maxsize=4096)
def _ranks_of(ranks: tuple[Rank, ...], bits: int) -> frozenset[Rank]:
    return frozenset(rank for number, rank in enumerate(ranks) if bits >> number & 1)


def read_by_several(commit: Commit, layout: Layout, found: Sequence[Origin], ranks: Sequence[Rank]) -> CommonChunks:
    """The chunks that several of `ranks` read when `commit` is restored on `layout`; `found`: the result of
    `matching.origins`. A rank reads a chunk when it needs elements of it, searches it to compute scales, or reads saved
    scales from it. O(arrays), and O(chunks) for each kind of array."""
    held, known, bits = _Held(layout, ranks), dict[object, Bits | None](), dict[int, Bits]()
    for array, reads in _reads(commit.layout, layout, found).items():
        grid = grids(commit.layout)[array]
        alike = (grid.chunk_shape, grid.chunks_per_dim, grid.spec.shape, frozenset(reads))
        if alike not in known:
            known[alike] = _several(grid, reads, held)
        of_array = known[alike]
        if of_array is not None:
            bits[array] = of_array
    objects = {key: (array, shard) for array in bits for shard, key in enumerate(commit.shard_keys(array))}

    def find(key: str) -> SharedObject | None:
        if key not in objects:
            return None
        array, shard = objects[key]
        grid = grids(commit.layout)[array]
        return SharedObject(grid.stride_bytes, grid.stored_bytes, bits[array][:, grid.chunks_of(shard)])

    return CommonChunks(ranks, find)


class _Values(NamedTuple):
    """Elements that ranks take of a saved array for arrays of a kind, by its number; `begin` as that of `Cast`."""

    kind: int
    begin: tuple[int, ...]


class _Blocks(NamedTuple):
    """Blocks of which ranks must know the scales for arrays of some kinds: looked through, or of a saved array of
    scales. `scales` has no positions."""

    scales: Scales
    shape: tuple[int, ...]
    """Shape of the array of values."""
    are_saved: bool
    users: frozenset[tuple[int, bool]]
    """Kinds, and whether they hold the scales."""


_Read = _Values | _Blocks


class _Held:
    """The boxes that each of some ranks holds of arrays of each kind."""

    def __init__(self, layout: Layout, ranks: Sequence[Rank]) -> None:
        self.ranks = ranks
        self._kinds = kinds(layout)
        self._boxes: dict[tuple[int, int], list[Box]] = {}

    def boxes(self, kind: int, rank: Rank) -> list[Box]:
        piece = int(self._kinds[kind].sharing.piece_of_rank[rank])
        if piece < 0:
            return []
        if (kind, piece) not in self._boxes:
            parts = self._kinds[kind].share(piece).parts
            self._boxes[kind, piece] = [box for part in parts for box in flat_boxes(part.held.box, part.flat)]
        return self._boxes[kind, piece]


def _reads(saved: Layout, layout: Layout, found: Sequence[Origin]) -> dict[int, set[_Read]]:
    """What is read of each saved array."""
    reads: defaultdict[int, set[_Read]] = defaultdict(set)
    users: defaultdict[Scales, set[tuple[int, bool]]] = defaultdict(set)
    for number, kind in enumerate(kinds(layout)):
        for array in kind.positions:
            for source in sources(saved, found[array]):
                reads[source.position].add(_Values(number, source.begin))
            scales = scales_of(saved, layout.arrays[array], found[array])
            if scales is not None:
                users[scales].add((number, isinstance(found[array], ScalesOf)))
    for scales, some in users.items():
        are_saved, shape = scales.saved is not None, saved.arrays[scales.values].shape
        blocks = _Blocks(scales._replace(values=0, saved=None), shape, are_saved, frozenset(some))
        reads[scales.values if scales.saved is None else scales.saved].add(blocks)
    return dict(reads)


def _several(grid: Grid, reads: Set[_Read], held: _Held) -> Bits | None:
    """The bits of an array's chunks, zero for chunks that at most one rank reads; None where there is no other."""
    is_read = np.zeros((len(held.ranks), *grid.chunks_per_dim), dtype=np.bool_)
    for number, rank in enumerate(held.ranks):
        of_rank = is_read[number, ...]  # never a scalar, also of an array without dims
        for box in (box for read in reads for box in _boxes(read, len(grid.spec.shape), held, rank)):
            sides = zip(box, grid.chunk_shape, strict=True)
            place = tuple(slice(low // size, -(-high // size)) for (low, high), size in sides)
            of_rank[place] = True
    columns = is_read.reshape(len(held.ranks), grid.num_chunks)
    columns &= np.count_nonzero(columns, axis=0) > 1
    return np.packbits(columns, axis=0, bitorder="little") if columns.any() else None


def _boxes(read: _Read, num_dims: int, held: _Held, rank: Rank) -> list[Box]:
    """The boxes of the saved array that a rank reads."""
    if isinstance(read, _Values):
        return [moved(box, read.begin) for box in held.boxes(read.kind, rank)]
    blocks = [
        blocks_needed(read.scales, box, holds_them=holds_them)
        for kind, holds_them in read.users
        for box in held.boxes(kind, rank)
    ]
    if not read.are_saved:
        return [read.scales.elements(box, read.shape) for box in blocks]
    return [read.scales.stored(enclosing(blocks), num_dims)] if blocks else []
