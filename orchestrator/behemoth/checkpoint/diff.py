"""Which arrays of two checkpoints differ, and by how much; reads only what differs where both have the same chunks.

An array whose chunks have the same CRCs in both is equal: the index has a CRC for the whole array, and each chunk its
own. What remains is read a chunk or a box at a time on several threads, so that memory does not grow with the
checkpoint. Damage raises, since what cannot be read cannot be compared. Neighbours: `difference` counts, `chunk_reader`
reads, `joint_boxes` says what is read together of an array whose chunks differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import Corrupt
from behemoth.checkpoint.box import Box, num_elements, shape_of
from behemoth.checkpoint.chunk_reader import ChunkReader, ChunkReaders
from behemoth.checkpoint.difference import NO_DIFFERENCE, Difference, difference
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.joint_boxes import joint_boxes
from behemoth.checkpoint.layout import DTYPES, ArraySpec
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.reshard import Copy, plan_boxes
from behemoth.checkpoint.threads import each_result
from behemoth.ports import ObjectStore

JOB_BYTES = 64 << 20
"""Payload that one job compares: the CRCs of so many chunks are read before the chunks that differ."""

How = Literal["same", "changed", "retyped", "reshaped", "only-first", "only-second"]
Progress = Callable[[int, int], None]
"""Told bytes done and bytes to do, from the thread that called `diff`; bytes that need not be read count as done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two checkpoints, opened."""

    store: ObjectStore
    commit: Commit


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDiff:
    """One array. `first` and `second` say what it is on either side; `difference` is there when it is `changed`."""

    name: str
    how: How
    first: ArraySpec | None
    second: ArraySpec | None
    difference: Difference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunks:
    """Chunks [first, last) of an array that both sides have cut alike."""

    name: str
    first: int
    last: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A box of an array that they have cut otherwise."""

    name: str
    box: Box
    num_bytes: int


_Job = _Chunks | _Part


def diff(first: Side, second: Side, *, threads: int, progress: Progress | None = None) -> tuple[ArrayDiff, ...]:
    """Compare every array of either side; results in order of name. Blocks for reading what differs; holds about a
    chunk for each thread and side, and of arrays with other chunks a box for each thread (`joint_boxes.BOX_BYTES`).

    Equal means equal in every bit but for a collision of CRC-32C, where both are cut into the same chunks; elsewhere
    every byte is compared. Raises Corrupt for damage and the stores' errors.
    """
    found = {name: _at_a_glance(first, second, name) for name in sorted(_names(first) | _names(second))}
    work = _Work(first, second)
    jobs = [job for name, one in found.items() if one.how == "changed" for job in work.jobs(name)]
    total_bytes, done_bytes = sum(job.num_bytes for job in jobs), 0
    told: dict[_Job, Difference] = {}
    for job, result in each_result(work.run, jobs, threads=threads, name="ckpt-diff"):
        told[job] = result
        done_bytes += job.num_bytes
        if progress is not None:
            progress(done_bytes, total_bytes)
    work.require_committed()
    sums = dict.fromkeys((job.name for job in jobs), NO_DIFFERENCE)
    for job in jobs:  # in order, so that the sum of squares is the same each time
        sums[job.name] += told[job]
    return tuple(_measured(first, second, one, sums.get(name)) for name, one in found.items())


def _names(side: Side) -> set[str]:
    return set(side.commit.layout.positions)


def _at_a_glance(first: Side, second: Side, name: str) -> ArrayDiff:
    """By the two indexes alone. Everything that needs a look counts as changed."""
    one, two = _spec(first, name), _spec(second, name)
    return ArrayDiff(name=name, how=_how(first, second, one, two), first=one, second=two)


def _how(first: Side, second: Side, one: ArraySpec | None, two: ArraySpec | None) -> How:
    if one is None:
        return "only-second"
    if two is None:
        return "only-first"
    if one.dtype != two.dtype:
        return "retyped"
    if one.shape != two.shape:
        return "reshaped"
    is_same = _are_cut_alike(_grid(first, one.name), _grid(second, one.name)) and (
        _content_crc(first, one.name) == _content_crc(second, one.name)
    )
    return "same" if is_same else "changed"


