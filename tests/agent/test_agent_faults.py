"""What one agent does when something dies, hangs, or will not stop talking. Real processes, bounded waits."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from agent.stage import LIMIT_S, Stage, alive, descendants, gone, kill, open_memory, setup_for, stage
from behemoth.base.ids import NodeId, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.sdk.saver import MEMORY_WAIT_S
from behemoth.storage.page_cache import cached_bytes
from behemoth.wire.commands import AbortSave, GoAhead, Leave, RestoreFrom, SaveAt, StopGang
from behemoth.wire.reports import (
    Beat,
    Hello,
    RanksFinished,
    RanksGone,
    RanksRestored,
    RanksUp,
    ReceiptBatch,
    Refused,
    RestoreRefused,
    SaveBroken,
    SaveMissed,
    SaveReached,
    WorkerEnded,
)
from behemoth.wire.setup import Setup


def play(folder: Path, scene: Callable[[Stage], Awaitable[None]], setup: Setup | None = None) -> None:
    async def run() -> None:
        async with stage(folder, setup) as here:
            await scene(here)

    asyncio.run(run())


async def saved_and_stopped(here: Stage) -> RestoreFrom:
    """What attempt 1 has saved, after the end of its workers."""
    here.start_gang(1)
    await here.wait_for(RanksRestored)
    saved = await here.save(20, "a1-1", 1)
    here.send(StopGang(fence=here.fence(1), reason="test"))
    await here.wait_for(RanksGone)
    return saved


async def worker_pids(here: Stage) -> list[int]:
    """Workers in the order of their ranks (they are forked in that order)."""
    agent = here.agents[next(iter(here.agents))].pid
    found = []
    for pid in descendants(agent):
        with suppress(OSError):  # it has ended meanwhile
            if os.getsid(pid) == pid and parent_of(pid) != agent:
                found.append(pid)
    return sorted(found)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_killed_worker_is_told_with_its_signal_and_the_next_attempt_restores_from_memory(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 1)
        saved = await here.save(30, "a1-1", 1)
        await here.wait_for(Beat, lambda beat: beat.step >= saved.step + 2)
        kill((await worker_pids(here))[1])
        ended = await here.wait_for(WorkerEnded)
        assert (ended.signal, ended.exit_code, ended.attempt) == (signal.SIGKILL, None, 1)
        here.start_gang(2, restore=saved)
        restored = await here.wait_for(RanksRestored, lambda report: report.attempt == 2)
        assert (restored.step, restored.num_from_memory) == (saved.step, 2)
        for rank in range(2):
            log = await here.logged(2, rank, "restored")
            assert told_by_train(saved.step) in log
            assert f"rank record {{'rank': {rank}}}" in log
        await here.wait_for(Beat, lambda beat: beat.attempt == 2 and beat.step > saved.step)

    play(tmp_path, scene)


def test_a_checkpoint_comes_back_from_the_store_when_the_agent_and_its_memory_are_gone(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        saved = await here.save(20, "a1-1", 1)
        await here.replace_agents(0)
        here.start_gang(2, restore=saved)
        restored = await here.wait_for(RanksRestored, lambda report: report.attempt == 2)
        assert (restored.step, restored.num_from_memory) == (saved.step, 0)
        assert told_by_train(saved.step) in await here.logged(2, 0, "restored")

    play(tmp_path, scene)


def test_a_large_state_is_copied_until_the_fence_and_holds_one_step(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        saved = await here.save(8, "a1-1", 1)
        here.start_gang(2, restore=saved)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 2 and report.num_from_memory == 1)
        assert told_by_train_big(saved.step) in await here.logged(2, 0, "restored")

    play(tmp_path, scene, setup_for(tmp_path, "train_big", ranks=1))


def test_a_save_whose_copy_no_fence_ended_never_commits_and_the_next_one_does(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        await here.announce(8, "a1-1", 1)
        here.let_go_on()
        broken = await here.wait_for(SaveBroken)
        assert re.search(r"rank 0: step 9 was done while the state of step 8 .* call run\.fence\(\)", broken.reason)
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
        assert re.search(rf"rank 0: array '\S*big', chunk 1, file .*{second.write_id}", refused.reason)
        here.start_gang(3, restore=first)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 3)
        assert told_by_train_big(first.step) in await here.logged(3, 0, "restored")

    play(tmp_path, scene, setup_for(tmp_path, "train_big", ranks=1))


def told_by_train(step: int) -> str:
    """What a rank of two of `train` prints when it gets back the state of `step`."""
    return f"restored {step} {float(step)} {float(sum(range(step + 1)) * 4)} {step}"


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


def held_in_memory(here: Stage, rank: Rank) -> list[WriteId]:
    fd = memory_of(here, rank)
    arena = Arena.open(fd)
    held = [snapshot.write_id for snapshot in arena.held()]
    arena.close()
    os.close(fd)
    return held


def memory_of(here: Stage, rank: Rank) -> int:
    """A descriptor of the staging memory that the agent owns."""
    fd = open_memory(here.agents[NodeId("n0")].pid, f"behemoth-rank-{rank}")
    assert fd is not None
    return fd


def written_bytes(here: Stage) -> int:
    """On disk, not just as the size of a sparse file."""
    files = (path for path in (here.folder / "checkpoints").rglob("*") if path.is_file())
    return sum(path.stat().st_blocks * 512 for path in files)


def test_a_store_process_that_hangs_costs_saves_but_no_step(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 1)
        saved = await here.save(30, "a1-1", 1)
        (store,) = [pid for pid in descendants(here.agents["n0"].pid) if b"wiring.store" in command_line(pid)]
        os.kill(store, signal.SIGSTOP)
        hung = await here.announce(saved.step + 60, "a1-2", 1)
        await here.wait_for(SaveReached, lambda told: told.write_id == hung.write_id and told.stage == "staged")
        here.send(AbortSave(fence=here.fence(1), write_id=hung.write_id, reason="no commit in time"))
        starved = await here.announce(hung.step + 60, "a1-3", 1)
        broken = await here.wait_for(SaveBroken)
        assert broken.write_id == starved.write_id
        assert re.search(r"rank \d: no half of the staging memory is free at step", broken.reason)
        here.send(AbortSave(fence=here.fence(1), write_id=starved.write_id, reason=broken.reason))
        await here.wait_for(Beat, lambda beat: beat.step > starved.step and beat.stall_us >= MEMORY_WAIT_S * 1e6)
        os.kill(store, signal.SIGCONT)
        saved = await here.save(starved.step + 120, "a1-4", 1)
        assert held_in_memory(here, Rank(0))[-1] == saved.write_id

    play(tmp_path, scene)


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_last_save_that_is_given_up_is_made_again_at_the_same_step(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step == 20 and beat.phase == "save")
        here.send(SaveAt(fence=here.fence(1), step=Step(20), write_id=WriteId("a1-1"), is_last=True))
        here.send(GoAhead(fence=here.fence(1), write_id=WriteId("a1-1")))
        await here.wait_for(ReceiptBatch)
        here.send(AbortSave(fence=here.fence(1), write_id=WriteId("a1-1"), reason="test"))
        await here.save(20, "a1-2", 1, is_last=True)
        await here.wait_for(RanksFinished)

    play(tmp_path, scene, setup_for(tmp_path, total_steps=20))


def test_a_suspend_saves_at_its_step_and_ends_the_workers(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        beat = await here.wait_for(Beat, lambda beat: beat.step >= 3)
        await here.save(beat.furthest_step + 60, "a1-1", 1, is_last=True)
        await here.wait_for(RanksFinished)
        assert not [report for _, report in here.heard if isinstance(report, WorkerEnded)]

    play(tmp_path, scene)


def test_a_flipped_bit_in_the_store_refuses_the_restore_as_corrupt(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await saved_and_stopped(here)
        shard = next(path for path in (tmp_path / "checkpoints" / "steps").rglob("weight/c/*") if path.is_file())
        data = bytearray(shard.read_bytes())
        data[1] ^= 4
        shard.write_bytes(data)
        await here.replace_agents(0)
        here.start_gang(2, restore=saved)
        refused = await here.wait_for(RestoreRefused)
        assert refused.is_corrupt
        assert "weight" in refused.reason

    play(tmp_path, scene)


def test_a_store_that_is_away_refuses_the_restore_and_damages_no_checkpoint(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await saved_and_stopped(here)
        (tmp_path / "checkpoints").rename(tmp_path / "unmounted")
        await here.replace_agents(0)
        here.start_gang(2, restore=saved)
        refused = await here.wait_for(RestoreRefused)
        assert (refused.is_corrupt, refused.is_unfit) == (False, False)
        assert "checkpoints: expected that of a run, got none of its objects" in refused.reason
        (tmp_path / "unmounted").rename(tmp_path / "checkpoints")
        here.start_gang(3, restore=saved)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 3)

    play(tmp_path, scene)


def test_damaged_memory_is_found_by_the_worker_and_the_store_gives_what_is_damaged(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        saved = await here.save(30, "a1-1", 1)
        flip_a_bit_in_memory(here, Rank(1), saved.write_id)
        here.start_gang(2, restore=saved)
        told = await here.wait_for(RanksRestored, lambda report: report.attempt == 2 and report.num_from_memory == 1)
        assert told.num_from_several == 1
        assert f"rank 1, write {saved.write_id}: expected CRC-32C" in told.missed
        for rank in range(2):
            assert told_by_train(saved.step) in await here.logged(2, rank, "restored")
        saved = await here.save(saved.step + 30, "a2-1", 2)
        here.start_gang(3, restore=saved)
        await here.wait_for(RanksRestored, lambda report: report.attempt == 3 and report.num_from_memory == 2)

    play(tmp_path, scene)


def flip_a_bit_in_memory(here: Stage, rank: Rank, write_id: WriteId) -> None:
    fd = memory_of(here, rank)
    arena = Arena.open(fd)
    (held,) = [snapshot for snapshot in arena.held() if snapshot.write_id == write_id]
    arena.data(held.generation)[0] ^= 1
    arena.close()
    os.close(fd)


def test_a_killed_fork_server_counts_as_killed_workers_and_is_replaced(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.logged(1, 0, "pids")
        await here.wait_for(RanksUp)
        workers = await worker_pids(here)
        below = descendants(here.agents["n0"].pid)
        server = parent_of(workers[0])
        kill(server)
        await here.wait_for(WorkerEnded, lambda report: report.rank == 0 and report.signal == 9)
        await here.wait_for(WorkerEnded, lambda report: report.rank == 1 and report.signal == 9)
        bred = {int(pid) for pid in re.findall(r"\d+", here.log(1, 0).split("pids")[1].splitlines()[0])}
        await gone(bred | {server} | set(workers))
        here.start_gang(2)
        await here.wait_for(RanksUp, lambda report: report.attempt == 2)
        assert here.agents["n0"].poll() is None
        del below

    play(tmp_path, scene, setup_for(tmp_path, "breed"))


@pytest.mark.parametrize("end", ["agent", "lifeline", "frozen agent"])
def test_nothing_outlives_the_agent(tmp_path: Path, end: str) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        for rank in range(2):
            await here.logged(1, rank, "pids")
        below = descendants(here.agents["n0"].pid)
        bred = {int(pid) for rank in range(2) for pid in re.findall(r"\d+", here.log(1, rank).splitlines()[0])}
        assert len(alive(bred)) == 6
        if end == "lifeline":
            here.cut_lifeline("n0")
        elif end == "agent":
            kill(here.agents["n0"].pid)
        else:
            for pid in below - bred | {here.agents["n0"].pid}:
                os.kill(pid, signal.SIGSTOP)
            kill(here.agents["n0"].pid)
        await gone(below | bred)

    play(tmp_path, scene, setup_for(tmp_path, "breed"))


def test_a_killed_store_process_breaks_the_save_and_training_goes_on(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 1)
        store = next(
            pid
            for pid in descendants(here.agents["n0"].pid)
            if b"behemoth.wiring.store" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(store, signal.SIGSTOP)
        lost = await here.announce(30, "a1-1", 1)
        await here.wait_for(Beat, lambda beat: beat.step > lost.step)
        kill(store)
        broken = await here.wait_for(SaveBroken)
        assert broken.write_id == lost.write_id
        step = max(report.step for _, report in here.heard if isinstance(report, Beat))
        await here.wait_for(Beat, lambda beat: beat.step > step + 10)
        await here.save(step + 60, "a1-2", 1)

    play(tmp_path, scene)


def test_what_a_worker_leaves_running_in_its_group_ends_with_it_while_its_peers_go_on(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        log = await here.logged(1, 1, "pids")
        ended = await here.wait_for(WorkerEnded)
        assert (ended.rank, ended.exit_code) == (1, 3)
        left, child = map(int, re.findall(r"\d+", log.split("pids")[1].splitlines()[0]))
        await gone({left, child})
        assert len(await worker_pids(here)) == 1

    play(tmp_path, scene, setup_for(tmp_path, "leave_a_child"))


def test_a_save_whose_step_has_passed_is_missed_and_a_later_one_works(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 10)
        here.send(SaveAt(fence=here.fence(1), step=Step(5), write_id=WriteId("a1-1")))
        missed = await here.wait_for(SaveMissed)
        assert missed.step >= 10
        await here.save(missed.step + 60, "a1-2", 1)

    play(tmp_path, scene)


def test_a_hung_workers_stack_is_in_its_log_before_it_is_killed(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step == 4 and beat.phase_age_us > 100_000)
        for pid in await worker_pids(here):
            os.kill(pid, signal.SIGSTOP)
        here.start_gang(2, dump_stacks=True)
        await here.wait_for(RanksUp, lambda report: report.attempt == 2)
        assert "hang_here_for_ever" in here.log(1, 0)
        assert "hang_here_for_ever" in here.log(1, 1)

    play(tmp_path, scene, setup_for(tmp_path, hang_at=5))


def test_an_agent_that_shall_stop_and_leave_hangs_up_behind_the_stacks_of_hung_workers(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step == 4 and beat.phase_age_us > 100_000)
        here.send(StopGang(fence=here.fence(1), reason="no step", dump_stacks=True))
        here.send(Leave(reason="the run has failed"))
        await here.wait_for(RanksGone)
        assert all("hang_here_for_ever" in here.log(1, rank) for rank in (0, 1))
        assert here.agents[NodeId("n0")].wait(LIMIT_S) == 0

    play(tmp_path, scene, setup_for(tmp_path, hang_at=5))


def test_commands_of_an_older_fence_are_refused(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(3)
        await here.wait_for(RanksUp)
        here.start_gang(2)
        refused = await here.wait_for(Refused)
        assert (refused.command, refused.fence.attempt) == ("StartGang", 3)
        here.send(SaveAt(fence=here.fence(3, epoch=0), step=Step(50), write_id=WriteId("a3-1")))
        await here.wait_for(Refused, lambda report: report.command == "SaveAt")
        here.start_gang(3)
        await here.wait_for(RanksUp, since=len(here.heard))
        assert not [report for _, report in here.heard if isinstance(report, WorkerEnded | RanksGone)]

    play(tmp_path, scene)


def test_a_gigabyte_of_output_leaves_a_small_log_with_the_newest_line(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.logged(1, 0, "the newest line")
        folder = tmp_path / "logs" / "attempt-0001"
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20
        beats = [report for _, report in here.heard if isinstance(report, Beat)]
        assert len(beats) >= 2

    play(tmp_path, scene, setup_for(tmp_path, "shout", ranks=1, total_steps=3, megabytes=1024))


def test_a_worker_that_never_joins_shows_as_an_ageing_start(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.attempt == 1 and beat.phase_age_us > 300_000)
        assert not [report for _, report in here.heard if isinstance(report, RanksUp)]
        here.send(StopGang(fence=here.fence(1), reason="test"))
        await here.wait_for(RanksGone)

    play(tmp_path, scene, setup_for(tmp_path, "never_join"))


def test_a_preload_that_hangs_leaves_its_stacks_and_the_next_attempt_imports_anew(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        async with asyncio.timeout(LIMIT_S):
            while not (tmp_path / "mark").exists():
                await asyncio.sleep(0.01)
        here.start_gang(2, dump_stacks=True)
        await here.wait_for(RanksUp, lambda report: report.attempt == 2)

    setup = setup_for(tmp_path, preload=("agent.sleeps_on_import",))
    environment = {**setup.environment, "SLEEPS_ON_IMPORT_MARK": str(tmp_path / "mark")}
    play(tmp_path, scene, msgspec.structs.replace(setup, environment=environment))
    said = capfd.readouterr().err + "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "its imports of agent.sleeps_on_import" in said
    assert "in waits_for_a_lock" in said


def test_an_exception_ends_the_worker_with_1_and_its_traceback(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        ended = await here.wait_for(WorkerEnded)
        assert (ended.exit_code, ended.signal) == (1, None)
        assert "the program is broken on purpose" in ended.last_lines

    play(tmp_path, scene, setup_for(tmp_path, "fail"))


def test_an_exit_with_0_before_the_last_step_is_told_as_an_end(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        ended = await here.wait_for(WorkerEnded)
        assert (ended.exit_code, ended.signal) == (0, None)
        assert not [report for _, report in here.heard if isinstance(report, RanksFinished)]

    play(tmp_path, scene, setup_for(tmp_path, "leave_early"))


@pytest.mark.parametrize(
    ("preload", "text"),
    [(("agent.breaks_on_import",), "no way to import this"), (("agent.starts_a_thread",), "single thread")],
)
def test_a_preload_that_cannot_be_forked_from_is_named(tmp_path: Path, preload: tuple[str, ...], text: str) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        ended = await here.wait_for(WorkerEnded)
        assert ended.exit_code == 1
        assert text in ended.last_lines

    play(tmp_path, scene, setup_for(tmp_path, preload=preload))


def test_a_command_is_executed_with_torchruns_environment(tmp_path: Path) -> None:
    script = (
        "import os; from agent.programs import train;"
        "print('env', os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['SECRET_OF_USER'],"
        " os.environ.get('BEHEMOTH_TOKEN'), flush=True); train()"
    )

    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksRestored)
        assert "env 1 2 s3cr3t None" in await here.logged(1, 1, "env")
        await here.save(20, "a1-1", 1, is_last=True)
        await here.wait_for(RanksFinished)

    play(tmp_path, scene, setup_for(tmp_path, total_steps=20, argv=(sys.executable, "-c", script)))


def test_workers_survive_a_coordinator_that_comes_back_within_its_grace(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 5)
        before = await worker_pids(here)
        await here.go_away()
        await asyncio.sleep(0.3)
        since = len(here.heard)
        here.epoch += 1
        await here.listen()
        hello = await here.wait_for(Hello, since=since)
        assert hello.attempt == 1
        await here.wait_for(RanksUp, since=since)
        await here.wait_for(RanksRestored, since=since)
        assert await worker_pids(here) == before

    play(tmp_path, scene, setup_for(tmp_path, grace_us=int(LIMIT_S * 1e6)))


def test_without_grace_the_workers_end_with_the_coordinator(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksUp)
        below = descendants(here.agents["n0"].pid)
        await here.go_away()
        await gone(below)
        assert here.agents["n0"].wait(LIMIT_S) == 1

    play(tmp_path, scene)


def test_a_worker_death_is_told_before_any_beat_and_the_next_attempt_imports_nothing_anew(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage(tmp_path, beat_s=2 * LIMIT_S) as here:
            here.start_gang(1)
            await here.wait_for(RanksUp)
            pids = await worker_pids(here)
            fork_server = parent_of(pids[0])
            kill(pids[0])
            assert (await here.wait_for(WorkerEnded)).rank == Rank(0)
            here.start_gang(2)
            await here.wait_for(RanksUp, lambda report: report.attempt == 2)
            assert {parent_of(pid) for pid in await worker_pids(here)} == {fork_server}

    asyncio.run(scene())


def test_the_token_reaches_neither_workers_nor_logs(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(RanksUp)
        for pid in descendants(here.agents["n0"].pid):
            assert b"a-token" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "a-token" not in (tmp_path / "n0.log").read_text()
        assert "s3cr3t" not in (tmp_path / "n0.log").read_text()

    play(tmp_path, scene)
