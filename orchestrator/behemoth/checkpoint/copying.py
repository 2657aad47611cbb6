"""Fills a rank's arena from one other memory that holds the same snapshot: whole and proven, or not at all.

Neighbours: `gathering`, which does the work and can do it from several places, and `agent.pulling`, which keeps copies.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import Snapshot
from behemoth.checkpoint.gathering import Gathering, SnapshotSource
from behemoth.checkpoint.plan import RankPlan


def copy_snapshot(
    source: SnapshotSource,
    plan: RankPlan,
    arena: Arena,
    generation: int,
    *,
    write_id: WriteId,
    step: Step,
    threads: int,
    pace: Callable[[int], None] = lambda _num_bytes: None,
) -> Snapshot:
    """Fill `generation`, and seal it as a verified snapshot. `pace` is called before each block with its size, and may
    wait or raise. Raises Conflict when a byte is not what was saved, and the source's errors. Before the source has
    told its CRCs the generation is untouched; after a later error it holds no snapshot."""
    gathering = Gathering(plan, arena, generation, write_id=write_id, step=step, threads=threads)
    gathering.take(source, pace=pace)
    return gathering.seal()
