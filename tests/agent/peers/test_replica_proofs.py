"""No replica's memory gives a byte that is not the write's: each way in which it may hold something else.

That every restored rank has the bytes of the commit is checked by `Fleet` itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from agent.peers.test_replica_restores import (
    RANKS_PER_NODE,
    STEP,
    WRITE,
    Fleet,
    source_of,
)
from behemoth.agent.memories import Memories
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import PAGE_BYTES, head_offset
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.reader import read_rank

LOST = 1
REPLICAS = (0, 2, 3)


def fill_anew(arena: Arena, plan: RankPlan, write_id: WriteId, step: Step) -> list[int]:
    """Begin a filling with other bytes; their CRCs."""
    data = arena.begin(0, write_id, step, plan.layout_digest)
    data[:] = np.random.default_rng(plan.rank).bytes(len(data))
    return [crc32c(data[span.arena_offset : span.arena_offset + span.length]) for span in plan.spans]


def another_write(arena: Arena, plan: RankPlan) -> None:
    crcs = fill_anew(arena, plan, WriteId("a1-2"), Step(4))
    arena.record_crcs(0, arena.seal(0).sequence, crcs)


def another_write_of_the_step(arena: Arena, plan: RankPlan) -> None:
    crcs = fill_anew(arena, plan, WriteId("a2-1"), STEP)
    arena.record_crcs(0, arena.seal(0).sequence, crcs)


def another_step_under_the_write_s_name(arena: Arena, plan: RankPlan) -> None:
    crcs = fill_anew(arena, plan, WRITE, Step(4))
    arena.record_crcs(0, arena.seal(0).sequence, crcs)


def half_a_snapshot(arena: Arena, plan: RankPlan) -> None:
    fill_anew(arena, plan, WRITE, STEP)


def a_snapshot_without_crcs(arena: Arena, plan: RankPlan) -> None:
    fill_anew(arena, plan, WRITE, STEP)
    arena.seal(0)


def a_checkpoint_of_which_parts_were_left_out(arena: Arena, _plan: RankPlan) -> None:
    arena.disprove(0)


def a_flipped_bit_in_each_span(arena: Arena, plan: RankPlan) -> None:
    for span in plan.spans:
        arena.data(0)[span.arena_offset] ^= 1


def a_flipped_bit_in_the_crcs(arena: Arena, plan: RankPlan) -> None:
    arena._memory[head_offset(len(plan.spans), plan.data_bytes, 0) + PAGE_BYTES] ^= 1


@pytest.mark.parametrize(
    "spoil",
    [
        another_write,
        another_write_of_the_step,
        another_step_under_the_write_s_name,
        half_a_snapshot,
        a_snapshot_without_crcs,
        a_checkpoint_of_which_parts_were_left_out,
        a_flipped_bit_in_each_span,
        a_flipped_bit_in_the_crcs,
    ],
)
def test_what_is_not_the_write_gives_nothing_and_the_store_gives_all(spoil: Callable[[Arena, RankPlan], None]) -> None:
    fleet = Fleet(4, lost=[LOST])
    for slot in REPLICAS:
        for rank in fleet.ranks_of(slot):
            spoil(fleet.fill(fleet.nodes[slot].memories, rank), plan_rank(fleet.layout, rank))
    with fleet.listening() as restored:
        assert [one.origin for one in restored(LOST, source_of())] == 2 * ["store"]


@pytest.mark.parametrize("has_memory", [True, False])
def test_a_replica_whose_store_process_was_replaced_gives_what_its_agent_has_kept_or_nothing(has_memory: bool) -> None:
    fleet = Fleet(4, lost=[LOST, *REPLICAS])
    successor = Memories(num_ranks=RANKS_PER_NODE)
    for rank in fleet.ranks_of(2):
        plan, fd = plan_rank(fleet.layout, rank), os.memfd_create(f"kept-{rank}", os.MFD_ALLOW_SEALING)
        arena = fleet.nodes[2].memories.mapped(rank, fd, new=plan)
        read_rank(fleet.store, fleet.commit, fleet.layout, plan, arena, 0, threads=1)
        if has_memory:
            successor.share(rank, fd, is_copy=False)
        os.close(fd)
    fleet.nodes[2].memories = successor
    with fleet.listening() as restored:
        origins = [one.origin for one in restored(LOST, source_of())]
    assert origins == 2 * ["several" if has_memory else "store"]
