"""Reads a checkpoint back and reports where each damaged byte is: tensor, chunk, file, range.

Covers every bit below the checkpoint's prefix and its commit record: the record has a CRC, it holds that of the index,
the index those of all metadata, each chunk its own; the shards' indexes follow from the layout; gaps are zero; what is
missing or extra shows in the listing. Never repairs and never writes. Neighbours: `verify_store` checks what lies
beside the checkpoints; `reader` refuses at the first fault because a run waits, this one finds all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TypeVar

from behemoth.base.errors import BehemothError, Corrupt, Unavailable
from behemoth.base.ids import Step
from behemoth.checkpoint.chunk_check import ChunkCheck, Found, FoundCrcs, Shard, SlotRange, shards_of, slot_ranges_of
from behemoth.checkpoint.commit_index import CommitIndex, MetadataObject
from behemoth.checkpoint.commit_log import BadCommit, is_away, read_record
from behemoth.checkpoint.commit_record import DAMAGED_HINT, CommitRecord
from behemoth.checkpoint.opened import read_index, read_metadata
from behemoth.checkpoint.paths import INDEX, METADATA, commit_key
from behemoth.checkpoint.problem import Kind, Problem, kind_of, problem_at
from behemoth.checkpoint.threads import each_result, run_all
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef

Progress = Callable[[int, int], None]
"""Told bytes done and bytes to do, from the thread that called `verify`."""
Spread = Callable[[CommitRecord, Sequence[Shard], Sequence[SlotRange]], Iterable[Found]]
"""Checks spans on other threads or machines; returns the results in any order."""
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What verification found, in the order of the objects. `num_bytes` of arrays were read, none by a check that is
    not `deep`."""

    step: Step | None
    deep: bool
    num_objects: int
    num_chunks: int
    num_bytes: int
    problems: tuple[Problem, ...]

    @property
    def is_intact(self) -> bool:
        """No problem was found."""
        return not self.problems


