"""Four nodes, copies in each other's memory, and whoever is killed whenever: where the state comes from. Real
processes; what was read from the store is counted where it is read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs

from agent.stage import LIMIT_S, Stage, kill, open_memory, setup_for, stage
from agent.test_agent_peers import store_pid
from behemoth.base.errors import Corrupt, NotFound
from behemoth.base.ids import NodeId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.arena_format import NUM_GENERATIONS
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.reports import RanksRestored, Report
from behemoth.wire.setup import LocalDisk, Setup

NODES = 4
MIB = 2
SLOW_BYTES_PER_S = MIB << 19
"""A pull takes some seconds, nearly all of them waiting with its memory half given up."""


@dataclass(frozen=True)
class Sources:
    """Ranks by where their state came from."""

    memory: int
    peer: int
    peer_bytes: int
    store_bytes: int
    missed: str
    several: int = 0
    disk: int = 0

    @property
    def store(self) -> int:
        return NODES - self.memory - self.peer - self.several - self.disk


def play(
    folder: Path,
    scene: Callable[[Stage], Awaitable[None]],
    *,
    rate: int | None = None,
    domain_nodes: int = 1,
    program: str = "train_shares",
    local_disk: LocalDisk | None = None,
) -> None:
    async def run() -> None:
        setup = setup_of(folder, rate, program)
        setup = structs.replace(setup, peer_stride=domain_nodes, local_disk=local_disk)
        async with stage(folder, setup, num_agents=NODES) as here:
            here.start_gang(1)
            await all_restored(here, 1)
            await scene(here)

    asyncio.run(run())


def setup_of(folder: Path, rate: int | None, program: str) -> Setup:
    return setup_for(folder, program, ranks=1, nodes=NODES, peer_copies=1, peer_rate=rate, mib=MIB)


def holder_of(slot: int) -> int:
    """With one node in each domain."""
    return (slot + 1) % NODES


def copied_ranks(here: Stage, write: RestoreFrom) -> set[int]:
    """Those of which any node has a whole copy."""
    found = set()
    for node in range(NODES):
        for rank in range(NODES):
            arena = copy_memory(here, node, rank)
            if arena is not None and any(one.write_id == write.write_id for one in arena.held()):
                found.add(rank)
    return found


def copy_memory(here: Stage, node: int, rank: int) -> Arena | None:
    """The memory in which the agent of `node` keeps the copy of `rank`."""
    fd = open_memory(here.agents[NodeId(f"n{node}")].pid, f"behemoth-copy-{rank}")
    if fd is None:
        return None
    try:
        return Arena.open(fd)
    except Corrupt:  # it is being formatted
        return None
    finally:
        os.close(fd)


def is_copied(here: Stage, ward: int, write: RestoreFrom) -> bool:
    arena = copy_memory(here, holder_of(ward), ward)
    return arena is not None and any(one.is_verified and one.write_id == write.write_id for one in arena.held())


def is_being_copied(here: Stage, ward: int, number: int) -> bool:
    """Whether filling `number` of the holder's memory has begun and has not ended."""
    arena = copy_memory(here, holder_of(ward), ward)
    for generation in range(NUM_GENERATIONS) if arena is not None else ():
        try:
            if arena is not None and arena.sequence(generation) == number:
                return arena.sealed(generation, number) is None
        except NotFound:
            continue
    return False


async def until(is_true: Callable[[], bool], here: Stage) -> None:
    try:
        async with asyncio.timeout(LIMIT_S):
            while not is_true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(here.story()) from None


async def copied(here: Stage, write: RestoreFrom, wards: Sequence[int] = range(NODES)) -> None:
    await until(lambda: all(is_copied(here, ward, write) for ward in wards), here)


async def all_restored(here: Stage, attempt: int) -> list[RanksRestored]:
    """The word of each node that its ranks stand."""

    def all_told(heard: Sequence[tuple[NodeId, Report]]) -> list[RanksRestored] | None:
        told = [report for _, report in heard if isinstance(report, RanksRestored) and report.attempt == attempt]
        return told if len(told) == NODES else None

    return await here.wait_until(all_told)


async def restored(here: Stage, attempt: int, write: RestoreFrom) -> Sources:
    """Start the attempt; every rank must hold the bytes of the write's step."""
    here.start_gang(attempt, restore=write)
    told = await all_restored(here, attempt)
    for rank in range(NODES):
        await here.logged(attempt, rank, f"restored {write.step} {float(write.step)} {float(write.step)}")
    return Sources(
        memory=sum(one.num_from_memory for one in told),
        peer=sum(one.num_from_peer for one in told),
        peer_bytes=sum(one.peer_bytes for one in told),
        store_bytes=sum(one.store_bytes for one in told),
        missed=" ".join(one.missed for one in told if one.missed),
        several=sum(one.num_from_several for one in told),
        disk=sum(one.num_from_disk for one in told),
    )


