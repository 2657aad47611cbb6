"""An arena with verified snapshots of random bytes in it, and a look at what files on a disk give back."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from behemoth.base.errors import Conflict, Corrupt, NotFound
from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.copying import copy_snapshot
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.plan import RankPlan
from behemoth.checkpoint.snapshot_files import SnapshotFiles
from behemoth.ports import WritesRanges

RUN = RunUid("run-1")
PREFIX = "toy-run-1/n0"


def formatted(plan: RankPlan) -> Arena:
    """Memory that goes with the arena."""
    fd = os.memfd_create("snapshots-test")
    arena = Arena.format(fd, plan)
    os.close(fd)
    return arena


def stage_bytes(arena: Arena, plan: RankPlan, write_id: str, step: int) -> bytes:
    """Fill the older generation with bytes that follow from the step; all of the data area."""
    generation = arena.oldest_generation()
    data = arena.begin(generation, WriteId(write_id), Step(step), plan.layout_digest)
    content = np.random.default_rng([step, plan.rank]).bytes(len(data))
    data[:] = content
    snapshot = arena.seal(generation)
    crcs = [crc32c(data[span.arena_offset : span.arena_offset + span.length]) for span in plan.spans]
    arena.record_crcs(generation, snapshot.sequence, crcs)
    return content


def files_of(store: WritesRanges, plan: RankPlan, *, run_uid: RunUid = RUN) -> SnapshotFiles:
    return SnapshotFiles(store, PREFIX, plan, run_uid=run_uid)


def keep(store: WritesRanges, arena: Arena, plan: RankPlan, *, pace: Callable[[int], None] = lambda _: None) -> None:
    """Copy the newest snapshot of the arena to the disk."""
    files_of(store, plan).write(arena, arena.held()[-1], pace=pace)


def promised(store: WritesRanges, plan: RankPlan, write_id: str, step: int) -> list[bytes] | None:
    """The bytes of each span of a write, each checked; None when no file says that it has it. Raises for damage."""
    try:
        found = files_of(store, plan).find(WriteId(write_id), Step(step))
    except NotFound:
        return None
    into = formatted(plan)
    snapshot = copy_snapshot(found, plan, into, 0, write_id=WriteId(write_id), step=Step(step), threads=1)
    return spans_of(bytes(into.data(snapshot.generation)), plan)


def given_back(store: WritesRanges, plan: RankPlan, write_id: str, step: int) -> list[bytes] | None:
    """As `promised`, and None for damage too: what a restore gets."""
    try:
        return promised(store, plan, write_id, step)
    except (Conflict, Corrupt):
        return None


def spans_of(data: bytes, plan: RankPlan) -> list[bytes]:
    """What of a data area has a CRC."""
    return [data[span.arena_offset : span.arena_offset + span.length] for span in plan.spans]
