"""Runs the batches of a job: recorded ones are skipped, new results are recorded, and progress is reported in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from behemoth.app.batches.record import Record
from behemoth.base.decoding import UNDECODABLE, told
from behemoth.base.errors import BehemothError, Corrupt
from behemoth.ports import Batch, Executor

MIN_BATCH_BYTES, MAX_BATCH_BYTES = 8 << 20, 256 << 20
NUM_BATCHES = 256
"""Batches of a job that is neither small nor large: enough to balance the load."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Progress = Callable[[int, int], None]
"""Called with the bytes done and the total bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A batch, and the bytes that it works on."""

    batch: Batch
    num_bytes: int


def grouped(
    items: Sequence[_Item], num_bytes: Callable[[_Item], int], *, size_bytes: int | None = None
) -> Iterator[list[_Item]]:
    """Items in order, grouped into batches of up to `size_bytes` (or one item): a function of its arguments alone, so
    that a second call makes the same batches. None: 1/NUM_BATCHES of the total, within MIN_ and MAX_BATCH_BYTES."""
    if size_bytes is None:
        total_bytes = sum(map(num_bytes, items))
        size_bytes = min(max(total_bytes // NUM_BATCHES, MIN_BATCH_BYTES), MAX_BATCH_BYTES)
    group: list[_Item] = []
    filled_bytes = 0
    for item in items:
        if group and filled_bytes + num_bytes(item) > size_bytes:
            yield group
            group, filled_bytes = [], 0
        group.append(item)
        filled_bytes += num_bytes(item)
    if group:
        yield group


def decoded_result(decoder: msgspec.msgpack.Decoder[_Result], data: bytes, *, what: str) -> _Result:
    """The result of a batch, which may stand in the record of an earlier call. Raises Corrupt for what is none."""
    try:
        return decoder.decode(data)
    except UNDECODABLE as error:
        raise no_result(what, told(error)) from error


def no_result(what: str, got: str) -> Corrupt:
    """For a result that is not what a batch of `what` could have given."""
    return Corrupt(
        f"result of a batch of {what}: expected one of this job, got: {got}",
        hint="the record of an earlier call is not this job's: --anew does its batches again",
        code="batch-result",
    )


def run_job(
    executor: Executor,
    job: bytes,
    batches: Sequence[Sized],
    record: Record,
    *,
    progress: Progress,
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> Iterator[Batch]:
    """The result of every batch, those of earlier calls first. Raises what the executor does. After an error, and when
    the caller leaves the iterator early, no batch is under way any more, and the record has all complete results.

    `prepare` is called with each batch just before it is sent, after all earlier results were yielded, and returns the
    batch to send."""
    sizes = {one.batch.number: one.num_bytes for one in batches}
    total_bytes, done_bytes = sum(sizes.values()), 0
    kept = {number: result for number, result in record.done().items() if number in sizes}
    for result in kept.values():
        done_bytes += sizes[result.number]
        yield result
    if kept:
        progress(done_bytes, total_bytes)
    left = (prepare(one.batch) for one in batches if one.batch.number not in kept)
    try:
        for result in executor.run(job, left):
            record.add(result)
            done_bytes += sizes[result.number]
            progress(done_bytes, total_bytes)
            yield result
    except BaseException:  # an interrupt, and a caller who leaves, too
        complete = executor.stop()
        with suppress(BehemothError):  # a record that takes no more may be what has ended us
            for result in complete:
                record.add(result)
        raise
