"""The save grid on object storage: which objects an array becomes, in which parts they are uploaded, and by whom.

There, a range of an object cannot be written; an object is one request, or parts of 5 MiB at least. So a shard is one
model-parallel box with chunks as wide as the box, in which each rank's flat range is contiguous, and a part is such a
range where it is large enough. Smaller ones are merged in order until they are, and the least loaded of those who hold
some of it uploads the part: the others hand their bytes over. Every rank computes the same. Sizes are those of the
data; a chunk's CRC and the index come on top when the parts are written. Pure: no adapter exists yet. Neighbour:
`sharing`, whose owners are those of file systems.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from behemoth.base.errors import Invalid
from behemoth.checkpoint.boxes import Box, Held, Interval, piece_bounds
from behemoth.checkpoint.cuts import share_starts
from behemoth.checkpoint.grid import Ints
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import cells, num_flat
from behemoth.checkpoint.sharing import Kind, kinds
from behemoth.ports import MAX_PARTS, MIN_PART_BYTES

MAX_PART_BYTES = 4 << 30
"""Of 5 GiB: CRCs and index need some of it."""
SINGLE_BYTES = 8 << 20
"""An object below this is one request: it would have one part, and creating and completing an upload cost two more."""


class Run(NamedTuple):
    """A part: bytes [begin, end) of its shard, of pieces first .. last; `turn` counts parts of the same pieces."""

    begin: int
    end: int
    first: int
    last: int
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Objects and parts of all arrays of one kind. Parts as columns, in order of shard and offset."""

    kind: Kind
    shards: tuple[Box, ...]
    """Of the logical array; they tile it."""
    shard: Ints
    begin: Ints
    end: Ints
    exchanged_bytes: int
    """Over all arrays: what others hand to the rank that uploads it."""
    owner: Ints
    """[arrays, parts]: the rank that uploads the part."""

    @property
    def num_objects(self) -> int:
        return len(self.shards) * len(self.kind.positions)

    @property
    def num_parts(self) -> int:
        return self.owner.size

    @property
    def requests_per_array(self) -> int:
        """Those that send parts, and two more for each object of several: to create and to complete the upload."""
        num_multipart = int((np.bincount(self.shard, minlength=len(self.shards)) > 1).sum())
        return len(self.shard) + 2 * num_multipart


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


def plan_uploads(layout: Layout) -> UploadPlan:
    """Shards, parts and owners of a whole save. O(parts of all kinds + arrays).

    A part that one rank holds is that rank's. Then, array after array in name order, shard after shard, every other
    part goes to the least loaded of its holders, ties to the first in order of pieces and ranks.
    Raises Invalid for a shard that 10,000 parts cannot hold.
    """
    drafts = [_Draft.of(kind) for kind in kinds(layout)]
    sent = np.zeros(layout.mesh.num_ranks, dtype=np.int64)
    for draft in drafts:
        np.add.at(sent, draft.owner[0, draft.is_sole], draft.sizes[draft.is_sole] * len(draft.owner))
    rows = [(position, draft, row) for draft in drafts for row, position in enumerate(draft.kind.positions)]
    for _, draft, row in sorted(rows, key=lambda item: item[0]):
        draft.choose(sent, row)
    return UploadPlan(uploads=tuple(draft.done() for draft in drafts), sent_bytes=sent)


