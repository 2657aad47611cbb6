"""How much more than its state a fleet reads when it restores a checkpoint on another mesh. Pure.

Counted from the chunks of the saved grid and the pieces of the new layout; what a reader does about it is `reader`'s
business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from behemoth.base.errors import Invalid
from behemoth.checkpoint.boxes import Box, piece_bounds
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import cells, num_flat
from behemoth.checkpoint.sharing import Kind, kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class OverRead:
    """Bytes of a restore of the whole state. `needed_bytes`: every element once, however many ranks hold it."""

    needed_bytes: int
    fleet_bytes: int
    """Read from the store when each chunk that any rank's pieces touch is read once by the fleet, whole and with its
    CRC, and passed on to the others (checkpoint.md's definition)."""
    alone_bytes: int
    """The same when nothing is passed on between different pieces: one holder of each piece reads each chunk that it
    touches, whole and with its CRC. Replicas of a piece still get it from that holder."""

    @property
    def fleet(self) -> float:
        return self.fleet_bytes / self.needed_bytes

    @property
    def alone(self) -> float:
        return self.alone_bytes / self.needed_bytes


def over_read(saved: Layout, wanted: Layout) -> OverRead:
    """What `wanted` reads of a checkpoint of `saved`. Raises Invalid for an array that was not saved with its shape."""
    of_saved = grids(saved)
    needed = fleet = alone = 0
    for kind in kinds(wanted):
        alike: dict[tuple[int, ...], list[Grid]] = {}
        for position in kind.positions:
            grid = _saved_grid(saved, of_saved, wanted, position)
            alike.setdefault(grid.chunk_shape, []).append(grid)
        needed += kind.grid.spec.num_bytes * len(kind.positions)
        for chunk_shape, same in alike.items():
            chunk_bytes = same[0].payload_bytes + TRAILER_BYTES
            # The pieces of a layout tile its arrays, so all together they touch every chunk.
            fleet += same[0].num_chunks * chunk_bytes * len(same)
            alone += _touched_by_pieces(kind, chunk_shape) * chunk_bytes * len(same)
    return OverRead(needed_bytes=needed, fleet_bytes=fleet, alone_bytes=alone)


def _saved_grid(saved: Layout, of_saved: tuple[Grid, ...], wanted: Layout, position: int) -> Grid:
    spec = wanted.arrays[position]
    at = saved.positions.get(spec.name)
    if at is None or (of_saved[at].spec.shape, of_saved[at].spec.itemsize) != (spec.shape, spec.itemsize):
        got = "none" if at is None else f"{of_saved[at].spec.dtype}{list(of_saved[at].spec.shape)}"
        raise Invalid(
            f"array {spec.name!r}: expected {spec.dtype}{list(spec.shape)} in the checkpoint, got {got}",
            code="array-unknown",
        )
    return of_saved[at]


def _touched_by_pieces(kind: Kind, chunk_shape: tuple[int, ...]) -> int:
    """Chunks that the pieces of one array touch, those of several pieces several times."""
    total = 0
    for cell in cells(kind):
        for held in cell.parts:
            # Boxes that lie alike towards the chunks touch equally many.
            shift = tuple(start // size * size for (start, _), size in zip(held.box, chunk_shape, strict=True))
            box = tuple((start - by, stop - by) for (start, stop), by in zip(held.box, shift, strict=True))
            total += _touched(box, chunk_shape, piece_bounds(kind.grid.spec, held, cell.shape, num_flat(kind)))
    return total


@lru_cache(maxsize=4096)
def _touched(box: Box, chunk_shape: tuple[int, ...], bounds: tuple[int, ...]) -> int:
    """Pairs of a piece and a chunk that have an element of the box in common; `bounds` cut the box into pieces."""
    starts, chunks = _segments(box, chunk_shape)
    cuts = np.unique(np.concatenate([starts, np.array(bounds[:-1], dtype=np.int64)]))
    cuts = cuts[cuts < bounds[-1]]
    piece = np.searchsorted(np.array(bounds, dtype=np.int64), cuts, side="right") - 1
    chunk = chunks[np.searchsorted(starts, cuts, side="right") - 1]
    return len(np.unique(piece * (int(chunks.max()) + 1) + chunk))


def _segments(box: Box, chunk_shape: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Where, in C order of the box, another chunk begins, and a number of the chunk."""
    spans = [(start // size, -(-stop // size)) for (start, stop), size in zip(box, chunk_shape, strict=True)]
    weights = [math.prod(last for _, last in spans[dim + 1 :]) for dim in range(len(box))]
    cut = max((dim for dim, (first, last) in enumerate(spans) if last - first > 1), default=0)
    starts, chunks = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for dim, ((low, high), size, weight) in enumerate(zip(box, chunk_shape, weights, strict=True)):
        row = math.prod(stop - start for start, stop in box[dim + 1 :])
        if dim < cut:
            at = np.arange(low, high, dtype=np.int64)
        elif dim == cut:
            at = np.maximum(np.arange(*spans[dim], dtype=np.int64) * size, low)
        else:
            break  # the box lies within one chunk from here on
        starts = (starts[:, None] + (at - low) * row).reshape(-1)
        chunks = (chunks[:, None] + at // size * weight).reshape(-1)
    return starts, chunks
