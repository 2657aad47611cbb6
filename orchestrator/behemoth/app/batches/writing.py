"""What jobs that write a checkpoint have in common: units in batches, and how a later call goes on with the same write.

What was written survives a kill, under its write id and, in S3, in uploads that are still open; the record has the
results that arrived. The write id contains a hash of the job, so that a call which finds the step committed can tell
whether an earlier call of the same job did it.
Neighbours: `import_job` and `reshard_job`, which say where the bytes come from; `checkpoint.interop.ingest`, which
commits.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import msgspec
import numpy as np

from behemoth.app.batches.driving import Progress, Sized, decoded_result, grouped, no_result, run_job
from behemoth.app.batches.record import Record
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.array_keys import metadata_key, shard_key
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.ingest import Spread, check_free
from behemoth.checkpoint.interop.object_uploads import ObjectUploads
from behemoth.checkpoint.interop.unit_writer import Written, brings_metadata
from behemoth.checkpoint.interop.units import Units, WriteUnit, ranges_of
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.marker import is_put_up
from behemoth.checkpoint.paths import DELETING, step_prefix
from behemoth.checkpoint.upload_writer import REQUEST_THREADS
from behemoth.checkpoint.verify import require_objects
from behemoth.ports import Batch, Executor, ObjectStore, SavesTo, UploadsParts
from behemoth.state.effect import CommitRef


class Closes(Protocol):
    """A store that a work has opened itself. Exactly this, since at its end nothing else is done with it."""

    def close(self) -> None: ...


class _Order(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Data of a batch: ranges [first, last) of the job's units, the upload of each unit (empty for a store without
    uploads), and up to how many `threads` may work on the batch when it runs alone."""

    spans: list[tuple[int, int]]
    threads: int
    uploads: list[str] = []

    def of(self, units: Sequence[WriteUnit]) -> list[WriteUnit]:
        return [unit for first, last in self.spans for unit in units[first:last]]


