"""A state that is large enough to be written while it is copied, and to be read by its rank from files."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from agent.scenes import held_in_memory, play, worker_pids
from agent.stage import LIMIT_S, Stage, kill, setup_for
from behemoth.base.ids import Rank, WriteId
from behemoth.storage.page_cache import cached_bytes
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.reports import RanksRestored, ReceiptBatch, RestoreRefused, SaveBroken, SaveReached


def test_a_large_state_is_copied_until_the_fence_and_holds_one_step(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        await comes_back_from_memory(here)

    play(tmp_path, scene, setup_for(tmp_path, "train_big", ranks=1))


async def comes_back_from_memory(here: Stage) -> RestoreFrom:
    """A state of `train_big`, by a second attempt; its checkpoint."""
    here.start_gang(1)
    await here.wait_for(RanksRestored)
    saved = await here.save(8, "a1-1", 1)
    here.start_gang(2, restore=saved)
    await here.wait_for(RanksRestored, lambda report: report.attempt == 2 and report.num_from_memory == 1)
    assert told_by_train_big(saved.step) in await here.logged(2, 0, "restored")
    return saved


def test_a_save_whose_copy_no_fence_ended_never_commits_and_the_next_one_does(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        await here.announce(8, "a1-1", 1)
        here.let_go_on()
        broken = await here.wait_for(SaveBroken)
        assert re.search(
            r"rank 0, staging: step 9 was done while the state of step 8 .* call run\.fence\(\)", broken.reason
        )
        saved = await here.save(20, "a1-2", 1)
        here.start_gang(2, restore=saved)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 2 and report.num_from_memory == 1)
        assert told_by_train_big(saved.step) in await here.logged(2, 0, "restored")
        assert not [
            report for _, report in here.heard if isinstance(report, ReceiptBatch) and report.write_id == "a1-1"
        ]

    play(tmp_path, scene, setup_for(tmp_path, "train_big", ranks=1, hold_at=7, unfenced_step=9))


def test_a_large_state_is_written_while_it_is_copied_and_counts_only_once_the_copy_is_sealed(tmp_path: Path) -> None:
    """The copy of step 8 is complete long before the fence of step 9, at which its worker dies."""

    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        await here.announce(8, "a1-1", 1)
        here.let_go_on()
        async with asyncio.timeout(LIMIT_S):
            while written_bytes(here) < 80 << 20:
                await asyncio.sleep(0.01)
        assert not [report for _, report in here.heard if isinstance(report, SaveReached) and report.stage == "staged"]
        kill((await worker_pids(here))[0])
        here.start_gang(2)
        broken = await here.wait_for(SaveBroken)
        assert broken.write_id == "a1-1"
        assert not [report for _, report in here.heard if isinstance(report, ReceiptBatch)]
        await here.wait_for(RanksRestored, lambda report: report.attempt == 2)
        saved = await here.save(30, "a2-1", 2)
        here.start_gang(3, restore=saved)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 3 and report.num_from_memory == 1)
        assert told_by_train_big(saved.step) in await here.logged(3, 0, "restored")

    play(tmp_path, scene, setup_for(tmp_path, "train_big", ranks=1, hold_at=7, long_step=9))


def test_a_large_state_whose_files_are_in_the_page_cache_is_read_by_its_rank(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        saved = await here.save(8, "a1-1", 1)
        await here.replace_agents(0)
        is_cached = is_in_page_cache(big_file(here, saved.write_id))
        here.start_gang(2, restore=saved)
        restored = await here.wait_for(RanksRestored, lambda report: report.attempt == 2)
        assert (restored.step, restored.num_from_memory) == (saved.step, 0)
        assert told_by_train_big(saved.step) in await here.logged(2, 0, "restored")
        assert held_in_memory(here, Rank(0)) == ([] if is_cached else [saved.write_id])
        saved = await here.save(30, "a2-1", 2)
        here.start_gang(3, restore=saved)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 3 and report.num_from_memory == 1)

    play(tmp_path, scene, setup_for(tmp_path, "train_big", ranks=1))


def test_a_damaged_file_that_a_rank_reads_is_told_as_the_store_process_tells_it(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        first = await here.save(8, "a1-1", 1)
        second = await here.save(first.step + 8, "a1-2", 1)
        await here.replace_agents(0)
        for path in here.folder.rglob("big/c/0"):
            path.read_bytes()
        with big_file(here, second.write_id).open("r+b") as file:
            file.seek(9 << 20)
            byte = file.read(1)
            file.seek(9 << 20)
            file.write(bytes([byte[0] ^ 1]))
        here.start_gang(2, restore=second)
        refused = await here.wait_for(RestoreRefused)
        assert refused.is_corrupt
        assert re.search(rf"rank 0, restoring: array '\S*big', chunk 1, file .*{second.write_id}", refused.reason)
        here.start_gang(3, restore=first)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 3)
        assert told_by_train_big(first.step) in await here.logged(3, 0, "restored")

    play(tmp_path, scene, setup_for(tmp_path, "train_big", ranks=1))


def told_by_train_big(step: int) -> str:
    return f"restored {step} {float(step)} {float(step)} {float(step)}"


def big_file(here: Stage, write_id: WriteId) -> Path:
    """The shard of `train_big`'s large array."""
    (path,) = here.folder.rglob(f"*-{write_id}/**/big/c/0")
    return path


def is_in_page_cache(path: Path) -> bool:
    """After reading it. False where the kernel does not tell: then the store process reads it."""
    num_bytes = len(path.read_bytes())
    with path.open("rb") as file:
        return cached_bytes(file.fileno(), 0, num_bytes) is not None


def written_bytes(here: Stage) -> int:
    """On disk, not just as the size of a sparse file."""
    files = (path for path in (here.folder / "checkpoints").rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)