def verify(
    store: ObjectStore,
    commit: CommitRef | BadCommit,
    *,
    threads: int,
    deep: bool,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> Verification:
    """Check one checkpoint. Blocks for a listing and a small read for each array, and, deep, for about 0.2 s per GiB
    and thread from memory. Chunks are checked on `threads` of this process, unless `spread` does that (and tells its
    own progress).

    Damage never raises, it is reported; what the store refuses or cannot read of single objects are problems of kind
    `unreadable`. Raises what says that the store is away (`is_away`). Not deep, sizes and metadata are checked, and no
    array is read: in a bucket even the CRCs beside the chunks would be a request each, millions for a giant checkpoint.
    """
    problems: list[Problem] = []
    key = commit.key if isinstance(commit, BadCommit) else commit_key(commit.step)
    record = _told(problems, partial(_read_record, store, commit), "commit-record", key)
    if record is None:
        return _report(commit.step, deep, problems)
    listed = _told(problems, partial(_listed, store, record), "unreadable", record.prefix)
    if listed is None:
        return _report(commit.step, deep, problems)
    key = f"{record.prefix}/{INDEX}"
    index = _told(problems, partial(read_index, store, record), "index", key, record.index_bytes)
    if index is None:  # nobody knows what else to look at
        return _report(commit.step, deep, problems, num_objects=len(listed) + 1)
    problems += _check_listing(record, index, listed)
    problems += _check_metadata(store, record, index, threads)
    if not deep:
        return _report(commit.step, deep, problems, num_objects=len(listed) + 1)
    shards = [shard for shard in shards_of(record, index) if listed.get(shard.key) == shard.grid.file_bytes]
    spans = slot_ranges_of(shards, deep=True)
    tally = _Tally(shards)
    for found in (
        _check_here(store, shards, spans, deep, threads, progress) if spread is None else spread(record, shards, spans)
    ):
        tally.note(found)
    problems += tally.problems
    problems += _check_contents(record, index, shards, tally)
    return _report(commit.step, deep, problems, tally, num_objects=len(listed) + 1)


def require_committed(store: ObjectStore, ref: CommitRef, *, threads: int) -> None:
    """Raises Corrupt, naming the first damage, unless every object exists in full size and the CRCs beside the chunks
    are the committed ones: whoever then checks each chunk against its CRC reads what was committed. NotFound when the
    commit is gone, Unavailable where nothing is known to be damaged and something could not be read. Blocks for a small
    read per chunk."""
    record, index = _whole_objects(store, ref, threads)
    shards = shards_of(record, index)
    tally = _Tally(shards)
    for found in _check_here(store, shards, slot_ranges_of(shards, deep=False), False, threads, None):
        tally.note(found)
    _require_none([*tally.problems, *_check_contents(record, index, shards, tally)])


def require_objects(store: ObjectStore, ref: CommitRef, *, threads: int) -> None:
    """Raises Corrupt, naming the first damage, unless every object of a checkpoint exists in full size and the metadata
    are as written; NotFound and Unavailable as `require_committed`. Reads no array."""
    _whole_objects(store, ref, threads)


def _whole_objects(store: ObjectStore, ref: CommitRef, threads: int) -> tuple[CommitRecord, CommitIndex]:
    record = read_record(store, ref)
    index = read_index(store, record)
    problems = _check_listing(record, index, _listed(store, record))
    _require_none(problems + _check_metadata(store, record, index, threads))
    return record, index


def _require_none(problems: Sequence[Problem]) -> None:
    """Damage first: what could not be read may be whole."""
    if not problems:
        return
    first, num_more = min(_in_order(problems), key=lambda problem: problem.kind == "unreadable"), len(problems) - 1
    more = f" (and {num_more} more)" if num_more else ""
    named = "" if first.object_key in first.message else f"file {first.object_key}: "
    message = f"{named}{first.message}{more}"
    if first.kind == "unreadable":
        hint = "nothing is known to be damaged: see to it that it can be read, and try again"
        raise Unavailable(message, hint=hint, code="checkpoint-unreadable")
    raise Corrupt(message, hint=DAMAGED_HINT, code="checkpoint-damaged")


def _check_here(
    store: ObjectStore,
    shards: Sequence[Shard],
    spans: Sequence[SlotRange],
    deep: bool,
    threads: int,
    progress: Progress | None,
) -> Iterator[Found]:
    check = ChunkCheck(store, shards, deep=deep)

    def of_span(span: SlotRange) -> Found:
        return check.check(span.shard, span.first, span.last)

    done_bytes, total_bytes = 0, sum(span.num_bytes for span in spans)
    for span, found in each_result(of_span, spans, threads=max(1, threads), name="ckpt-verify"):
        done_bytes += span.num_bytes
        if progress is not None:
            progress(done_bytes, total_bytes)
        yield found


class _Tally:
    """What was found in all shards together."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self.contents = FoundCrcs(shards)
        self.problems: list[Problem] = []
        self.num_chunks: Counter[int] = Counter()
        """By array, as the layout counts them."""
        self.damaged: set[int] = set()
        """Arrays of which a chunk is damaged, or nobody knows."""
        self.num_bytes = 0

    def note(self, found: Found) -> None:
        array = self._shards[found.shard].array
        self.contents.note(found)
        self.problems += found.problems
        self.num_chunks[array] += len(found.crcs)
        self.num_bytes += found.num_bytes
        if any(problem.kind in ("chunk", "missing", "unreadable") for problem in found.problems):
            self.damaged.add(array)


def _report(
    step: Step | None, deep: bool, problems: Sequence[Problem], tally: _Tally | None = None, *, num_objects: int = 1
) -> Verification:
    return Verification(
        step=step,
        deep=deep,
        num_objects=num_objects,
        num_chunks=0 if tally is None else tally.num_chunks.total(),
        num_bytes=0 if tally is None else tally.num_bytes,
        problems=tuple(_in_order(problems)),
    )


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.object_key, problem.offset_bytes))


def _told(
    problems: list[Problem], read: Callable[[], _Read], damaged: Kind, key: str, length_bytes: int = 0
) -> _Read | None:
    """What `read` returns; None where the object is not there as written, which becomes a problem (see `kind_of`).
    Raises what says that the store is away."""
    try:
        return read()
    except BehemothError as error:
        if is_away(error):
            raise
        problems.append(problem_at(kind_of(error, damaged), key, 0, length_bytes, error.message))
    return None


def _read_record(store: ObjectStore, commit: CommitRef | BadCommit) -> CommitRecord:
    if isinstance(commit, BadCommit):
        raise commit.error
    return read_record(store, commit)


def _listed(store: ObjectStore, record: CommitRecord) -> dict[str, int]:
    """The sizes of a checkpoint's objects."""
    return {info.key: info.size_bytes for info in store.list(record.prefix)}


def _check_listing(record: CommitRecord, index: CommitIndex, listed: Mapping[str, int]) -> list[Problem]:
    """Every object there, of its size, and no other."""
    shards = {shard.key: shard for shard in shards_of(record, index)}
    sizes = {key: shard.grid.file_bytes for key, shard in shards.items()}
    sizes |= {f"{record.prefix}/{one.key}": one.size_bytes for one in index.metadata}
    sizes[f"{record.prefix}/{INDEX}"] = record.index_bytes
    problems = [
        _of_size(key, size, listed[key], shards.get(key))
        for key, size in sizes.items()
        if key in listed and listed[key] != size
    ]
    for key in sorted(shards.keys() - listed.keys()):
        grid = shards[key].grid
        message = f"array {grid.spec.name!r}: expected an object of {grid.file_bytes} bytes, got none"
        problems.append(problem_at("missing", key, 0, grid.file_bytes, message, grid))
    for key in sorted(listed.keys() - sizes.keys()):
        message = "expected no such object in a checkpoint, got one"
        problems.append(problem_at("extra", key, 0, listed[key], message))
    return problems


def _of_size(key: str, expected_bytes: int, got_bytes: int, shard: Shard | None) -> Problem:
    low, high = sorted((expected_bytes, got_bytes))
    message = f"expected {expected_bytes} bytes, got {got_bytes} bytes"
    if shard is None:
        return problem_at("size", key, low, high - low, message)
    grid = shard.grid
    chunk = int(shard.chunks[low // grid.stride_bytes]) if low < grid.index_offset_bytes else None
    return problem_at("size", key, low, high - low, message, grid, chunk)


def _check_metadata(store: ObjectStore, record: CommitRecord, index: CommitIndex, threads: int) -> list[Problem]:
    arrays = zip(index.layout.paths, index.layout.arrays, strict=True)
    names = {f"{path}/{METADATA}": array.name for path, array in arrays}

    def of_object(one: MetadataObject) -> list[Problem]:
        problems: list[Problem] = []
        key = f"{record.prefix}/{one.key}"
        read = partial(read_metadata, store, key, one.size_bytes, one.crc)
        _told(problems, read, "metadata", key, one.size_bytes)
        return problems

    found = run_all(of_object, index.metadata, threads=threads, name="ckpt-metadata")
    told = zip(index.metadata, found, strict=True)
    return [replace(problem, array=names.get(one.key)) for one, of_one in told for problem in of_one]


def _check_contents(
    record: CommitRecord, index: CommitIndex, shards: Sequence[Shard], tally: _Tally
) -> Iterator[Problem]:
    """Chunks that are whole but not those of this commit: the CRC over all CRCs tells. Says nothing of arrays of which
    an object is missing or a chunk was found damaged already."""
    for array, parts in groupby(shards, key=lambda shard: shard.array):
        first = next(parts)
        grid = first.grid
        if array in tally.damaged or tally.num_chunks[array] < grid.num_chunks:
            continue
        crc, expected = tally.contents.crc(array), index.content_crcs[array]
        if crc != expected:
            told = f"expected CRC-32C {expected:08x} over the CRCs of all chunks, got {crc:08x}"
            message = f"array {grid.spec.name!r}: {told}: chunks of another checkpoint, or damaged CRCs"
            key = f"{record.prefix}/{index.layout.paths[array]}" if grid.num_shards > 1 else first.key
            yield problem_at("content", key, 0, grid.num_shards * grid.index_offset_bytes, message, grid)
