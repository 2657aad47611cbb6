"""Bytes that every rank writes and stages, for all ranks at once: the sums over all plans, without making the plans.

32,000 plans of thousands of spans take minutes; pieces of one kind differ in a few sizes only, so columns over ranks
take a second. Pure. Neighbours: `sharing` (the owners), `plan` (one rank in full, which a test compares).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from behemoth.checkpoint.arena_format import arena_size_bytes
from behemoth.checkpoint.grid import Ints
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.local_boxes import LocalBox, local_boxes, local_shape, piece_bounds
from behemoth.checkpoint.plan import ALIGNMENT_BYTES, PAGE_BYTES, PAGED_BYTES
from behemoth.checkpoint.sharing import Kind, bytes_of_pieces, kinds, owners
from behemoth.checkpoint.snapshot_format import snapshot_size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """[ranks] each; see `RankPlan` for what the numbers mean."""

    written_bytes: Ints
    """`RankPlan.written_bytes`."""
    data_bytes: Ints
    """`RankPlan.data_bytes`: what is staged of one generation."""
    num_spans: Ints
    """How many spans the rank holds."""
    arena_bytes: Ints
    """`Arena.size_bytes`: two generations, tables and headers."""
    snapshot_bytes: Ints
    """`snapshot_format.snapshot_size_bytes`: one of its files on its node's own disk."""


class Cell(NamedTuple):
    """One block of the split dims; `flat_over`, if any, shares it out into pieces that follow one another."""

    shape: tuple[int, ...]
    """Shape of the local array."""
    parts: tuple[LocalBox, ...]


def loads(layout: Layout) -> Loads:
    """O(arrays x world) in columns, beside what `owners` takes once."""
    data_bytes, num_spans = _staged(layout)
    sizes = list(zip(num_spans.tolist(), data_bytes.tolist(), strict=True))
    return Loads(
        written_bytes=_written(layout),
        data_bytes=data_bytes,
        num_spans=num_spans,
        arena_bytes=np.array([arena_size_bytes(spans, data) for spans, data in sizes], dtype=np.int64),
        snapshot_bytes=np.array([snapshot_size_bytes(spans, data) for spans, data in sizes], dtype=np.int64),
    )


def cells(kind: Kind) -> list[Cell]:
    """The blocks of a kind, in C order of the coordinates on the axes of the split dims."""
    spec, sizes = kind.grid.spec, kind.sharing.sizes[: len(kind.grid.spec.dims)]
    return [
        Cell(local_shape(spec, sizes, coordinates), local_boxes(spec, sizes, coordinates))
        for coordinates in np.ndindex(*sizes)
    ]


def num_flat(kind: Kind) -> int:
    """Number of pieces of a cell."""
    return kind.sharing.sizes[-1] if kind.grid.spec.flat_over is not None else 1


def _written(layout: Layout) -> Ints:
    written = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    for kind, owner in zip(kinds(layout), owners(layout), strict=True):
        if owner is None:
            written[kind.sharing.holders[:, 0]] += bytes_of_pieces(kind) * len(kind.positions)
        else:
            np.add.at(written, owner, kind.unit_bytes)
    return written


def _staged(layout: Layout) -> tuple[Ints, Ints]:
    """Data bytes and spans: parts in the layout's order, each from an aligned offset on."""
    offset = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    num_spans = np.zeros_like(offset)
    columns: dict[int, tuple[Ints, Ints, Ints]] = {}
    for kind in kinds(layout):
        nbytes, spans = _parts(kind)
        ranks = np.flatnonzero(kind.sharing.piece_of_rank >= 0)
        pieces = kind.sharing.piece_of_rank[ranks]
        num_spans[ranks] += spans[pieces] * len(kind.positions)
        held = nbytes[pieces].T
        alignment = np.where(held >= PAGED_BYTES, PAGE_BYTES, ALIGNMENT_BYTES)
        columns.update(dict.fromkeys(kind.positions, (ranks, held, alignment)))
    for _, (ranks, held, alignment) in sorted(columns.items(), key=lambda item: item[0]):
        at = offset[ranks]
        for part_bytes, aligned_to in zip(held, alignment, strict=True):
            at = -(-at // aligned_to) * aligned_to + part_bytes
        offset[ranks] = at
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES, num_spans


def _parts(kind: Kind) -> tuple[Ints, Ints]:
    """[pieces, parts]: bytes of each part of each piece, 0 where it has fewer; and [pieces]: its spans."""
    spec, num = kind.grid.spec, num_flat(kind)
    of = cells(kind)
    nbytes = np.zeros((len(of), num, max(len(cell.parts) for cell in of)), dtype=np.int64)
    spans = np.zeros((len(of), num), dtype=np.int64)
    for at, cell in enumerate(of):
        for part, held in enumerate(cell.parts):
            bounds = np.array(piece_bounds(spec, held, cell.shape, num), dtype=np.int64)
            begin, end = bounds[:-1], bounds[1:]
            nbytes[at, :, part] = (end - begin) * spec.itemsize
            starts = kind.grid.meeting(held.box, (0, held.num_elements)).first
            met = np.searchsorted(starts, end, side="left") - np.searchsorted(starts, begin, side="right") + 1
            spans[at] += np.where(end > begin, met, 0)
    return nbytes.reshape(len(of) * num, -1), spans.reshape(-1)