@lru_cache(maxsize=4096)
def cut_parts(bounds: tuple[int, ...], num_holders: int) -> tuple[Run, ...]:
    """The parts of a shard whose pieces lie between `bounds`, in bytes from 0 on; each has `num_holders` holders.

    What a piece's several holders can share out is cut for all of them, as far as parts stay large enough.
    """
    total = bounds[-1]
    if total < SINGLE_BYTES:
        held = [piece for piece, (begin, end) in enumerate(itertools.pairwise(bounds)) if begin < end]
        return (Run(0, total, held[0], held[-1], 0),)
    least = max(MIN_PART_BYTES, -(-total // (MAX_PARTS - 1)))
    runs: list[Run] = []
    begin, first = 0, -1
    for piece, (start, end) in enumerate(itertools.pairwise(bounds)):
        if start == end:
            continue
        first = piece if first < 0 else first
        if end - begin >= least or end == total:
            runs += _split(begin, end, first, piece, least, num_holders)
            begin, first = end, -1
    return tuple(runs)


def _split(begin: int, end: int, first: int, last: int, least: int, num_holders: int) -> Iterator[Run]:
    size = end - begin
    num = max(-(-size // MAX_PART_BYTES), min(size // least, num_holders if first == last else 1), 1)
    for turn in range(num):
        yield Run(begin + size * turn // num, begin + size * (turn + 1) // num, first, last, turn)


class _Wave(NamedTuple):
    """Parts of one kind that no two of them have a holder in common, so that all owners can be chosen at once."""

    parts: Ints
    candidates: Ints
    """[parts, most]: the holders; the first again where there are fewer."""
    held: Ints
    """[parts, most]: bytes of the part that the candidate holds."""


class _Draft:
    """The uploads of one kind while owners are chosen."""

    def __init__(self, kind: Kind, shards: Sequence[Box], columns: Ints, waves: Sequence[_Wave], sole: Ints) -> None:
        self.kind = kind
        self.owner = np.broadcast_to(sole, (len(kind.positions), len(sole))).copy()
        self.sizes = columns[:, 2] - columns[:, 1]
        self.is_sole = sole >= 0
        self._shards = tuple(shards)
        self._columns = columns
        self._waves = waves
        self._exchanged_bytes = 0

    @staticmethod
    def of(kind: Kind) -> _Draft:
        holders, num, itemsize = kind.sharing.holders, num_flat(kind), kind.grid.spec.itemsize
        shards: list[Box] = []
        rows: list[tuple[int, int, int]] = []
        sole: list[int] = []
        shared: dict[tuple[int, int], list[tuple[int, Ints, Ints]]] = {}
        for at, cell in enumerate(cells(kind)):
            of_cell = holders[at * num : (at + 1) * num]
            for number, shard in enumerate(one for held in cell.parts for one in _shards(kind, held)):
                elements = piece_bounds(kind.grid.spec, shard, cell.shape, num)
                bounds = tuple(element * itemsize for element in elements)
                for run in _cut_parts(kind, bounds):
                    ranks = of_cell[run.first : run.last + 1].reshape(-1)
                    if len(ranks) > 1:
                        wave = shared.setdefault((number, run.turn), [])
                        wave.append((len(rows), ranks, np.repeat(_overlaps(bounds, run), holders.shape[1])))
                    sole.append(int(ranks[0]) if len(ranks) == 1 else -1)
                    rows.append((len(shards), run.begin, run.end))
                shards.append(shard.box)
        waves = [_wave(shared[key]) for key in sorted(shared)]
        return _Draft(kind, shards, np.array(rows, dtype=np.int64), waves, np.array(sole, dtype=np.int64))

    def choose(self, sent: Ints, row: int) -> None:
        """Owners of the parts of array `row`; adds to `sent`."""
        for wave in self._waves:
            at = np.argmin(sent[wave.candidates], axis=1)[:, None]
            chosen = np.take_along_axis(wave.candidates, at, axis=1)[:, 0]
            self.owner[row, wave.parts] = chosen
            sent[chosen] += self.sizes[wave.parts]
            kept = np.take_along_axis(wave.held, at, axis=1)
            self._exchanged_bytes += int(self.sizes[wave.parts].sum() - kept.sum())

    def done(self) -> Uploads:
        return Uploads(
            kind=self.kind,
            shards=self._shards,
            shard=self._columns[:, 0],
            begin=self._columns[:, 1],
            end=self._columns[:, 2],
            exchanged_bytes=self._exchanged_bytes,
            owner=self.owner,
        )


def _wave(rows: Sequence[tuple[int, Ints, Ints]]) -> _Wave:
    most = max(len(ranks) for _, ranks, _ in rows)
    candidates = np.empty((len(rows), most), dtype=np.int64)
    held_bytes = np.empty_like(candidates)
    for row, (_, ranks, held) in enumerate(rows):
        candidates[row], held_bytes[row] = ranks[0], held[0]
        candidates[row, : len(ranks)], held_bytes[row, : len(held)] = ranks, held
    return _Wave(np.array([part for part, _, _ in rows], dtype=np.int64), candidates, held_bytes)


def _shards(kind: Kind, held: Held) -> Iterator[Held]:
    """The shards of one box of a cell: whole where shares are equal, else so wide that none has two holders."""
    spec, sizes = kind.grid.spec, kind.sharing.sizes
    num_of_dim = {dim: num for (dim, _), num in zip(spec.dims, sizes, strict=False)}
    cuts: list[list[tuple[Interval, Interval]]] = []
    for dim, ((low, high), (place, _)) in enumerate(zip(held.box, held.place, strict=True)):
        width = math.gcd(*share_starts(spec, dim, num_of_dim.get(dim, 1))) or spec.shape[dim]
        ends = [(start, min(start + width, high)) for start in range(low, high, width)]
        cuts.append([((start, end), (start - low + place, end - low + place)) for start, end in ends])
    for chosen in itertools.product(*cuts):
        yield Held(tuple(box for box, _ in chosen), tuple(at for _, at in chosen))


def _cut_parts(kind: Kind, bounds: tuple[int, ...]) -> tuple[Run, ...]:
    parts = cut_parts(bounds, kind.sharing.holders.shape[1])
    if len(parts) > MAX_PARTS:
        raise Invalid(
            f"array {kind.grid.spec.name!r}: expected a shard of at most {MAX_PARTS} parts, got {bounds[-1]} bytes",
            hint="cut the array over more ranks",
            code="shard-parts",
        )
    return parts


def _overlaps(bounds: Sequence[int], run: Run) -> Ints:
    """Bytes of a part that each of its pieces has."""
    edges = np.clip(np.array(bounds[run.first : run.last + 2], dtype=np.int64), run.begin, run.end)
    return np.diff(edges)
