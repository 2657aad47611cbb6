"""Resharding in batches: a committed checkpoint, written anew in another layout.

Neighbours: `writing` (how), `checkpoint.interop.relayout` (which layout), `checkpoint.interop.resharded` (the reads).
"""

from __future__ import annotations

import os

from behemoth.app.batches.jobs import ReshardJob
from behemoth.app.batches.writing import WriteWork, Writing
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.conversion import Intake
from behemoth.checkpoint.interop.relayout import Relayout
from behemoth.checkpoint.interop.resharded import CheckpointSource, batch_bytes, reshard_units
from behemoth.checkpoint.interop.unit_writer import UnitWriter
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.ports import SavesTo
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store


def open_reshard(job: ReshardJob) -> WriteWork:
    """The work of a job, with source and target opened for it."""
    source, target = open_store(os.fsdecode(job.url)), open_store(os.fsdecode(job.to))
    ref = CommitRef(step=Step(job.step), write_id=WriteId(job.write_id), size_bytes=job.size_bytes)
    layout = Layout.decode(job.layout)
    arrays = CheckpointSource(source, open_commit(source, ref), layout, Intake.decode(job.intake), threads=1)
    writer = UnitWriter(target, step_prefix(Step(job.step), WriteId(job.new_write_id)), layout, arrays)
    return WriteWork(reshard_units(layout, target), writer, source, target)


def reshard_writing(saved: Layout, layout: Layout, store: SavesTo) -> Writing:
    """What is written of a checkpoint of `saved` to a store."""
    return Writing(layout=layout, units=reshard_units(layout, store), batch_bytes=batch_bytes(saved, layout))


def reshard_job(url: str, ref: CommitRef, to: str, made: Relayout) -> ReshardJob:
    """The job without its new write id, which names its record. `url` and `to` lead to the stores from everywhere."""
    return ReshardJob(
        url=os.fsencode(url),
        step=ref.step,
        write_id=ref.write_id,
        size_bytes=ref.size_bytes,
        to=os.fsencode(to),
        layout=made.layout.encode(),
        intake=made.intake.encode(),
    )
