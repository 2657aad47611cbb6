"""A gang from start to end on one real agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

from msgspec import structs

from agent.stage import setup_for, stage
from behemoth.wire.reports import Beat, ProgramRefused, RanksFinished, RanksRestored, RanksUp, WorkerEnded


def test_a_gang_starts_trains_saves_and_ends(tmp_path: Path) -> None:
    async def play() -> None:
        async with stage(tmp_path, setup_for(tmp_path, total_steps=20)) as here:
            here.start_gang(1)
            await here.wait_for(RanksUp)
            restored = await here.wait_for(RanksRestored)
            assert (restored.step, restored.num_from_memory) == (0, 0)
            await here.save(20, "a1-1", 1, is_last=True)
            await here.wait_for(RanksFinished)
            last = await here.wait_for(Beat, lambda beat: beat.step == 20)
            assert last.tokens == 2 * 20 * 10
            assert "done" in await here.logged(1, 1, "done")

    asyncio.run(play())


def test_a_program_that_stages_more_than_the_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async def play() -> None:
        setup = structs.replace(setup_for(tmp_path), staging_budget=10_000)
        async with stage(tmp_path, setup) as here:
            here.start_gang(1)
            refused = await here.wait_for(ProgramRefused)
            expected = "expected at most 10KB on a node, got 312KiB: 312KiB for 2 ranks and 0B for copies of 0"
            assert f"staging memory: {expected}" in refused.reason
            assert "raise spec.checkpoint.staging_budget" in refused.reason
            here.start_gang(2)
            await here.wait_for(ProgramRefused, lambda report: report.attempt == 2)
            kinds = [type(report) for _, report in here.heard]
            assert kinds.count(ProgramRefused) == 2
            assert WorkerEnded not in kinds

    asyncio.run(play())
