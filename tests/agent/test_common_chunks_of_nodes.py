"""Ranks of several nodes share a chunk of a file: the one that ends it asks the others for CRCs. Real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from agent.stage import Stage, kill, setup_for, stage
from agent.test_agent_peers import store_pid
from behemoth.agent.exchanging import REST_S
from behemoth.base.ids import Attempt, NodeId, Step
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit_log import BadCommit, commits
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.proof import prove
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.verify import verify
from behemoth.storage.open import open_store
from behemoth.wire.commands import CommitSeen, GoAhead
from behemoth.wire.reports import Beat, ReceiptBatch, Report

NODES = 2
WAIT_S = 60
"""For a save or two, on a machine that others use as well."""


def left_of(batches: list[ReceiptBatch], step: Step) -> list[str]:
    """The arrays that have chunks whose ends the leader must write."""
    (layout,) = (Layout.decode(batch.layout) for batch in batches if batch.layout is not None)
    receipts = [Receipt.decode(data) for batch in batches for data in batch.receipts]
    candidate = Candidate(run="toy", step=step, write_id=batches[0].write_id, attempt=Attempt(1))
    proof = prove(candidate, layout, receipts)
    assert any(receipt.ends for receipt in receipts)
    return [layout.arrays[array].name for array in proof.left.array.tolist()]


async def left_by(here: Stage, step: int, write_id: str, *, frozen: int | None = None) -> list[str]:
    """Of a whole save. A store process of n0 that is `frozen` within it goes on once n1 has told its receipts."""
    save = await here.announce(step, write_id, 1)
    if frozen is not None:
        os.kill(frozen, signal.SIGSTOP)
    here.send(GoAhead(fence=here.fence(1), write_id=save.write_id))
    if frozen is not None:
        await here.wait_for(ReceiptBatch, lambda batch: batch.write_id == save.write_id)
        os.kill(frozen, signal.SIGCONT)
    batches = await here.receipts(save.write_id)
    here.commit(batches, save.step, 1)
    here.send(CommitSeen(fence=here.fence(1), step=save.step, write_id=save.write_id))
    return left_of(batches, save.step)


async def trained(here: Stage) -> int:
    """How far the slowest node is, all of them being at work."""

    def slowest(heard: Sequence[tuple[NodeId, Report]]) -> int | None:
        steps = {node: report.step for node, report in heard if isinstance(report, Beat)}
        return min(steps.values()) if len(steps) == NODES and min(steps.values()) > 0 else None

    return await here.wait_until(slowest, since=len(here.heard))


def test_no_end_is_left_to_the_leader_before_and_after_a_store_process_was_killed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path, setup_for(tmp_path, nodes=NODES), num_agents=NODES) as here:
            here.start_gang(1)
            assert await left_by(here, await trained(here) + 120, "a1-1") == []
            killed = store_pid(here, "n0")
            kill(killed)
            assert await left_by(here, await trained(here) + 120, "a1-2") == []
            assert store_pid(here, "n0") != killed

    asyncio.run(scene())


def test_a_store_process_that_is_frozen_within_a_save_leaves_ends_to_the_leader_and_none_once_it_answers_again(
    tmp_path: Path,
) -> None:
    """Whether the very next save asks it depends on what it answered last; after silence it is left alone."""

    async def scene() -> None:
        async with stage(tmp_path, setup_for(tmp_path, nodes=NODES), num_agents=NODES) as here:
            here.start_gang(1)
            assert await left_by(here, await trained(here) + 120, "a1-1") == []
            frozen = store_pid(here, "n0")
            assert await left_by(here, await trained(here) + 120, "a1-2", frozen=frozen) != []
            number, ends_s = 3, time.monotonic() + REST_S + WAIT_S
            while left := await left_by(here, await trained(here) + 120, f"a1-{number}"):
                assert time.monotonic() < ends_s, left
                number += 1
            assert store_pid(here, "n0") == frozen
        store = open_store(here.setup.store_url)
        found = [commit for commit in commits(store) if not isinstance(commit, BadCommit)]
        assert len(found) >= 3
        assert all(verify(store, commit, threads=1, deep=True).is_intact for commit in found)

    asyncio.run(scene())
