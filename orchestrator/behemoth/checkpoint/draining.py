"""Copies one committed checkpoint from one store to another: down to a safer tier, or back from it. The same objects,
byte for byte, and the commit last.

Every byte is proven on its way against the CRCs of the commit, so that a damaged checkpoint does not travel. May be
killed anywhere: the target then holds objects without a commit, which the next copy of that write takes for its own
where they prove whole, and which `gc` removes otherwise. Whether the target is the right place is the caller's matter
(`owner`). Neighbours: `filling`, which writes, and `chunk_check`, which proves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Corrupt, NotFound, Unavailable
from behemoth.checkpoint.chunk_check import ChunkCheck, Found, FoundCrcs, shards_of
from behemoth.checkpoint.commit_index import CommitIndex, MetadataObject
from behemoth.checkpoint.commit_log import at_step, publish, read_stored, rejected_writes, remove
from behemoth.checkpoint.commit_record import DAMAGED_HINT, CommitRecord
from behemoth.checkpoint.copy_plan import has_commit, object_sizes, refuse_going, small_objects
from behemoth.checkpoint.filling import Filling, ObjectPiece, filling_of
from behemoth.checkpoint.opened import read_index, read_metadata
from behemoth.checkpoint.problem import Problem
from behemoth.checkpoint.replacing import replace_commit
from behemoth.checkpoint.small_objects import create_same, holds
from behemoth.checkpoint.threads import each_result, run_all
from behemoth.ports import ObjectInfo, ObjectStore, SavesTo, UploadsParts
from behemoth.state.effect import CommitRef

DAMAGED = "drain-damaged"
"""Code of the error for a checkpoint that is not as it was committed."""
RUBBISH = "drain-rubbish"
"""Code of the error for what stood at the target and was no part of the checkpoint; it is gone then."""
SMALL_THREADS = 8
"""For metadata, which waits for the stores and does not compute."""

Progress = Callable[[int, int], None]
"""Told bytes done and bytes to do, from the thread that called."""
Pace = Callable[[int], None]
"""Called before so many bytes are read; may wait, or raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A checkpoint that both stores have now. `num_bytes` of its arrays' objects were copied, `found_bytes` were there
    already and proved whole."""

    record: CommitRecord
    num_bytes: int
    found_bytes: int


def copy_checkpoint(
    source: ObjectStore,
    target: SavesTo,
    ref: CommitRef,
    *,
    threads: int,
    progress: Progress = lambda _done, _total: None,
    pace: Pace = lambda _num_bytes: None,
    replaces: bool = False,
    is_alone: bool = True,
) -> Copied:
    """Blocks for as long as reading, proving and writing all of it takes. Memory: a piece for each thread, 8 MiB, or
    more where a chunk is larger or an object would have more parts than an upload may. Idempotent, also after a kill.

    What the target has of another write at that step stays, unless this one `replaces` it: then it stands until this
    one is whole there, and at once the other does. `is_alone`: nobody else deletes at the target, as where the run is
    led that owns it; a mark of a deletion was left by one that was cut off then.

    Raises NotFound when the commit is gone, Corrupt (`DAMAGED`, or that of the metadata) naming the place of a byte
    that is not as it was committed, Conflict when the target has another commit of that step that stays or is pinned,
    has rejected this one or is deleting it, or has got another object in the place of one of it meanwhile, and the
    stores' errors.
    Without a return the target has no new commit.
    """
    with _of_source():
        record, data = read_stored(source, ref)
    if has_commit(target, record, replaces=replaces):
        return Copied(record=record, num_bytes=0, found_bytes=0)
    if not is_alone:
        refuse_going(target, record)
    with _of_source():
        index = read_index(source, record)
    copying = _Copying(source, target, record, index, threads=threads, progress=progress, pace=pace)
    try:
        copied = copying.run()
    finally:
        copying.end()
    standing = at_step(target, record.step)
    if replaces and isinstance(standing, CommitRecord) and not _is_free(target, record, standing):
        replace_commit(target, standing.ref, record, data)
    else:
        publish(target, record, data)
    return copied


class _Unit(NamedTuple):
    """Slots [first, last) of a shard, counted in the list of shards, and the piece of its object that they are."""

    shard: int
    first: int
    last: int
    number: int
    num_pieces: int


class _Copying:
    """One checkpoint under way; used by one thread, which starts others."""

    def __init__(
        self,
        source: ObjectStore,
        target: SavesTo,
        record: CommitRecord,
        index: CommitIndex,
        *,
        threads: int,
        progress: Progress,
        pace: Pace,
    ) -> None:
        self._source = source
        self._target = target
        self._record = record
        self._index = index
        self._threads = threads
        self._progress = progress
        self._pace = pace
        self._filling: Filling = filling_of(target)
        self._shards = shards_of(record, index)
        self._small = small_objects(record, index)
        self._contents = FoundCrcs(self._shards)
        self._total_bytes = sum(shard.grid.file_bytes for shard in self._shards)
        self._done_bytes = 0
        self._standing: dict[str, ObjectInfo] = {}
        """Objects of this write that the target held before."""

    def run(self) -> Copied:
        """All objects, proven and durable."""
        self._standing = self._remove_rubbish()
        kept = self._keep_whole()
        found_bytes = self._done_bytes
        read = ChunkCheck(self._source, self._shards, deep=True)
        missing = (unit for unit in self._units() if unit.shard not in kept or not kept[unit.shard][unit.number - 1])
        for _, found in self._each(lambda unit: self._copy(read, unit), missing):
            self._contents.note(found)
            self._count(found.num_bytes)
        self._require_contents(reused={shard for shard, is_kept in kept.items() if is_kept.any()})
        self._filling.seal([shard.key for shard in self._shards])
        run_all(self._copy_small, self._small, threads=SMALL_THREADS, name="ckpt-drain-small")
        return Copied(record=self._record, num_bytes=self._done_bytes - found_bytes, found_bytes=found_bytes)

    def end(self) -> None:
        """Once nothing more is written."""
        self._filling.end()

    def _remove_rubbish(self) -> dict[str, ObjectInfo]:
        """What the target holds of this write, once that is gone which no object of it can be, and uploads that nobody
        will complete.

        What is wrong goes as it was listed, here and below: another copy of this write has the same names, and a
        deletion may be carried out when its sender is dead and the next one has put the right bytes there."""
        expected = object_sizes(self._shards, self._small)
        listed = list(self._target.list(self._record.prefix))
        wrong = {info.key for info in listed if expected.get(info.key) != info.size_bytes}
        self._remove(info for info in listed if info.key in wrong)
        if isinstance(self._target, UploadsParts):
            for upload in list(self._target.list_uploads(self._record.prefix)):
                self._target.abort_upload(upload.key, upload.upload_id)
        return {info.key: info for info in listed if info.key not in wrong}

    def _remove(self, infos: Iterable[ObjectInfo]) -> None:
        if found := list(infos):
            remove(self._target, found)

    def _keep_whole(self) -> dict[int, npt.NDArray[np.bool_]]:
        """Which pieces an earlier copy left whole, as reading them back proves, of each object that is there."""
        check = ChunkCheck(self._target, self._shards, deep=True)
        standing = [number for number, shard in enumerate(self._shards) if shard.key in self._standing]
        kept = {number: np.ones(self._num_pieces(number), bool) for number in standing}
        for unit, found in self._each(lambda unit: self._look(check, unit), self._units(standing)):
            self._contents.note(found)
            for number in self._bad_pieces(unit, found):
                kept[unit.shard][number - 1] = False
        if not self._filling.takes_ranges:
            broken = [shard for shard, is_kept in kept.items() if not is_kept.all()]
            self._remove(self._standing[self._shards[shard].key] for shard in broken)
            for shard in broken:
                kept[shard][:] = False
        for unit in self._units(standing):
            if kept[unit.shard][unit.number - 1]:
                self._count(self._num_bytes(unit))
        return kept

    def _bad_pieces(self, unit: _Unit, found: Found) -> Iterator[int]:
        """An object's index is checked with its first piece, and written with the last."""
        index_offset = self._shards[unit.shard].grid.index_offset_bytes
        for problem in found.problems:
            yield unit.num_pieces if problem.offset_bytes >= index_offset else unit.number

    def _each(self, work: Callable[[_Unit], Found], units: Iterable[_Unit]) -> Iterator[tuple[_Unit, Found]]:
        return each_result(work, units, threads=self._threads, name="ckpt-drain")

    def _look(self, check: ChunkCheck, unit: _Unit) -> Found:
        self._pace(self._num_bytes(unit))
        return check.check(unit.shard, unit.first, unit.last)

    def _copy(self, read: ChunkCheck, unit: _Unit) -> Found:
        self._pace(self._num_bytes(unit))
        found, data = read.read(unit.shard, unit.first, unit.last)
        if found.problems:
            raise _damaged(found.problems[0])
        shard = self._shards[unit.shard]
        buffers: list[Buffer] = [data.data]
        if unit.number == unit.num_pieces:
            buffers.append(shard.grid.index())
        piece = ObjectPiece(
            key=shard.key,
            size_bytes=shard.grid.file_bytes,
            number=unit.number,
            num_pieces=unit.num_pieces,
            offset_bytes=unit.first * shard.grid.stride_bytes,
        )
        self._filling.put(piece, buffers)
        return found

    def _units(self, shards: Iterable[int] | None = None) -> Iterator[_Unit]:
        """One after the other: the largest checkpoints have millions."""
        for number in range(len(self._shards)) if shards is None else shards:
            grid, width, num_pieces = self._shards[number].grid, self._width(number), self._num_pieces(number)
            for at in range(num_pieces):
                yield _Unit(number, at * width, min((at + 1) * width, grid.num_slots), at + 1, num_pieces)

    def _width(self, number: int) -> int:
        """Slots of a piece."""
        grid = self._shards[number].grid
        return max(1, -(-self._filling.piece_bytes(grid.file_bytes) // grid.stride_bytes))

    def _num_pieces(self, number: int) -> int:
        return -(-self._shards[number].grid.num_slots // self._width(number))

    def _num_bytes(self, unit: _Unit) -> int:
        """That are read for it: the index goes with the first one."""
        grid = self._shards[unit.shard].grid
        return (unit.last - unit.first) * grid.stride_bytes + (grid.index_bytes if unit.first == 0 else 0)

    def _count(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        self._progress(self._done_bytes, self._total_bytes)

    def _require_contents(self, *, reused: Collection[int]) -> None:
        """Chunks may be whole and not those of this commit: the CRC over all CRCs of an array tells."""
        names = (array.name for array in self._index.layout.arrays)
        for array, (name, expected) in enumerate(zip(names, self._index.content_crcs, strict=True)):
            crc = self._contents.crc(array)
            if crc == expected:
                continue
            told = (
                f"array {name!r} of step {self._record.step}: expected CRC-32C {expected:08x} over the CRCs of its "
                f"chunks, got {crc:08x}"
            )
            foreign = self._foreign(sorted(number for number in reused if self._shards[number].array == array))
            if not foreign:
                raise Corrupt(f"source: {told}", hint=DAMAGED_HINT, code=DAMAGED)
            self._remove(self._standing[self._shards[shard].key] for shard in foreign)
            raise Unavailable(
                f"target: {told}: it held chunks of something else", hint="they are removed: copy again", code=RUBBISH
            )

    def _foreign(self, shards: Sequence[int]) -> list[int]:
        """Those whose chunks are not the source's. What is right stays: a deletion of it that is late would take the
        same bytes from who has put them there once more. Raises what is wrong with the source."""
        given, held = (ChunkCheck(store, self._shards, deep=False) for store in (self._source, self._target))
        foreign = []
        for shard in shards:
            num_slots = self._shards[shard].grid.num_slots
            expected = given.check(shard, 0, num_slots)
            if expected.problems:
                raise _damaged(expected.problems[0])
            if not np.array_equal(expected.crcs, held.check(shard, 0, num_slots).crcs):
                foreign.append(shard)
        return foreign

    def _copy_small(self, one: MetadataObject) -> None:
        with _of_source():
            data = read_metadata(self._source, one.key, one.size_bytes, one.crc)
        if one.key in self._standing:
            if holds(self._target, one.key, data):
                return
            self._remove([self._standing[one.key]])
        create_same(self._target, one.key, data)  # another copy of this write may put it there at the same time


def _is_free(target: ObjectStore, record: CommitRecord, standing: CommitRecord) -> bool:
    """For who publishes, what stands at its step: itself, or what was rejected."""
    return standing.write_id == record.write_id or (standing.step, standing.write_id) in rejected_writes(target)


def _damaged(problem: Problem) -> BehemothError:
    """What the store did not give may be had later; what is wrong stays wrong."""
    where = f"source: file {problem.object_key}"
    if problem.kind == "unreadable":
        return Unavailable(f"{where}: {problem.message}", code="drain-unreadable")
    return Corrupt(f"{where}: {problem.message}", hint=DAMAGED_HINT, code=DAMAGED)


@contextmanager
def _of_source() -> Iterator[None]:
    """What is wrong with a checkpoint, or gone, is so where it is copied from: the other store is never at fault."""
    try:
        yield
    except (Corrupt, NotFound) as error:
        raise error.within("source") from error
