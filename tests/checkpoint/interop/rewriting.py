"""Writes checkpoints anew in this process, for tests; and stores in which even a small one is made of many parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest

from behemoth.base.ids import Attempt, WriteId
from behemoth.checkpoint import filling
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.conversion import AS_SAVED, Intake
from behemoth.checkpoint.filling import least_bytes
from behemoth.checkpoint.interop.ingest import write_checkpoint
from behemoth.checkpoint.interop.object_uploads import ObjectUploads
from behemoth.checkpoint.interop.resharded import CheckpointSource
from behemoth.checkpoint.interop.unit_writer import UnitWriter, Written
from behemoth.checkpoint.interop.units import units_of
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.ports import ObjectStore, SavesTo
from behemoth.testing.bucket import MemoryBucket

PART_BYTES = 64
REWRITTEN = WriteId("reshard-1")


@contextmanager
def small_parts() -> Iterator[None]:
    """Parts of an upload of 64 bytes and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "MIN_PART_BYTES", PART_BYTES)
        patch.setattr(filling, "PIECE_BYTES", PART_BYTES)
        yield


def new_bucket() -> MemoryBucket:
    return MemoryBucket(min_part_bytes=PART_BYTES)


def rewrite(
    store: ObjectStore,
    commit: Commit,
    target: SavesTo,
    layout: Layout,
    *,
    intake: Intake = AS_SAVED,
    block_bytes: int = 40,
    num_together: int = 3,
) -> CommitRecord:
    """As a reshard does, `num_together` units in a batch."""
    step = commit.record.step
    source = CheckpointSource(store, commit, layout, origins(commit.layout, layout, step=step, intake=intake))
    writer = UnitWriter(target, step_prefix(step, REWRITTEN), layout, source)
    units = units_of(layout, block_bytes=block_bytes, least_bytes=partial(least_bytes, target))

    def spread(uploads: ObjectUploads) -> Iterator[Sequence[Written]]:
        for at in range(0, len(units), num_together):
            batch = units[at : at + num_together]
            yield writer.write(batch, [uploads.upload_id(unit) for unit in batch])

    return write_checkpoint(
        target,
        Candidate(run=commit.record.run, step=step, write_id=REWRITTEN, attempt=Attempt(commit.record.attempt)),
        layout,
        spread,
    )
