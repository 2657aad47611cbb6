"""Verification in batches: which slots of which objects, and what was found there, as data.

The process that drives the job checks the metadata; a worker reads only the record and the index, for the layout.
Neighbours: `checkpoint.verify`, which gathers what is found, and `driving`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import numpy as np

from behemoth.app.batches.driving import Progress, Sized, decoded_result, grouped, no_result, run_job
from behemoth.app.batches.jobs import VerifyJob, encode_job
from behemoth.app.batches.record import Record
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.chunk_check import ChunkCheck, Found, Shard, SlotRange, shards_of
from behemoth.checkpoint.commit_log import read_record
from behemoth.checkpoint.opened import read_index
from behemoth.checkpoint.problem import Problem
from behemoth.ports import Batch, Executor
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store

CRC_BYTES = 4


class _Part(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Slots [first, last) of an object."""

    key: str
    first: int
    last: int


class _Checked(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What was found of a part; CRCs as little-endian u32."""

    key: str
    first: int
    crcs: bytes
    num_bytes: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    problems: tuple[Problem, ...]


_parts_decoder = msgspec.msgpack.Decoder(list[_Part])
_checked_decoder = msgspec.msgpack.Decoder(list[_Checked])


class VerifyWork:
    """A `Work`: the store and the layout of one checkpoint, opened once."""

    def __init__(self, job: VerifyJob) -> None:
        ref = CommitRef(step=Step(job.step), write_id=WriteId(job.write_id), size_bytes=job.size_bytes)
        self._store = open_store(os.fsdecode(job.url))
        record = read_record(self._store, ref)
        shards = shards_of(record, read_index(self._store, record))
        self._positions = {shard.key: position for position, shard in enumerate(shards)}
        self._check = ChunkCheck(self._store, shards, deep=True)

    def run(self, data: bytes) -> bytes:
        return msgspec.msgpack.encode([self._checked(part) for part in _parts_decoder.decode(data)])

    def stop(self) -> None:
        """Nothing to do: a batch is short, and its result counts."""

    def close(self) -> None:
        self._store.close()

    def _checked(self, part: _Part) -> _Checked:
        found = self._check.check(self._positions[part.key], part.first, part.last)
        return _Checked(
            key=part.key,
            first=part.first,
            crcs=found.crcs.astype("<u4").tobytes(),
            num_bytes=found.num_bytes,
            problems=found.problems,
        )


def verify_job(url: str, ref: CommitRef) -> VerifyJob:
    """The job of checking one checkpoint. `url` is a path that every worker has, or a URL."""
    return VerifyJob(url=os.fsencode(url), step=ref.step, write_id=ref.write_id, size_bytes=ref.size_bytes)


def check_in_batches(
    executor: Executor,
    job: VerifyJob,
    shards: Sequence[Shard],
    spans: Sequence[SlotRange],
    record: Record,
    *,
    progress: Progress,
) -> Iterator[Found]:
    """The `spread` of `verify`: check chunks in batches. Raises what the executor does."""
    positions = {shard.key: position for position, shard in enumerate(shards)}
    batches = batches_of(shards, spans)
    asked = {one.batch.number: one.batch.data for one in batches}
    for result in run_job(executor, encode_job(job), batches, record, progress=progress):
        checked = decoded_result(_checked_decoder, result.data, what="verify")
        if _parts_of(checked) != asked[result.number]:  # or what nobody has checked would pass for checked
            raise no_result("verify", f"other slots than those of batch {result.number}")
        for one in checked:
            yield Found(
                shard=positions[one.key],
                first=one.first,
                crcs=np.frombuffer(one.crcs, dtype="<u4"),
                problems=one.problems,
                num_bytes=one.num_bytes,
            )


def _parts_of(checked: Sequence[_Checked]) -> bytes:
    """What a batch must have asked for that is answered so; nothing does for CRCs that are cut off."""
    if any(len(one.crcs) % CRC_BYTES for one in checked):
        return b""
    parts = [_Part(key=one.key, first=one.first, last=one.first + len(one.crcs) // CRC_BYTES) for one in checked]
    return msgspec.msgpack.encode(parts)


def batches_of(shards: Sequence[Shard], spans: Sequence[SlotRange]) -> list[Sized]:
    """Spans in order, grouped into batches."""
    batches = []
    for number, group in enumerate(grouped(spans, lambda span: span.num_bytes)):
        parts = [_Part(key=shards[span.shard].key, first=span.first, last=span.last) for span in group]
        batch = Batch(number=number, data=msgspec.msgpack.encode(parts))
        batches.append(Sized(batch=batch, num_bytes=sum(span.num_bytes for span in group)))
    return batches
