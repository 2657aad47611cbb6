"""Which parts of which objects are uploaded, and by whom, when a save goes to object storage.

There, a range of an object cannot be written; an object is one request, or parts of 5 MiB at least. So arrays lie in
box shards (`cuts`), in which each rank's flat range is contiguous, and a part is such a range where it is large enough.
Smaller ones are joined (`part_cuts`), and one of those who hold some of a part uploads it: the others hand their bytes
over. Parts tile their shard: a chunk's padding, CRC and gap go with its last byte of data, the index with the shard's.
Every rank computes the same. Pure. Neighbours: `sharing`, whose owners are those of file systems, and `part_plan`,
which says what one rank's parts are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Invalid
from behemoth.checkpoint.grid import Ints
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import num_flat
from behemoth.checkpoint.part_cuts import PartCut, cut_parts, num_offsets
from behemoth.checkpoint.segments import Segments, in_shard, segments_of
from behemoth.checkpoint.sharing import Kind, kinds
from behemoth.ports import MAX_PART_BYTES, MAX_PARTS

SINGLE_BYTES = 8 << 20
"""An object below this is one request: it would have one part, and creating and completing an upload cost two more."""
MOVED_WEIGHT = 4
"""Weight of a byte that another rank must send first, relative to a byte that is uploaded, when uploaders are
chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Objects and parts of all arrays of one kind. Parts as columns, in order of shard and offset."""

    kind: Kind
    segments: tuple[Segments, ...]
    """For each shard."""
    first_part: Ints
    """[shards + 1]: the first part of each shard, and the end of the last one's."""
    data: Ints
    """[parts, 2]: first and last + 1 byte of the shard's data; padding, CRCs and gaps do not count."""
    range: Ints
    """[parts, 2]: first and last + 1 byte of the shard itself: what is sent."""
    exchanged_bytes: int
    """Bytes, over all arrays, that other ranks send to the rank that uploads them."""
    owner: npt.NDArray[np.int32]
    """[arrays, parts]: the rank that uploads the part. 32 bits, because this column has an entry for every part of the
    save, and every rank searches it for itself."""
    completer: Ints
    """[arrays, shards]: one of those that upload a shard's parts, in turn."""

    @property
    def num_objects(self) -> int:
        return len(self.segments) * len(self.kind.positions)

    @property
    def num_parts(self) -> int:
        return self.owner.size

    @property
    def requests_per_array(self) -> int:
        """Those that send parts, and two more for each object of several: to create and to complete the upload."""
        return len(self.data) + 2 * int((np.diff(self.first_part) > 1).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """`sent_bytes` has for each rank the bytes of the parts that it uploads."""

    uploads: tuple[Uploads, ...]
    sent_bytes: Ints

    @property
    def num_objects(self) -> int:
        return sum(one.num_objects for one in self.uploads)

    @property
    def num_parts(self) -> int:
        return sum(one.num_parts for one in self.uploads)

    @property
    def num_requests(self) -> int:
        return sum(one.requests_per_array * len(one.kind.positions) for one in self.uploads)

    @property
    def exchanged_bytes(self) -> int:
        return sum(one.exchanged_bytes for one in self.uploads)


@lru_cache(maxsize=4)
def plan_uploads(layout: Layout) -> UploadPlan:
    """Parts and owners of a whole save. O(parts of all kinds + arrays), once per layout.

    A part that one rank holds is that rank's. Every other one goes to the least loaded of its holders, each of whom
    counts as more loaded by what the others would hand to it; ties go to the first in order of pieces and ranks. Parts
    with few holders come first, since those with many can even out the rest, then array after array in name order,
    shard after shard.
    Raises Invalid for a layout without box shards, and for a shard that 10,000 parts cannot hold.
    """
    if layout.sharding != "box":
        raise Invalid(f"uploads: expected a layout of box shards, got sharding {layout.sharding!r}", code="uploads")
    drafts = [draft for kind in kinds(layout) for draft in _drafts(kind)]
    sent = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    for draft in drafts:
        np.add.at(sent, draft.owner[0, draft.is_sole], draft.sizes[draft.is_sole] * len(draft.owner))
    rows = [(position, draft, row) for draft in drafts for row, position in enumerate(draft.kind.positions)]
    rows.sort(key=lambda item: item[0])
    for num_holders in sorted({num for draft in drafts for num in draft.waves}):
        for _, draft, row in rows:
            for wave in draft.waves.get(num_holders, ()):
                draft.choose(sent, row, wave)
    return UploadPlan(uploads=tuple(draft.done() for draft in drafts), sent_bytes=sent)


class _Wave(NamedTuple):
    """Parts of one kind that no two of them have a holder in common, so that all owners can be chosen at once."""

    parts: Ints
    candidates: Ints
    """[parts, most]: the holders; the first again where there are fewer."""
    held: Ints
    """[parts, most]: bytes of the part that the candidate holds."""


class _Draft:
    """The uploads of one kind while owners are chosen. `offset`: of the groups in which small pieces are joined."""

    def __init__(self, kind: Kind, segments_of_shards: tuple[Segments, ...], offset: int) -> None:
        self.kind = kind
        self._segments = segments_of_shards
        self._first_part = [0]
        self._shared: dict[tuple[int, int], list[tuple[int, Ints, Ints]]] = {}
        rows: list[tuple[int, int, int]] = []
        waves = _WaveNumbers(kind, self._segments)
        for shard, segments in enumerate(self._segments):
            number = waves.number(shard, segments)
            for run in _runs(kind, segments, offset + number):
                rows.append((run.begin, run.end, self._holder(len(rows), segments, run, waves, number)))
            self._first_part.append(len(rows))
        table = np.array(rows, dtype=np.int64)
        self._data, sole = table[:, :2], table[:, 2]
        self._range = in_shard(kind.grid, self._data)
        self.owner = np.broadcast_to(sole, (len(kind.positions), len(sole))).copy()
        self.is_sole = sole >= 0
        self.sizes = self._range[:, 1] - self._range[:, 0]
        _check_sizes(kind, self.sizes)
        self.waves: dict[int, list[_Wave]] = {}
        for key in sorted(self._shared):
            wave = _wave(self._shared[key])
            self.waves.setdefault(wave.candidates.shape[1], []).append(wave)
        self._exchanged_bytes = 0

    def _holder(self, part: int, segments: Segments, run: PartCut, waves: _WaveNumbers, number: int) -> int:
        """The only one, or -1: then the part is noted down in its wave, with all of them."""
        holders = self.kind.sharing.holders
        if run.first == run.last and holders.shape[1] == 1:  # of most parts: the rest of this costs ten times as much
            return int(holders[segments.pieces[run.first], 0])
        pieces, held = _pieces_of(segments, run)
        ranks = holders[pieces].reshape(-1)
        if len(ranks) == 1:
            return int(ranks[0])
        key = number, run.turn if waves.are_simple else part
        self._shared.setdefault(key, []).append((part, ranks, np.repeat(held, holders.shape[1])))
        return -1

    def choose(self, sent: Ints, row: int, wave: _Wave) -> None:
        """Owners of these parts of array `row`; adds to `sent`."""
        moved = self.sizes[wave.parts, None] - wave.held
        at = np.argmin(sent[wave.candidates] + MOVED_WEIGHT * moved, axis=1)[:, None]
        chosen = np.take_along_axis(wave.candidates, at, axis=1)[:, 0]
        self.owner[row, wave.parts] = chosen
        sent[chosen] += self.sizes[wave.parts]
        kept = np.take_along_axis(wave.held, at, axis=1)
        self._exchanged_bytes += int(np.diff(self._data[wave.parts], axis=1).sum() - kept.sum())

    def done(self) -> Uploads:
        first_part = np.array(self._first_part, dtype=np.int64)
        return Uploads(
            kind=self.kind,
            segments=self._segments,
            first_part=first_part,
            data=self._data,
            range=self._range,
            exchanged_bytes=self._exchanged_bytes,
            owner=self.owner.astype(np.int32),
            completer=_completers(self.kind, first_part, self.owner),
        )


def _completers(kind: Kind, first_part: Ints, owner: Ints) -> Ints:
    num_parts = np.diff(first_part)
    turn = np.array(kind.positions, dtype=np.int64)[:, None] + np.arange(len(num_parts))
    return np.take_along_axis(owner, first_part[:-1] + turn % num_parts, axis=1)


def _drafts(kind: Kind) -> list[_Draft]:
    """The arrays of a kind take their offsets in turn: in each way of joining small pieces, other ranks upload none."""
    segments = segments_of(kind)
    num_holders = kind.sharing.holders.shape[1]
    num = min(num_offsets(segments[0].bounds, num_holders), len(kind.positions))
    return [_Draft(replace(kind, positions=kind.positions[offset::num]), segments, offset) for offset in range(num)]


class _WaveNumbers:
    """Numbers for the shards of a kind, so that shards of one number have no holder in common: those of different
    cells. Where a shard holds several boxes (`are_simple` is false then) each part is a wave."""

    def __init__(self, kind: Kind, segments: Sequence[Segments]) -> None:
        self._num_flat = num_flat(kind)
        self.are_simple = all(self._is_simple(one) for one in segments)
        self._of_cell: dict[int, int] = {}

    def number(self, shard: int, segments: Segments) -> int:
        if not self.are_simple:
            return shard
        cell = segments.pieces[0] // self._num_flat
        self._of_cell[cell] = self._of_cell.get(cell, -1) + 1
        return self._of_cell[cell]

    def _is_simple(self, segments: Segments) -> bool:
        """Whether all segments are of one cell, and each piece has one segment."""
        first, last = (piece // self._num_flat for piece in (min(segments.pieces), max(segments.pieces)))
        return first == last and len(set(segments.pieces)) == len(segments.pieces)


def _runs(kind: Kind, segments: Segments, offset: int) -> tuple[PartCut, ...]:
    if kind.grid.file_bytes < SINGLE_BYTES:
        return (PartCut(0, segments.bounds[-1], 0, len(segments.pieces) - 1, 0),)
    runs = cut_parts(segments.bounds, kind.sharing.holders.shape[1], offset)
    if len(runs) > MAX_PARTS:
        raise Invalid(
            f"array {kind.grid.spec.name!r}: expected a shard of at most {MAX_PARTS} parts, got one of "
            f"{segments.bounds[-1]} bytes",
            hint="cut the array over more ranks",
            code="shard-parts",
        )
    return runs


def _check_sizes(kind: Kind, sizes: Ints) -> None:
    if int(sizes.max()) > MAX_PART_BYTES:
        raise Invalid(
            f"array {kind.grid.spec.name!r}: expected parts of at most {MAX_PART_BYTES} bytes, got {sizes.max()} bytes",
            hint="cut the array over more ranks",
            code="shard-parts",
        )


def _pieces_of(segments: Segments, run: PartCut) -> tuple[Ints, Ints]:
    """The pieces of a part, and how many of its bytes each has. Most parts have few, for which lists are faster."""
    held: dict[int, int] = {}
    bounds = segments.bounds[run.first : run.last + 2]
    for piece, begin, end in zip(segments.pieces[run.first : run.last + 1], bounds, bounds[1:], strict=False):
        held[piece] = held.get(piece, 0) + min(end, run.end) - max(begin, run.begin)
    pieces = sorted(held)
    return np.array(pieces, dtype=np.int64), np.array([held[piece] for piece in pieces], dtype=np.int64)


def _wave(rows: Sequence[tuple[int, Ints, Ints]]) -> _Wave:
    most = max(len(ranks) for _, ranks, _ in rows)
    candidates = np.empty((len(rows), most), dtype=np.int64)
    held_bytes = np.empty_like(candidates)
    for row, (_, ranks, held) in enumerate(rows):
        candidates[row], held_bytes[row] = ranks[0], held[0]
        candidates[row, : len(ranks)], held_bytes[row, : len(held)] = ranks, held
    return _Wave(np.array([part for part, _, _ in rows], dtype=np.int64), candidates, held_bytes)
