"""How many bytes a restore on another layout takes from the store, against those that are needed. Pure.

A CRC covers a chunk, so a chunk is read whole however little of it is needed. Two ways to count: each chunk once for
the whole fleet, whose ranks pass it on to each other, and each rank for itself, as `reader` does. Neighbours:
`reshard`, which says what one rank reads, and `sharing`, which says how many ranks hold the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import Grid, Ints, grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.reshard import met_chunks
from behemoth.checkpoint.sharing import Kind, Share, kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class OverRead:
    """Bytes of the arrays that are restored, CRCs counted as read.

    `needed_bytes` counts each logical byte once, and `once_bytes` what the fleet reads when each chunk is read once.
    `held_bytes` and `alone_bytes` are sums over the ranks that were asked about: what they hold, and what they read
    when each reads for itself.
    """

    needed_bytes: int
    once_bytes: int
    held_bytes: int
    alone_bytes: int
    worst_alone: float
    """The most that one of these ranks reads for each byte that it holds."""

    @property
    def once(self) -> float:
        """Over-read of the fleet (checkpoint.md's goal: at most 1.1)."""
        return _ratio(self.once_bytes, self.needed_bytes)

    @property
    def alone(self) -> float:
        """Over-read of a rank that reads for itself, the mean of all bytes."""
        return _ratio(self.alone_bytes, self.held_bytes)


def over_read(
    saved: Layout, layout: Layout, positions: Sequence[int | None], *, ranks: Sequence[int] | None = None
) -> OverRead:
    """Of a restore on `layout` from a checkpoint on `saved`; `positions` as `matching` tells them.

    `ranks` are those to count for the ranks' own figures, by default all. O(chunks that pieces meet), over all pieces
    of each kind of array that these ranks hold: some seconds for 32,000 ranks of the reference Behemoth.
    """
    of_saved = grids(saved)
    chosen = np.arange(layout.mesh.num_ranks) if ranks is None else np.array(ranks, dtype=np.int64)
    held, alone = np.zeros((2, len(chosen)), dtype=np.int64)
    known: dict[object, tuple[int, int]] = {}
    wanted = [of_saved[position] for position in positions if position is not None]
    for kind in kinds(layout):
        pieces, of_rank = np.unique(kind.sharing.piece_of_rank[chosen], return_inverse=True)
        for grid, num_arrays in _saved_grids(kind, of_saved, positions):
            counts = np.array([_counted(kind, grid, int(piece), known) for piece in pieces], dtype=np.int64)
            held += num_arrays * counts[of_rank, 0]
            alone += num_arrays * counts[of_rank, 1]
    return OverRead(
        needed_bytes=sum(grid.spec.num_bytes for grid in wanted),
        once_bytes=sum(grid.num_chunks * _chunk_bytes(grid) for grid in wanted),
        held_bytes=int(held.sum()),
        alone_bytes=int(alone.sum()),
        worst_alone=_worst(held, alone),
    )


def _saved_grids(kind: Kind, of_saved: Sequence[Grid], positions: Sequence[int | None]) -> list[tuple[Grid, int]]:
    """The grids that a kind's arrays have in the checkpoint, but for their names, and how many arrays have each."""
    found: dict[object, list[Grid]] = {}
    for array in kind.positions:
        position = positions[array]
        if position is not None:
            grid = of_saved[position]
            found.setdefault((grid.chunk_shape, grid.chunks_per_dim), []).append(grid)
    return [(alike[0], len(alike)) for alike in found.values()]


def _counted(kind: Kind, grid: Grid, piece: int, known: dict[object, tuple[int, int]]) -> tuple[int, int]:
    """Bytes that a piece has, and that its holder reads for it. Stages share what they have in common."""
    if piece < 0:
        return 0, 0
    spec, coordinates = kind.grid.spec, kind.sharing.coordinates(piece)
    cut = (spec.shape, spec.itemsize, spec.dims, spec.packed, spec.flat_over, spec.flat_rows)
    key = (cut, coordinates, grid.chunk_shape)
    if key not in known:
        share = kind.share(piece)
        known[key] = (share.num_elements * spec.itemsize, len(_met(grid, share)) * _chunk_bytes(grid))
    return known[key]


def _met(grid: Grid, share: Share) -> set[int]:
    return {chunk for part in share.parts for chunk in met_chunks(grid, part.held.box, part.flat)}


def _chunk_bytes(grid: Grid) -> int:
    return grid.payload_bytes + TRAILER_BYTES


def _ratio(read_bytes: int, needed_bytes: int) -> float:
    return read_bytes / needed_bytes if needed_bytes else 1.0


def _worst(held: Ints, alone: Ints) -> float:
    some = held > 0
    ratios: npt.NDArray[np.float64] = alone[some] / held[some]
    return float(ratios.max(initial=1.0))