def test_any_node_may_be_lost_and_nothing_is_read_from_the_store(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        for attempt, node in enumerate(range(NODES), start=2):
            await copied(here, saved)  # what the node before held is held again
            await here.replace_agents(node)
            expected = Sources(memory=NODES - 1, peer=1, peer_bytes=MIB << 20, store_bytes=0, missed="")
            assert await restored(here, attempt, saved) == expected
            if node == 1:
                saved = await here.save(saved.step + 60, "a3-2", attempt)

    play(tmp_path, scene)


def test_a_node_that_is_lost_with_its_holder_gets_its_state_from_the_store_and_says_why(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await copied(here, saved)
        await here.replace_agents(1, holder_of(1))
        sources = await restored(here, 2, saved)
        assert (sources.memory, sources.peer, sources.store) == (2, 1, 1)
        assert sources.peer_bytes == MIB << 20
        assert MIB << 20 <= sources.store_bytes < (NODES * MIB << 20) * 5 // 4  # its chunk is read whole
        assert (
            sources.missed
            == f"rank 1: node n2: memory of rank 1: expected a snapshot of write {saved.write_id}, got none"
        )

    play(tmp_path, scene)


def test_of_a_node_that_is_lost_with_its_holder_the_store_gives_only_what_no_replica_has(tmp_path: Path) -> None:
    share_bytes = weight_bytes = MIB << 20
    chunk_bytes = NODES * share_bytes + TRAILER_BYTES  # all shares lie in one, which is read whole

    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await copied(here, saved)
        await here.replace_agents(3)
        expected = Sources(memory=3, peer=1, peer_bytes=weight_bytes + share_bytes, store_bytes=0, missed="")
        assert await restored(here, 2, saved) == expected
        await copied(here, saved)
        await here.replace_agents(1, holder_of(1))
        checkpoints = tmp_path / "checkpoints"
        opened = [*checkpoints.glob("commits/*.json"), *checkpoints.glob("steps/*/index")]
        assert await restored(here, 3, saved) == Sources(
            memory=2,
            peer=1,
            several=1,
            peer_bytes=2 * weight_bytes + share_bytes,
            store_bytes=chunk_bytes + sum(path.stat().st_size for path in opened),
            missed=f"rank 1: node n2: memory of rank 1: expected a snapshot of write {saved.write_id}, got none",
        )

    play(tmp_path, scene, program="train_replicas")


@pytest.mark.longer
def test_all_nodes_of_a_failure_domain_may_be_lost_at_once(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await until(lambda: copied_ranks(here, saved) == set(range(NODES)), here)
        await here.replace_agents(2, 3)
        expected = Sources(memory=2, peer=2, peer_bytes=2 * MIB << 20, store_bytes=0, missed="")
        assert await restored(here, 2, saved) == expected

    play(tmp_path, scene, domain_nodes=2)


@pytest.mark.longer
def test_worker_restarts_need_no_peer(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        assert await restored(here, 2, saved) == Sources(NODES, 0, 0, 0, "")

    play(tmp_path, scene)


@pytest.mark.longer
def test_a_holder_whose_store_process_is_killed_within_a_pull_has_the_copy_in_the_end(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await until(lambda: is_being_copied(here, 0, 1), here)
        kill(store_pid(here, "n1"))
        await copied(here, saved)
        await here.replace_agents(0)
        assert (await restored(here, 2, saved)).store_bytes == 0

    play(tmp_path, scene, rate=SLOW_BYTES_PER_S)


@pytest.mark.longer
def test_a_holder_that_is_lost_within_a_pull_is_replaced_by_one_that_pulls_again(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await until(lambda: is_being_copied(here, 0, 1), here)
        await here.replace_agents(holder_of(0))
        assert (await restored(here, 2, saved)).memory == NODES - 1
        await copied(here, saved)
        await here.replace_agents(0)
        assert (await restored(here, 3, saved)).store_bytes == 0

    play(tmp_path, scene, rate=SLOW_BYTES_PER_S)


@pytest.mark.longer
def test_workers_that_restart_within_a_pull_do_not_end_it(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        saved = await here.save(30, "a1-1", 1)
        await until(lambda: is_being_copied(here, 2, 1), here)
        assert (await restored(here, 2, saved)).memory == NODES
        await copied(here, saved)
        arena = copy_memory(here, holder_of(2), 2)
        assert arena is not None
        assert [one.sequence for one in arena.held()] == [1]

    play(tmp_path, scene, rate=SLOW_BYTES_PER_S)


@pytest.mark.longer
def test_a_ward_that_is_killed_within_a_pull_leaves_the_older_copy_whole(tmp_path: Path) -> None:
    async def scene(here: Stage) -> None:
        older = await here.save(30, "a1-1", 1)
        await copied(here, older)
        newer = await here.save(older.step + 60, "a1-2", 1)
        await until(lambda: is_being_copied(here, 3, 2), here)
        assert not is_copied(here, 3, newer)
        await here.replace_agents(3)
        sources = await restored(here, 2, older)
        assert (sources.peer, sources.store_bytes) == (1, 0)
        assert (
            f"memory of rank 3: expected a snapshot of write {newer.write_id}"
            in (await restored(here, 3, newer)).missed
        )

    play(tmp_path, scene, rate=SLOW_BYTES_PER_S)
