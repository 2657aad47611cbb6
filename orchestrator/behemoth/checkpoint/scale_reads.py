"""What ranks read to know scales before they convert: chunks of the values, or of the array that has the scales. Pure.

A scale may span more than a rank holds, one for a whole tensor all of it, and every rank looks for itself. So this is
counted by the boxes of blocks that a rank's pieces meet, as `reshard` plans them. Neighbours: `over_read`, which adds
it up, and `changes`, which says what scales are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from behemoth.checkpoint.boxes import Box, enclosing, flat_boxes, piece_bounds
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.conversion import ScalesOf
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import cells, num_flat
from behemoth.checkpoint.matching import Origin
from behemoth.checkpoint.reshard import blocks_needed, chunks_met, scales_of
from behemoth.checkpoint.sharing import Kind, kinds


class _User(NamedTuple):
    """A kind of wanted arrays, by its number, that needs scales: to hold them, or to convert by them."""

    kind: int
    holds_them: bool


def scale_bytes(saved: Layout, layout: Layout, found: Sequence[Origin], ranks: Ints) -> Ints:
    """For each of `ranks`, the bytes of chunks, CRCs included, that it reads to know scales; `found` as
    `matching.origins` tells."""
    total = np.zeros(len(ranks), dtype=np.int64)
    of_layout = kinds(layout)
    held = {
        user.kind: _boxes_of_pieces(of_layout[user.kind])
        for _, users, _ in _groups(saved, layout, found)
        for user in users
    }
    for scales, users, num_arrays in _groups(saved, layout, found):
        pieces = np.stack([of_layout[user.kind].sharing.piece_of_rank[ranks] for user in users])
        alike, which = np.unique(pieces, axis=1, return_inverse=True)
        read_bytes = [
            _read_bytes(saved, scales, frozenset(_blocks(scales, users, of_pieces, held)))
            for of_pieces in alike.T.tolist()
        ]
        total += num_arrays * np.array(read_bytes, dtype=np.int64)[which.reshape(-1)]
    return total


def computed_scales(saved: Layout, layout: Layout, found: Sequence[Origin]) -> Iterator[Scales]:
    """Those that take a pass over the values, each once."""
    every = (scales_of(saved, array, origin) for array, origin in zip(layout.arrays, found, strict=True))
    yield from dict.fromkeys(scales for scales in every if scales is not None and scales.saved is None)


def _groups(saved: Layout, layout: Layout, found: Sequence[Origin]) -> list[tuple[Scales, tuple[_User, ...], int]]:
    """Scales of one kind: one of them, who needs them, and how many arrays have such."""
    users: dict[Scales, list[_User]] = {}
    for number, kind in enumerate(kinds(layout)):
        for array in kind.positions:
            scales = scales_of(saved, layout.arrays[array], found[array])
            if scales is not None:
                users.setdefault(scales, []).append(_User(number, isinstance(found[array], ScalesOf)))
    groups: dict[object, list[Scales]] = {}
    for scales, some in users.items():
        alike = (_form(saved, scales.values), scales.block, scales.saved and _form(saved, scales.saved), tuple(some))
        groups.setdefault(alike, []).append(scales)
    return [(same[0], tuple(users[same[0]]), len(same)) for same in groups.values()]


def _form(saved: Layout, position: int) -> tuple[object, ...]:
    grid = grids(saved)[position]
    return grid.chunk_shape, grid.chunks_per_dim, grid.spec.shape, grid.spec.itemsize


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


def _blocks(
    scales: Scales, users: Sequence[_User], pieces: Sequence[int], held: dict[int, list[list[Box]]]
) -> Iterator[Box]:
    """The boxes of blocks that a rank needs which has these pieces."""
    for user, piece in zip(users, pieces, strict=True):
        for box in held[user.kind][piece] if piece >= 0 else ():
            yield blocks_needed(scales, box, holds_them=user.holds_them)


def _read_bytes(saved: Layout, scales: Scales, blocks: frozenset[Box]) -> int:
    if not blocks:
        return 0
    if scales.saved is None:
        grid = grids(saved)[scales.values]
        boxes = frozenset(scales.elements(box, grid.spec.shape) for box in _largest(blocks))
    else:
        grid, box = grids(saved)[scales.saved], enclosing(list(blocks))
        boxes = frozenset([box if len(box) == len(grid.spec.shape) else tuple((0, 1) for _ in grid.spec.shape)])
    return _num_met(grid, boxes) * (grid.payload_bytes + TRAILER_BYTES)


def _largest(boxes: frozenset[Box]) -> list[Box]:
    """Those that lie in no other one."""
    return [box for box in boxes if not any(other != box and enclosing([box, other]) == other for other in boxes)]


def _num_met(grid: Grid, boxes: frozenset[Box]) -> int:
    return _num_met_alike(grid.chunk_shape, grid.chunks_per_dim, boxes)


@lru_cache(maxsize=4096)
def _num_met_alike(chunk_shape: tuple[int, ...], chunks_per_dim: tuple[int, ...], boxes: frozenset[Box]) -> int:
    return len(chunks_met(chunk_shape, chunks_per_dim, boxes))
