"""Counts the bytes that ranks read for scales: chunks of saved scales, or of the values from which scales are computed.
Pure.

A block may be larger than what a rank holds (with one scale per tensor it is the whole tensor), and every rank searches
its blocks itself. So bytes are counted by the boxes of blocks that a rank's pieces meet, as `reshard` plans them, in
the waves of `scale_waves`. Neighbours: `over_read`, which adds it up, and `changes`, which says what scales are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from behemoth.checkpoint.box import Box, enclosing, flat_boxes
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.conversion import ScalesOf
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import cells, num_flat
from behemoth.checkpoint.local_boxes import piece_bounds
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.reshard import blocks_needed, chunks_met, plan_boxes, scales_of
from behemoth.checkpoint.scale_waves import Waiting, outermost, plan_waves, waiting_bytes
from behemoth.checkpoint.sharing import Kind, kinds


class _User(NamedTuple):
    """Wanted arrays of a kind, by its number, that need these scales: to hold them, or to convert by them."""

    scales: Scales
    kind: int
    holds_them: bool


class _Group(NamedTuple):
    """One of so many arrays that are read alike for scales: saved ones, or values of which some are computed."""

    array: int
    users: tuple[_User, ...]
    num_arrays: int

    @property
    def are_computed(self) -> bool:
        return self.users[0].scales.saved is None


def scale_bytes(saved: Layout, layout: Layout, found: Sequence[Origin], ranks: Ints, *, kept_bytes: int) -> Ints:
    """For each of `ranks`, the bytes of chunks, CRCs included, that it reads to know scales, and, where they are
    computed, to convert by them, when it keeps `kept_bytes` of what waits; `found` as `matching.origins` tells."""
    total = np.zeros(len(ranks), dtype=np.int64)
    held = _Held(layout, kept_bytes)
    for group in _groups(saved, layout, found):
        alike, which = held.pieces(group, ranks)
        grid = grids(saved)[group.array]
        read_bytes = [_num_read(grid, group, held, pieces) * grid.stored_bytes for pieces in alike]
        total += group.num_arrays * np.array(read_bytes, dtype=np.int64)[which]
    return total


def again_bytes(saved: Layout, layout: Layout, found: Sequence[Origin], *, kept_bytes: int) -> int:
    """What the fleet reads a second time when all ranks that need a chunk share each reading of it: values that some
    rank could not keep until their scales were known."""
    total, held = 0, _Held(layout, kept_bytes)
    for group in _groups(saved, layout, found):
        if group.are_computed:
            grid = grids(saved)[group.array]
            alike, _ = held.pieces(group, np.arange(layout.mesh.num_ranks))
            again = {chunk for pieces in alike for chunk in _again(grid, group, held, pieces)}
            total += group.num_arrays * len(again) * grid.stored_bytes
    return total


def kept_of_ranks(saved: Layout, layout: Layout, found: Sequence[Origin], *, kept_bytes: int) -> Ints:
    """What each rank keeps at most of values that wait for their scales, of `kept_bytes` that it may; one array at a
    time."""
    held, ranks = _Held(layout, kept_bytes), np.arange(layout.mesh.num_ranks)
    most = np.zeros(len(ranks), dtype=np.int64)
    for group in _groups(saved, layout, found):
        if group.are_computed:
            grid = grids(saved)[group.array]
            alike, which = held.pieces(group, ranks)
            waiting = [min(waiting_bytes(grid, _values(group, held, pieces)), kept_bytes) for pieces in alike]
            most = np.maximum(most, np.array(waiting, dtype=np.int64)[which])
    return most


def looked_through(saved: Layout, layout: Layout, found: Sequence[Origin]) -> set[int]:
    """The saved arrays, counted in their order, of which scales are computed."""
    every = (scales_of(saved, array, origin) for array, origin in zip(layout.arrays, found, strict=True))
    return {scales.values for scales in every if scales is not None and scales.saved is None}


def _groups(saved: Layout, layout: Layout, found: Sequence[Origin]) -> list[_Group]:
    users: defaultdict[tuple[int, Scales | None], list[_User]] = defaultdict(list)
    for number, kind in enumerate(kinds(layout)):
        for array in kind.positions:
            scales = scales_of(saved, layout.arrays[array], found[array])
            if scales is not None:
                user = _User(scales, number, isinstance(found[array], ScalesOf))
                users[(scales.values, None) if scales.saved is None else (scales.saved, scales)].append(user)
    alike: defaultdict[object, list[_Group]] = defaultdict(list)
    for (array, _), some in users.items():
        forms = tuple((one.scales.block, one.scales.dtype, one.kind, one.holds_them) for one in some)
        key = (_form(saved, array), _form(saved, some[0].scales.values), forms)
        alike[key].append(_Group(array, tuple(some), 1))
    return [same[0]._replace(num_arrays=len(same)) for same in alike.values()]


def _form(saved: Layout, position: int) -> tuple[object, ...]:
    grid = grids(saved)[position]
    return grid.chunk_shape, grid.chunks_per_dim, grid.spec.shape, grid.spec.itemsize


class _Held:
    """What the ranks of a layout hold of arrays of each kind, and how much of what waits for scales they keep."""

    def __init__(self, layout: Layout, kept_bytes: int) -> None:
        self.kept_bytes = kept_bytes
        self._kinds = kinds(layout)
        self._boxes: dict[int, list[list[Box]]] = {}

    def pieces(self, group: _Group, ranks: Ints) -> tuple[list[list[int]], Ints]:
        """The pieces that some rank has of what the group's users are, and for each of `ranks` which of these lists."""
        pieces = np.stack([self._kinds[user.kind].sharing.piece_of_rank[ranks] for user in group.users])
        alike, which = np.unique(pieces, axis=1, return_inverse=True)
        return alike.T.tolist(), which.reshape(-1)

    def boxes(self, kind: int, piece: int) -> list[Box]:
        if piece < 0:
            return []
        if kind not in self._boxes:
            self._boxes[kind] = _boxes_of_pieces(self._kinds[kind])
        return self._boxes[kind][piece]


