"""What scenes on a stage of agents begin with, and whom they meet there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from agent.stage import Stage, descendants, open_memory, stage
from behemoth.base.ids import NodeId, Rank, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.wire.commands import RestoreFrom, StopGang
from behemoth.wire.reports import RanksGone, RanksRestored
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
