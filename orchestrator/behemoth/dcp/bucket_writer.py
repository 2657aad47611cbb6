"""Uploads boxes of tensors to a bucket: one rank's part of a DCP save there.

What the rank holds whole it sends by itself: objects, and parts of objects that the coordinator has begun. The rest,
pieces of chunks that others hold the rest of, goes into one object of the rank's own, from which the coordinator takes
it. Buffers go from the tensors to the network; at most a part per thread is copied where tensors are elsewhere.
Neighbours: `object_parts` (what is whose), `box_writer` (the same on files), `bucket_borders` (the coordinator).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from behemoth.base.errors import BehemothError
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.filling import ObjectPiece, completed, filling_of
from behemoth.checkpoint.paths import METADATA
from behemoth.checkpoint.span_table import WrittenSpan
from behemoth.checkpoint.threads import run_all
from behemoth.checkpoint.upload_writer import REQUEST_THREADS
from behemoth.checkpoint.zeros import is_zero
from behemoth.dcp.box_writer import ITSELF, PlacedBox
from behemoth.dcp.boxes import ChunkRun, ends_array, runs_of
from behemoth.dcp.object_parts import ObjectPart, own_parts, part_bytes, parts_of, whole_chunks
from behemoth.dcp.orders import PlacedArray, SentObject, SentObjects, SentPart, SentPiece, ShardName
from behemoth.dcp.tensors import Tensors, bytes_of
from behemoth.ports import PartReceipt, UploadsParts

Spans = dict[int, list[WrittenSpan]]
"""The spans that were written, by the number of their box."""


def upload_boxes(
    store: UploadsParts,
    boxes: Sequence[PlacedBox],
    tensors: Tensors,
    *,
    begun: Mapping[ShardName, UploadId],
    pieces_key: str,
    threads: int,
) -> tuple[list[tuple[WrittenSpan, ...]], SentObjects]:
    """Upload boxes, which `tensors` gives by their place in the list; the spans of each, and what was sent.

    `begun`: the uploads of objects that several ranks send parts of, which the coordinator completes. Blocks until all
    is in the store. Raises its errors; the uploads that were begun here are aborted then.
    """
    job = _Job(store, boxes, tensors, begun, pieces_key, threads)
    try:
        sent = job.run()
    except BaseException:
        job.abort()
        raise
    return [tuple(sorted(job.spans.get(number, ()))) for number in range(len(boxes))], sent


@dataclass(frozen=True, slots=True)
class _Held:
    """The runs that the rank has of an array, by chunk, in the order of their bytes."""

    placed: PlacedArray
    runs: dict[int, list[ChunkRun]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.placed.grid.spec.name

    def key(self, shard: int) -> str:
        return f"{self.placed.folder}/{self.placed.grid.shard_key(shard)}"


@dataclass(slots=True)
class _Work:
    """What the rank uploads: whole objects, parts of objects, and the runs that it cannot send as a part."""

    whole: list[tuple[_Held, int]] = field(default_factory=list)
    parts: list[tuple[_Held, ObjectPart]] = field(default_factory=list)
    loose: list[tuple[_Held, ChunkRun]] = field(default_factory=list)


class _Job:
    """One rank's uploads. Parts are sent on several threads."""

    def __init__(
        self,
        store: UploadsParts,
        boxes: Sequence[PlacedBox],
        tensors: Tensors,
        begun: Mapping[ShardName, UploadId],
        pieces_key: str,
        threads: int,
    ) -> None:
        self.spans: Spans = {}
        self._store = store
        self._boxes = boxes
        self._tensors = tensors
        self._begun = begun
        self._pieces_key = pieces_key
        self._threads = threads
        self._own: dict[ShardName, tuple[str, UploadId]] = {}
        self._left: Counter[int] = Counter()
        self._lock = threading.Lock()

    def run(self) -> SentObjects:
        """Send everything."""
        work = self._divided()
        several = [one for one in work.whole if len(parts_of(one[0].placed.grid, one[1])) > 1]
        run_all(self._begin, several, threads=REQUEST_THREADS, name="dcp-begin")
        sent = run_all(self._send, work.parts, threads=self._threads, name="dcp-upload")
        receipts = [one for one in sent if isinstance(one, SentPart)]
        objects = [one for one in sent if isinstance(one, SentObject)]
        parts = by_object(receipts)
        objects += run_all(
            lambda one: self._complete(*one, parts), several, threads=REQUEST_THREADS, name="dcp-complete"
        )
        pieces = tuple(self._send_pieces(work.loose)) if work.loose else ()
        ends = [one.placed for one in self._boxes if ends_array(one.placed.grid, one.box)]
        run_all(self._create_metadata, ends, threads=REQUEST_THREADS, name="dcp-metadata")
        shared = tuple(one for one in receipts if (one.array, one.shard) not in self._own)
        return SentObjects(objects=tuple(objects), parts=shared, pieces=pieces, pieces_key=self._pieces_key)

    def abort(self) -> None:
        """Abort the uploads that were begun here. After the first that fails the rest is left to gc: a store that is
        away would take its full patience for each."""
        with suppress(BehemothError):
            run_all(
                lambda one: self._store.abort_upload(*one),
                list(self._own.values()),
                threads=REQUEST_THREADS,
                name="dcp-abort",
            )

    def _divided(self) -> _Work:
        arrays: dict[str, _Held] = {}
        for number, one in enumerate(self._boxes):
            held = arrays.setdefault(one.placed.grid.spec.name, _Held(one.placed))
            for run in runs_of(one.placed.grid, one.box, number):
                held.runs.setdefault(run.chunk, []).append(run)
                self._left[number] += 1
        work = _Work()
        for held in arrays.values():
            grid = held.placed.grid
            whole = whole_chunks(grid, (run for runs in held.runs.values() for run in runs))
            for shard in sorted({grid.place(chunk)[0] for chunk in held.runs}):
                parts, mine = parts_of(grid, shard), own_parts(grid, shard, whole)
                if len(mine) == len(parts):
                    work.whole.append((held, shard))
                work.parts += [(held, part) for part in mine]
                left = [chunk for part in parts if part not in mine for chunk in part.chunks]
                work.loose += [(held, run) for chunk in left for run in held.runs.get(chunk, ())]
        return work

    def _begin(self, one: tuple[_Held, int]) -> None:
        held, shard = one
        self._own[held.name, shard] = held.key(shard), self._store.begin_upload(held.key(shard))

    def _send(self, one: tuple[_Held, ObjectPart]) -> SentPart | SentObject:
        held, part = one
        buffers, crc = part_bytes(held.placed.grid, part, lambda chunk: self._data(held.runs[chunk]))
        key = held.key(part.shard)
        if part.num_parts == 1:
            self._store.create(key, b"".join(buffers))
            answer: SentPart | SentObject = SentObject(held.name, part.shard, crc)
        else:
            own = self._own.get((held.name, part.shard))
            upload_id = self._begun[held.name, part.shard] if own is None else own[1]
            receipt = self._store.upload_part(key, upload_id, number=part.number, buffers=buffers, crc=crc)
            answer = SentPart(held.name, part.shard, receipt)
        self._done(run for chunk in part.chunks for run in held.runs[chunk])
        return answer

    def _data(self, runs: list[ChunkRun]) -> Iterator[tuple[memoryview, int]]:
        for run in sorted(runs, key=lambda run: run.offset):
            data = bytes_of(self._tensors.of(run.array), run.part)
            crc = crc32c(data)
            span = WrittenSpan(ITSELF, run.chunk, run.offset, run.length, crc, is_zero(data, crc))
            with self._lock:
                self.spans.setdefault(run.array, []).append(span)
            yield data, crc

    def _done(self, runs: Iterable[ChunkRun]) -> None:
        """Release tensors all of whose runs have been sent."""
        with self._lock:
            for run in runs:
                self._left[run.array] -= 1
                if not self._left[run.array]:
                    self._tensors.drop(run.array)

    def _complete(self, held: _Held, shard: int, parts: Mapping[ShardName, Sequence[PartReceipt]]) -> SentObject:
        which = held.name, shard
        return SentObject(*which, completed(self._store, *self._own[which], parts[which]))

    def _send_pieces(self, loose: Sequence[tuple[_Held, ChunkRun]]) -> Iterator[SentPiece]:
        """Send the remaining runs, concatenated, as one object."""
        size_bytes, at = sum(run.length for _, run in loose), 0
        filling = filling_of(self._store)
        gathered = _gathered(loose, filling.piece_bytes(size_bytes))
        try:
            for number, runs in enumerate(gathered, start=1):
                piece = ObjectPiece(
                    key=self._pieces_key,
                    size_bytes=size_bytes,
                    number=number,
                    num_pieces=len(gathered),
                    offset_bytes=at,
                )
                content = [one for _, run in runs for one in self._data([run])]
                filling.put(piece, [data for data, _ in content])
                for (held, run), (_, crc) in zip(runs, content, strict=True):
                    yield SentPiece(held.name, run.chunk, run.offset, run.length, at, crc)
                    at += run.length
                self._done(run for _, run in runs)
        finally:
            filling.end()

    def _create_metadata(self, placed: PlacedArray) -> None:
        self._store.create(f"{placed.folder}/{METADATA}", placed.grid.zarr_json())


def _gathered(loose: Sequence[tuple[_Held, ChunkRun]], least_bytes: int) -> list[list[tuple[_Held, ChunkRun]]]:
    """The runs in order, in groups of at least `least_bytes`, except for the last group."""
    found: list[list[tuple[_Held, ChunkRun]]] = [[]]
    num_bytes = 0
    for one in loose:
        if num_bytes >= least_bytes:
            found.append([])
            num_bytes = 0
        found[-1].append(one)
        num_bytes += one[1].length
    return found


def by_object(sent: Iterable[SentPart]) -> dict[ShardName, list[PartReceipt]]:
    """What was sent of each object."""
    found: dict[ShardName, list[PartReceipt]] = {}
    for one in sent:
        found.setdefault((one.array, one.shard), []).append(one.receipt)
    return found
