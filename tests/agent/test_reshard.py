"""A gang of another mesh, on a new agent, goes on from what an earlier gang saved."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest

from agent.stage import setup_for, stage
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.reports import Beat, RanksRestored
from behemoth.wire.setup import Setup

RECORD = "rank record"


def setup_on(folder: Path, mesh: Mapping[str, int], program: str = "train_split") -> Setup:
    num_ranks = math.prod(mesh.values())
    return msgspec.structs.replace(setup_for(folder, program, ranks=num_ranks), mesh={**mesh, "edp": num_ranks})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"tp": 2, "dp": 2}, {"tp": 3, "dp": 1}),
        ({"tp": 1, "dp": 3}, {"tp": 2, "dp": 2}),
        ({"tp": 4, "dp": 1}, {"tp": 1, "dp": 4}),
        ({"tp": 1, "cp": 2, "dp": 2}, {"tp": 1, "cp": 4, "dp": 1}),
        ({"tp": 1, "dp": 3}, {"tp": 2, "cp": 2, "dp": 1}),
    ],
)
def test_a_gang_of_another_mesh_gets_the_state_that_an_earlier_one_saved(
    tmp_path: Path, first: Mapping[str, int], second: Mapping[str, int]
) -> None:
    async def save() -> RestoreFrom:
        async with stage(tmp_path, setup_on(tmp_path, first)) as here:
            here.start_gang(1)
            await here.wait_for(Beat, lambda beat: beat.step >= 1)
            return await here.save(30, "a1-1", 1)

    async def restore(saved: RestoreFrom) -> None:
        async with stage(tmp_path, setup_on(tmp_path, second)) as here:
            here.start_gang(2, restore=saved)
            restored = await here.wait_for(RanksRestored)
            assert (restored.step, restored.num_from_memory) == (saved.step, 0)
            num_ranks = math.prod(second.values())
            for rank in range(num_ranks):
                log = await here.logged(2, rank, "restored")
                assert f"restored {saved.step} True" in log
                assert (f"{RECORD} {rank}" in log) is (num_ranks == math.prod(first.values()))
            again = await here.save(saved.step + 60, "a2-2", 2)
            here.start_gang(3, restore=again)
            restored = await here.wait_for(RanksRestored, lambda report: report.attempt == 3)
            assert restored.num_from_memory == num_ranks
            assert f"restored {again.step} True" in await here.logged(3, 0, "restored")

    asyncio.run(restore(asyncio.run(save())))


def test_a_program_of_other_arrays_takes_what_it_says_and_keeps_the_rest_as_it_began(tmp_path: Path) -> None:
    first, second = {"tp": 2, "dp": 1}, {"tp": 1, "dp": 2}

    async def save() -> RestoreFrom:
        async with stage(tmp_path, setup_on(tmp_path, first)) as here:
            here.start_gang(1)
            await here.wait_for(Beat, lambda beat: beat.step >= 1)
            return await here.save(30, "a1-1", 1)

    async def tune(saved: RestoreFrom) -> None:
        async with stage(tmp_path, setup_on(tmp_path, second, "fine_tune")) as here:
            rows = (np.arange(12.0, 48.0) * saved.step).astype(ml_dtypes.bfloat16).astype(float)
            began = f"restored {saved.step} rows {rows.sum()} moment 7.0 adapter 3"
            for attempt in (2, 3):  # the second finds memory that holds a part only, and must not take it for the whole
                here.start_gang(attempt, restore=saved)
                restored = await here.wait_for(RanksRestored, partial(_is_of, attempt))
                assert (restored.step, restored.num_from_memory) == (saved.step, 0)
                for rank in range(2):
                    log = await here.logged(attempt, rank, "restored")
                    assert began in log
                    assert "record" not in log
            own = await here.save(saved.step + 60, "a3-2", 3)
            here.start_gang(4, restore=own)
            restored = await here.wait_for(RanksRestored, lambda report: report.attempt == 4)
            assert restored.num_from_memory == 2
            log = await here.logged(4, 0, "restored")
            assert f"moment {7.0 + own.step - saved.step} adapter {3 + own.step - saved.step}" in log
            assert "record 1" in log

    asyncio.run(tune(asyncio.run(save())))


def _is_of(attempt: int, report: RanksRestored) -> bool:
    return report.attempt == attempt