def _measured(first: Side, second: Side, one: ArrayDiff, told: Difference | None) -> ArrayDiff:
    """What the comparison found. Raises Corrupt when the indexes say that the contents differ, and the chunks do not:
    one side's are not those that were committed."""
    if told is None:
        return one
    if told.num_changed:
        return replace(one, difference=told)
    if _are_cut_alike(_grid(first, one.name), _grid(second, one.name)):
        raise Corrupt(
            f"array {one.name!r}: expected chunks that differ, as the indexes of both checkpoints say, got equal ones",
            hint="`behemoth ckpt verify` tells which of the two is damaged",
            code="array-content",
        )
    return replace(one, how="same")


def _spec(side: Side, name: str) -> ArraySpec | None:
    position = side.commit.layout.positions.get(name)
    return None if position is None else side.commit.layout.arrays[position]


def _grid(side: Side, name: str) -> Grid:
    return grids(side.commit.layout)[side.commit.layout.positions[name]]


def _content_crc(side: Side, name: str) -> int:
    return side.commit.index.content_crcs[side.commit.layout.positions[name]]


def _are_cut_alike(one: Grid, two: Grid) -> bool:
    """Whether two arrays of the same dtype and shape have the same chunks."""
    return one.chunk_shape == two.chunk_shape


class _Work:
    """The comparison itself; `run` is called on several threads."""

    def __init__(self, first: Side, second: Side) -> None:
        self._first, self._second = first, second
        self._readers = ChunkReaders(first.store, first.commit), ChunkReaders(second.store, second.commit)

    def jobs(self, name: str) -> Iterator[_Job]:
        """The whole array, some of it at a time."""
        one, two = _grid(self._first, name), _grid(self._second, name)
        if not _are_cut_alike(one, two):
            for box in joint_boxes(one, two):
                yield _Part(name=name, box=box, num_bytes=num_elements(box) * one.spec.itemsize)
            return
        step = max(1, JOB_BYTES // one.stride_bytes)
        for start in range(0, one.num_chunks, step):
            last = min(start + step, one.num_chunks)
            yield _Chunks(name=name, first=start, last=last, num_bytes=(last - start) * one.payload_bytes)

    def run(self, job: _Job) -> Difference:
        """The difference of the elements of one job."""
        return self._of_chunks(job) if isinstance(job, _Chunks) else self._of_part(job)

    def require_committed(self) -> None:
        """Raises Corrupt where all chunks of an array were read, and some are of another checkpoint."""
        for readers in self._readers:
            readers.require_committed()

    def _of_chunks(self, job: _Chunks) -> Difference:
        """Those whose CRCs differ, as they stand beside them, are read; a chunk that is read is held to its CRC."""
        mine, theirs = (readers.mine() for readers in self._readers)
        at = [side.commit.layout.positions[job.name] for side in (self._first, self._second)]
        total = NO_DIFFERENCE
        for chunk in range(job.first, job.last):
            if mine.stored_crc(at[0], chunk) != theirs.stored_crc(at[1], chunk):
                one = _elements(mine, self._first, job.name, chunk)
                total += difference(one, _elements(theirs, self._second, job.name, chunk))
        return total

    def _of_part(self, job: _Part) -> Difference:
        """Each chunk that meets the box is read once: those of the first side make up the box, those of the second are
        compared with it one by one."""
        mine, theirs = (readers.mine() for readers in self._readers)
        grids_of = _grid(self._first, job.name), _grid(self._second, job.name)
        part = np.empty(shape_of(job.box), DTYPES[grids_of[0].spec.dtype])
        for chunk, copy in _common(grids_of[0], job.box):
            part[copy.target] = _elements(mine, self._first, job.name, chunk)[copy.source]
        total = NO_DIFFERENCE
        for chunk, copy in _common(grids_of[1], job.box):
            two = _elements(theirs, self._second, job.name, chunk)[copy.source]
            total += difference(np.ascontiguousarray(part[copy.target]), np.ascontiguousarray(two))
        return total


def _elements(reader: ChunkReader, side: Side, name: str, chunk: int) -> npt.NDArray[np.generic]:
    """A chunk's part of the array, without padding. Valid until the reader's next chunk."""
    grid = _grid(side, name)
    payload, _ = reader.payload(side.commit.layout.positions[name], chunk)
    data = np.frombuffer(payload, np.uint8, count=grid.data_bytes(chunk)).view(DTYPES[grid.spec.dtype])
    return data.reshape([part.stop - part.start for part in grid.chunk_box(chunk)])


def _common(grid: Grid, box: Box) -> Iterator[tuple[int, Copy]]:
    """The chunks that a box meets, in order, each with what the two have in common."""
    return ((read.chunk, copy) for read in plan_boxes(grid, 0, [box]) for copy in read.copies)
