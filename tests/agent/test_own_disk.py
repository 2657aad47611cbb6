"""Two nodes with copies in each other's memory and on their own disks: what is left when both lose their memory. Real
processes; what was read from the store is counted where it is read."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from msgspec import structs

from agent import test_peer_copies as four_nodes
from agent.stage import RUN, Stage, kill, setup_for, stage
from agent.test_agent_peers import store_pid
from agent.test_peer_copies import until
from behemoth.base.ids import NodeId
from behemoth.checkpoint.arena_format import PAGE_BYTES
from behemoth.checkpoint.snapshot_format import SnapshotHeader
from behemoth.wire.commands import Leave, RestoreFrom
from behemoth.wire.reports import Beat, RanksRestored, Report
from behemoth.wire.setup import LocalDisk

NODES = 2
MIB = 2


def play(
    folder: Path,
    scene: Callable[[Stage], Awaitable[None]],
    *,
    peer_copies: int = 1,
    rate: int | None = None,
    mib: int = MIB,
) -> None:
    async def run() -> None:
        disk = LocalDisk(path=str(folder / "disk"), rate_bytes_per_s=rate)
        setup = setup_for(folder, "train_shares", ranks=1, nodes=NODES, peer_copies=peer_copies, mib=mib)
        async with stage(folder, structs.replace(setup, local_disk=disk), num_agents=NODES) as here:
            here.start_gang(1)
            await all_restored(here, 1)
            await scene(here)

    asyncio.run(run())


def disk_of(here: Stage, node: int) -> Path:
    return here.folder / "disk" / f"{here.setup.run_name}-{RUN}" / f"n{node}"


def kept(here: Stage, node: int) -> dict[str, Path]:
    """Writes of which the node's disk has a whole file."""
    found = {}
    for path in disk_of(here, node).glob("rank-*"):
        with path.open("rb") as file:
            page = file.read(PAGE_BYTES)
        header = SnapshotHeader.decode(page) if len(page) == PAGE_BYTES else None
        if header is not None:
            found[str(header.write_id)] = path
    return found


async def on_disk(here: Stage, write: RestoreFrom, nodes: Sequence[int] = range(NODES)) -> None:
    await until(lambda: all(write.write_id in kept(here, node) for node in nodes), here)


def troubles(here: Stage, node: int) -> list[str]:
    """What the node's beats say of its disk, one after the other."""
    told = [report.own_disk for name, report in here.heard if name == f"n{node}" and isinstance(report, Beat)]
    said = [one.trouble for one in told if one is not None]
    return [one for one, _ in itertools.groupby(said)]


async def all_restored(here: Stage, attempt: int) -> list[RanksRestored]:
    """What each node told, in their order."""

    def all_told(heard: Sequence[tuple[NodeId, Report]]) -> list[RanksRestored] | None:
        told = {
            node: report for node, report in heard if isinstance(report, RanksRestored) and report.attempt == attempt
        }
        return [told[node] for node in sorted(told)] if len(told) == NODES else None

    return await here.wait_until(all_told)


async def restored(here: Stage, attempt: int, write: RestoreFrom) -> list[RanksRestored]:
    """Start the attempt; every rank must hold the bytes of the write's step."""
    here.start_gang(attempt, restore=write)
    told = await all_restored(here, attempt)
    for rank in range(NODES):
        await here.logged(attempt, rank, f"restored {write.step} {float(write.step)} {float(write.step)}")
    return told


def test_nodes_that_lose_all_memory_at_once_restore_from_their_own_disks_and_read_nothing_from_the_store(
    tmp_path: Path,
) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await on_disk(here, saved)
        await here.replace_agents(0, 1)
        for told in await restored(here, 2, saved):
            assert (told.num_from_memory, told.num_from_peer, told.num_from_disk) == (0, 0, 1)
            assert (told.disk_bytes, told.store_bytes, told.missed) == (MIB << 20, 0, "")
        assert [told.num_from_memory for told in await restored(here, 3, saved)] == [1, 1]
        later = await here.save(saved.step + 60, "a3-1", 3)
        await on_disk(here, later)
        assert saved.write_id in kept(here, 0)  # the other file

    play(tmp_path, scene)


