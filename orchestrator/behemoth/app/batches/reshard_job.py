"""Resharding in batches: a committed checkpoint, written anew in another layout.

Neighbours: `writing` (how), `checkpoint.interop.relayout` (which layout), `checkpoint.interop.resharded` (the reads).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from behemoth.app.batches.jobs import ReshardJob
from behemoth.app.batches.run_writer import RunWriter
from behemoth.app.batches.scaled_units import ScaledUnits
from behemoth.app.batches.writing import Closes, WriteWork, Writing
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.conversion import Intake
from behemoth.checkpoint.interop.relayout import Relayout
from behemoth.checkpoint.interop.resharded import HELD_BYTES, CheckpointSource, batch_bytes, reshard_units
from behemoth.checkpoint.interop.unit_writer import UnitWriter
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.matching import Origin, origins
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.ports import ObjectStore, SavesTo
from behemoth.state.effect import CommitRef
from behemoth.storage.open import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshard:
    """`again_bytes`: bytes of the source that are read a second time (`ScaledUnits.again_bytes`)."""

    writing: Writing
    again_bytes: int


def open_reshard(job: ReshardJob) -> WriteWork:
    """The work of a job, with source and target opened for it."""
    source, target = open_store(os.fsdecode(job.url)), open_store(os.fsdecode(job.to))
    ref = CommitRef(step=Step(job.step), write_id=WriteId(job.write_id), size_bytes=job.size_bytes)
    made = Relayout(layout=Layout.decode(job.layout), intake=Intake.decode(job.intake))
    return reshard_work(source, open_commit(source, ref), made, target, WriteId(job.new_write_id), source, target)


def reshard_work(
    source: ObjectStore, commit: Commit, made: Relayout, target: SavesTo, write_id: WriteId, *opened: Closes
) -> WriteWork:
    """The same between stores that are open; `opened` of them are closed at its end."""
    found = _origins(commit, made)
    prefix = step_prefix(commit.record.step, write_id)
    stopped = threading.Event()
    given = CheckpointSource(source, commit, made.layout, found, cancelled=stopped.is_set)
    writer = UnitWriter(target, prefix, made.layout, given, cancelled=stopped.is_set)
    units = reshard_units(made.layout, target, found)
    return WriteWork(units, RunWriter(writer, _scaled(commit, made, found)), stopped, *opened)


def reshard_writing(commit: Commit, made: Relayout, store: SavesTo, *, threads: int) -> Reshard:
    """What a reshard writes to a store: its units in batches, and how many bytes it reads twice."""
    found = _origins(commit, made)
    units, scaled = reshard_units(made.layout, store, found), _scaled(commit, made, found)
    writing = Writing(
        layout=made.layout,
        units=units,
        batch_bytes=scaled.run_bytes,
        together=scaled.together(units),
        threads=threads,
    )
    return Reshard(writing=writing, again_bytes=scaled.again_bytes(units))


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


def _origins(commit: Commit, made: Relayout) -> Sequence[Origin]:
    return origins(commit.layout, made.layout, step=commit.record.step, intake=made.intake)


def _scaled(commit: Commit, made: Relayout, found: Sequence[Origin]) -> ScaledUnits:
    return ScaledUnits(
        saved=commit.layout,
        layout=made.layout,
        found=found,
        run_bytes=batch_bytes(commit.layout, made.layout),
        limit_bytes=HELD_BYTES,
    )