_order_decoder = msgspec.msgpack.Decoder(_Order)
_written_decoder = msgspec.msgpack.Decoder(list[Written])


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What is written: the units of a layout. `batch_bytes`: limit of a batch; None: that of `grouped`. `together`:
    numbers of units that must be in one batch, however large it is. `threads`: limit for such a batch."""

    layout: Layout
    units: Units
    batch_bytes: int | None = None
    together: Sequence[Sequence[range]] = ()
    threads: int = 1

    @property
    def num_bytes(self) -> int:
        return sum(array.num_bytes for array in self.layout.arrays)

    def batches(self) -> list[Sized]:
        """The batches: first those of units that must be together, since they take the longest, then the others in
        order."""
        of_units = self.units.sizes()
        sizes = np.frombuffer(of_units, dtype=np.int64)
        is_left = np.ones(len(sizes), dtype=np.bool_)
        for one in chain.from_iterable(self.together):
            is_left[one.start : one.stop] = False
        left = np.flatnonzero(is_left)

        def num_bytes(ranges: Sequence[range]) -> int:
            return sum(int(sizes[one.start : one.stop].sum()) for one in ranges)

        together = grouped(self.together, num_bytes, size_bytes=self.batch_bytes)
        groups = chain(
            (list(chain.from_iterable(some)) for some in together),
            map(ranges_of, grouped(left.tolist(), of_units.__getitem__, size_bytes=self.batch_bytes)),
        )
        found: list[Sized] = []
        for ranges in groups:
            order = _Order(spans=[(one.start, one.stop) for one in ranges], threads=self.threads)
            batch = Batch(number=len(found), data=msgspec.msgpack.encode(order))
            found.append(Sized(batch=batch, num_bytes=num_bytes(ranges)))
        return found


class Writes(Protocol):
    """Writes the units of a batch: all at once (`UnitWriter`), or in runs (`RunWriter`). Exactly this, since a work
    hands its batch over as it comes."""

    def write(self, units: Sequence[WriteUnit], upload_ids: Sequence[str], *, threads: int) -> list[Written]:
        """See `UnitWriter`."""
        ...


class WriteWork:
    """A `Work` that writes units, and closes the `opened` stores at its end. `stop` sets `stopped`, which the writer
    checks."""

    def __init__(self, units: Sequence[WriteUnit], writer: Writes, stopped: threading.Event, *opened: Closes) -> None:
        self._units = units
        self._writer = writer
        self._stopped = stopped
        self._opened = opened

    def run(self, data: bytes) -> bytes:
        order = _order_decoder.decode(data)
        return msgspec.msgpack.encode(self._writer.write(order.of(self._units), order.uploads, threads=order.threads))

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        for one in self._opened:
            one.close()


def write_in_batches(executor: Executor, job: bytes, writing: Writing, record: Record, *, progress: Progress) -> Spread:
    """A `spread` for `write_checkpoint`: writes the units in batches, and yields what each batch wrote."""

    def spread(uploads: ObjectUploads) -> Iterator[list[Written]]:
        def prepare(batch: Batch) -> Batch:
            order = _order_decoder.decode(batch.data)
            ids = [uploads.upload_id(unit) for unit in order.of(writing.units)]
            return Batch(number=batch.number, data=msgspec.msgpack.encode(msgspec.structs.replace(order, uploads=ids)))

        batches = writing.batches()
        asked = {one.batch.number: one.batch for one in batches}
        for result in run_job(executor, job, batches, record, progress=progress, prepare=prepare):
            yield _written(result, asked[result.number], writing)

    return spread


def new_write(verb: str, job: bytes) -> WriteId:
    """A fresh write id for a job; its prefix is the same for all writes of the job."""
    return WriteId(f"{_own(verb, job)}{secrets.token_hex(4)}")


def finished(store: ObjectStore, step: Step, *, verb: str, job: bytes) -> CommitRef | None:
    """The checkpoint that an earlier call of the same job has committed; None where the step is free. Only
    the commit is read for that: a call that was killed after it may have removed its record. Raises as `check_free`
    does, and Corrupt when objects of the checkpoint are gone."""
    standing = check_free(store, step, own=_own(verb, job))
    if standing is not None:
        require_objects(store, standing, threads=REQUEST_THREADS)
    return standing


def require_written(store: SavesTo, step: Step, writing: Writing, record: Record, fresh: WriteId) -> WriteId:
    """The write id to continue with: that of the record, or `fresh`, with an empty record, when something that was
    written is gone, or is going (deleted by gc, after it was committed). The step must have been found free before: a
    commit goes after its mark."""
    write_id = WriteId(record.note)
    results, asked = record.done(), {one.batch.number: one.batch for one in writing.batches()}
    kept = (_written(results[number], asked[number], writing) for number in results.keys() & asked.keys())
    done = list(chain.from_iterable(kept))
    is_going = bool(done) and is_put_up(store, DELETING, (step, write_id))
    if not done or (not is_going and _is_there(store, step_prefix(step, write_id), writing, done)):
        return write_id
    record.forget(fresh)
    return fresh


def _written(result: Batch, asked: Batch, writing: Writing) -> list[Written]:
    """What a batch has done. Raises Corrupt unless that is each of its units once."""
    found = decoded_result(_written_decoder, result.data, what="a checkpoint")
    units = _order_decoder.decode(asked.data).of(writing.units)
    is_each = sorted(one[:3] for one in found) == sorted((unit.array, unit.shard, unit.number) for unit in units)
    if not is_each or any(span.array != one.array for one in found for span in one.spans):
        raise no_result("a checkpoint", f"other units than those of batch {asked.number}")
    return found


def _own(verb: str, job: bytes) -> str:
    return f"{verb}-{hashlib.sha256(job).hexdigest()[:16]}-"


def _is_there(store: SavesTo, prefix: str, writing: Writing, done: Sequence[Written]) -> bool:
    """Whether every object of which units were written stands in full size, or the upload to which they went is open,
    and every zarr.json that came with them. An object that is whole takes no more parts."""
    parts: dict[tuple[int, int], list[Written]] = {}
    for one in done:
        parts.setdefault((one.array, one.shard), []).append(one)
    listed = {info.key: info.size_bytes for info in store.list(prefix)}
    uploads = (
        {(one.key, one.upload_id) for one in store.list_uploads(prefix)} if isinstance(store, UploadsParts) else set()
    )
    of_arrays = grids(writing.layout)
    for array in (one.array for one in done if brings_metadata(one)):
        key = metadata_key(prefix, writing.layout, array)
        if listed.get(key) != len(of_arrays[array].zarr_json()):
            return False
    for which, of_object in parts.items():
        key = shard_key(prefix, writing.layout, *which)
        is_whole = listed.get(key) == of_arrays[which[0]].file_bytes
        upload_id = of_object[0].upload_id
        if not upload_id:
            is_standing = is_whole
        else:
            is_standing = (key, upload_id) in uploads or (
                is_whole and len(of_object) == writing.units.num_parts(*which)
            )
        if not is_standing:
            return False
    return True