def test_a_node_that_is_lost_with_its_peer_restores_from_its_own_disk(tmp_path: Path) -> None:
    lost, holder = 1, four_nodes.holder_of(1)

    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await four_nodes.copied(here, saved)
        await on_disk(here, saved, [lost])
        await here.replace_agents(lost, holder)
        expected = four_nodes.Sources(memory=2, peer=1, disk=1, peer_bytes=MIB << 20, store_bytes=0, missed="")
        assert await four_nodes.restored(here, 2, saved) == expected

    four_nodes.play(tmp_path, scene, local_disk=LocalDisk(path=str(tmp_path / "disk")))


def test_a_damaged_file_costs_a_read_from_the_store_says_so_and_is_written_again(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await on_disk(here, saved)
        damaged = kept(here, 0)[saved.write_id]
        flip(damaged, os.stat(damaged).st_size - PAGE_BYTES)
        await here.replace_agents(0, 1)
        first, second = await restored(here, 2, saved)
        assert (second.num_from_disk, second.store_bytes) == (1, 0)
        assert first.num_from_disk == 0
        assert "expected CRC-32C" in first.missed
        assert first.store_bytes >= MIB << 20
        await on_disk(here, saved)
        await until(lambda: troubles(here, 0) == ["", "unreadable", ""], here)
        assert troubles(here, 1) == [""]
        await here.replace_agents(0, 1)
        assert [told.num_from_disk for told in await restored(here, 3, saved)] == [1, 1]

    play(tmp_path, scene, peer_copies=0)


def test_a_disk_that_takes_no_copy_is_told_with_the_reason_until_it_does(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        in_the_way = disk_of(here, 0)
        in_the_way.parent.mkdir(parents=True)
        in_the_way.write_bytes(b"a file where the node's folder shall be")
        saved = await here.save(30, "a1-1", 1)
        await until(lambda: troubles(here, 0) == ["failed"] and troubles(here, 1) == [""], here)
        disks = [one.own_disk for _, one in here.heard if isinstance(one, Beat) and one.own_disk is not None]
        reasons = {one.reason for one in disks if one.trouble}
        assert len(reasons) == 1
        assert "expected a free name, got one for both an object and a folder" in reasons.pop()
        in_the_way.unlink()
        later = await here.save(saved.step + 60, "a1-2", 1)
        await on_disk(here, later)
        await until(lambda: troubles(here, 0) == ["failed", ""], here)

    play(tmp_path, scene, peer_copies=0)


def test_a_header_of_another_write_is_a_reason_to_look_farther_that_is_told(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        older = await here.save(30, "a1-1", 1)
        await on_disk(here, older)
        newer = await here.save(older.step + 60, "a1-2", 1)
        await on_disk(here, newer)
        kept(here, 1)[newer.write_id].unlink()
        await here.replace_agents(0, 1)
        first, second = await restored(here, 2, newer)
        assert first.num_from_disk == 1
        assert second.num_from_disk == 0
        assert second.missed.endswith(f"rank-00001.0 holds write {older.write_id} of step {older.step}")

    play(tmp_path, scene, peer_copies=0)


def test_a_store_process_that_is_killed_within_a_copy_costs_that_copy_and_no_older_one(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        older = await here.save(30, "a1-1", 1)
        await on_disk(here, older)
        newer = await here.save(older.step + 60, "a1-2", 1)
        await until(lambda: len(list(disk_of(here, 0).iterdir())) == 2, here)
        kill(store_pid(here, "n0"))
        assert list(kept(here, 0)) == [older.write_id]
        last = await here.save(newer.step + 60, "a1-3", 1)
        await on_disk(here, last, [0])
        assert older.write_id in kept(here, 0)

    play(tmp_path, scene, peer_copies=0, rate=8 << 20, mib=20)  # each block but the first waits for a second


def test_files_are_the_owner_s_alone_and_go_with_a_run_that_has_succeeded(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await on_disk(here, saved)
        others = here.folder / "disk" / "toy-run-0" / "n0" / "rank-00000.0"
        others.parent.mkdir(parents=True)
        others.write_bytes(b"of another run")
        (path,) = kept(here, 0).values()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in list(path.parents)[:3]} == {0o700}
        here.send(Leave(reason="evicted"), NodeId("n1"))
        here.send(Leave(reason="the run is over", is_run_over=True), NodeId("n0"))
        for agent in here.agents.values():
            assert await asyncio.to_thread(agent.wait, 20) == 0
        assert not disk_of(here, 0).exists()
        assert saved.write_id in kept(here, 1)
        assert others.read_bytes() == b"of another run"

    play(tmp_path, scene, peer_copies=0)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
