"""What one agent does when something dies, hangs, or will not stop talking. Real processes, bounded waits."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from agent.scenes import held_in_memory, memory_of, parent_of, play, saved_and_stopped, worker_pids
from agent.stage import LIMIT_S, Stage, alive, descendants, gone, kill, setup_for, stage
from behemoth.base.ids import Epoch, NodeId, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.sdk.saver import MEMORY_WAIT_S
from behemoth.wire.commands import AbortSave, GoAhead, Leave, SaveAt, StopGang
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


def told_by_train(step: int) -> str:
    """What a rank of two of `train` prints when it gets back the state of `step`."""
    return f"restored {step} {float(step)} {float(sum(range(step + 1)) * 4)} {step}"


def test_a_store_process_that_hangs_costs_saves_but_no_step(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 1)
        saved = await here.save(30, "a1-1", 1)
        (store,) = [pid for pid in descendants(here.agents[NodeId("n0")].pid) if b"wiring.store" in command_line(pid)]
        os.kill(store, signal.SIGSTOP)
        hung = await here.announce(saved.step + 60, "a1-2", 1)
        await here.wait_for(SaveReached, lambda told: told.write_id == hung.write_id and told.stage == "staged")
        here.send(AbortSave(fence=here.fence(1), write_id=hung.write_id, reason="no commit in time"))
        starved = await here.announce(hung.step + 60, "a1-3", 1)
        broken = await here.wait_for(SaveBroken)
        assert broken.write_id == starved.write_id
        assert re.search(r"rank \d, staging: no half of the staging memory is free at step", broken.reason)
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
        assert "checkpoints: expected the store of a run, got a place without one" in refused.reason
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
        assert re.search(rf"rank 1, write {saved.write_id}, array '\S+': expected CRC-32C", told.missed)
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
        below = descendants(here.agents[NodeId("n0")].pid)
        server = parent_of(workers[0])
        kill(server)
        await here.wait_for(WorkerEnded, lambda report: report.rank == 0 and report.signal == 9)
        await here.wait_for(WorkerEnded, lambda report: report.rank == 1 and report.signal == 9)
        bred = {int(pid) for pid in re.findall(r"\d+", here.log(1, 0).split("pids")[1].splitlines()[0])}
        await gone(bred | {server} | set(workers))
        here.start_gang(2)
        await here.wait_for(RanksUp, lambda report: report.attempt == 2)
        assert here.agents[NodeId("n0")].poll() is None
        del below

    play(tmp_path, scene, setup_for(tmp_path, "breed"))


@pytest.mark.parametrize("end", ["agent", "lifeline", "frozen agent"])
def test_nothing_outlives_the_agent(tmp_path: Path, end: str) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        for rank in range(2):
            await here.logged(1, rank, "pids")
        below = descendants(here.agents[NodeId("n0")].pid)
        bred = {int(pid) for rank in range(2) for pid in re.findall(r"\d+", here.log(1, rank).splitlines()[0])}
        assert len(alive(bred)) == 6
        if end == "lifeline":
            here.cut_lifeline(NodeId("n0"))
        elif end == "agent":
            kill(here.agents[NodeId("n0")].pid)
        else:
            for pid in below - bred | {here.agents[NodeId("n0")].pid}:
                os.kill(pid, signal.SIGSTOP)
            kill(here.agents[NodeId("n0")].pid)
        await gone(below | bred)

    play(tmp_path, scene, setup_for(tmp_path, "breed"))


def test_a_killed_store_process_breaks_the_save_and_training_goes_on(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 1)
        store = next(
            pid
            for pid in descendants(here.agents[NodeId("n0")].pid)
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


def test_workers_survive_a_coordinator_that_comes_back_within_its_grace(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        here.start_gang(1)
        await here.wait_for(Beat, lambda beat: beat.step >= 5)
        before = await worker_pids(here)
        await here.go_away()
        await asyncio.sleep(0.3)
        since = len(here.heard)
        here.epoch = Epoch(here.epoch + 1)
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
        below = descendants(here.agents[NodeId("n0")].pid)
        await here.go_away()
        await gone(below)
        assert here.agents[NodeId("n0")].wait(LIMIT_S) == 1

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