def _boxes_of_pieces(kind: Kind) -> list[list[Box]]:
    """What a rank holds of each piece."""
    num = num_flat(kind)
    found: list[list[Box]] = []
    for cell in cells(kind):
        bounds = [piece_bounds(kind.grid.spec, part, cell.shape, num) for part in cell.parts]
        found += [
            [
                box
                for part, of_part in zip(cell.parts, bounds, strict=True)
                for box in flat_boxes(part.box, (of_part[index], of_part[index + 1]))
            ]
            for index in range(num)
        ]
    return found


def _num_read(grid: Grid, group: _Group, held: _Held, pieces: Sequence[int]) -> int:
    """Chunks, those that are read twice counted twice."""
    if group.are_computed:
        return len(_looked(grid, group, held, pieces)) + len(_again(grid, group, held, pieces))
    scales = group.users[0].scales
    blocks = _blocks(group, held, pieces).get(scales)
    if not blocks:
        return 0
    return len(_chunks_of(grid, [scales.stored(enclosing(blocks), len(grid.spec.shape))]))


def _looked(grid: Grid, group: _Group, held: _Held, pieces: Sequence[int]) -> frozenset[int]:
    """The chunks of values in which a rank that has these pieces looks for scales."""
    blocks = _blocks(group, held, pieces)
    return _chunks_of(
        grid, [scales.elements(box, grid.spec.shape) for scales, some in blocks.items() for box in outermost(some)]
    )


def _again(grid: Grid, group: _Group, held: _Held, pieces: Sequence[int]) -> list[int]:
    """Those that it reads again."""
    values = _values(group, held, pieces)
    if waiting_bytes(grid, values) <= held.kept_bytes:
        return []
    waiting: defaultdict[int, list[Waiting]] = defaultdict(list)
    for read in plan_boxes(grid, group.array, [box for _, box in values]):
        waiting[read.chunk] += [Waiting(values[copy.slab][0], copy.source) for copy in read.copies]
    waves = plan_waves(grid, _looked(grid, group, held, pieces), waiting, kept_bytes=held.kept_bytes)
    return [chunk for wave in waves for chunk in wave.again]


def _values(group: _Group, held: _Held, pieces: Sequence[int]) -> list[tuple[Scales, Box]]:
    """The boxes that a rank which has these pieces converts."""
    return [
        (user.scales, box)
        for user, piece in zip(group.users, pieces, strict=True)
        if not user.holds_them
        for box in held.boxes(user.kind, piece)
    ]


def _blocks(group: _Group, held: _Held, pieces: Sequence[int]) -> dict[Scales, list[Box]]:
    """The boxes of blocks of which a rank that has these pieces must know the scales."""
    found: dict[Scales, list[Box]] = {}
    for user, piece in zip(group.users, pieces, strict=True):
        for box in held.boxes(user.kind, piece):
            found.setdefault(user.scales, []).append(blocks_needed(user.scales, box, holds_them=user.holds_them))
    return found


def _chunks_of(grid: Grid, boxes: Sequence[Box]) -> frozenset[int]:
    return _chunks_of_alike(grid.chunk_shape, grid.chunks_per_dim, frozenset(boxes))


@lru_cache(maxsize=4096)
def _chunks_of_alike(
    chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...], boxes: frozenset[Box]
) -> frozenset[int]:
    return frozenset(chunks_met(chunk_shape, chunks_per_dim, boxes))
