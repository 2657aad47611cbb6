"""A large state on a device: written out while that copies it, and back from staging memory and from files."""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from agent.scenes import play
from agent.stage import Stage, setup_for
from agent.test_large_states import big_file, comes_back_from_memory, is_in_page_cache, told_by_train_big
from behemoth.wire.reports import RanksRestored

START_US = 60_000_000
"""torch is imported when a worker starts."""


def test_a_state_on_a_device_comes_back_from_memory_and_from_files(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await comes_back_from_memory(here)
        saved = await here.save(saved.step + 8, "a2-1", 2)
        await here.replace_agents(0)
        assert is_in_page_cache(big_file(here, saved.write_id))
        here.start_gang(3, restore=saved)
        restored = await here.wait_for(RanksRestored, lambda report: report.attempt == 3)
        assert (restored.step, restored.num_from_memory) == (saved.step, 0)
        assert told_by_train_big(saved.step) in await here.logged(3, 0, "restored")

    setup = setup_for(tmp_path, "train_big_on_device", ranks=1)
    floors = structs.replace(setup.hang_floors, start_us=START_US, restore_us=START_US, first_step_us=START_US)
    play(tmp_path, scene, structs.replace(setup, hang_floors=floors))
