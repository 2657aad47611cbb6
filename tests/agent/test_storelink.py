"""A store process that hangs, as in a write to storage that does not answer, is replaced. Real processes."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from agent.stage import LIMIT_S
from behemoth.agent import storelink
from behemoth.agent.arenas import Arenas, RankMemory
from behemoth.agent.child import Child
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import Failed, OpenStore, Prepared, Written
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.spec.mesh import Mesh
from behemoth.wire.session import Declare

SOON_S = 0.2
"""In which nothing that stands still answers."""
LAYOUT = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="uint8", shape=(64,)),))


class Desk:
    """A started store process, and the prepared memory of rank 0."""

    def __init__(self, folder: Path, *, answer_limit_s: float) -> None:
        self.link = StoreLink(
            environment=os.environ,
            opening=OpenStore(job=0, url=str(folder / "store"), threads=1, num_ranks=1),
            answer_limit_s=answer_limit_s,
        )
        self.arenas = Arenas()
        size_bytes = Arena.size_bytes(plan_rank(LAYOUT, Rank(0)))
        declared = Declare(layout=LAYOUT.encode(), digest=LAYOUT.digest, arena_bytes=size_bytes)
        self.memory: RankMemory = self.arenas.declare(0, Rank(0), declared)

    async def prepare(self) -> None:
        assert isinstance(await self.link.prepare(self.memory, None), Prepared)
        self.memory.is_new = False

    def freeze(self) -> int:
        """Every thread stands still from now on, and no Cancel is read."""
        pid = self.link.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        return pid

    def write(self) -> tuple[int, asyncio.Task[Written | Failed]]:
        """Of a generation that nobody filled: a store process that lives refuses it at once."""
        job = self.link.new_job()
        writing = self.link.write(
            job,
            self.memory,
            generation=0,
            attempt=Attempt(1),
            step=Step(5),
            write_id=WriteId("a1-1"),
            following=None,
            updated_step=None,
        )
        return job, asyncio.create_task(writing)


def play(folder: Path, scene: Callable[[Desk], Awaitable[None]], *, answer_limit_s: float = SOON_S) -> None:
    async def run() -> None:
        desk = Desk(folder, answer_limit_s=answer_limit_s)
        desk.link.start()
        try:
            async with asyncio.timeout(LIMIT_S):
                await desk.prepare()
                await scene(desk)
        finally:
            desk.link.close()
            desk.arenas.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storelink, "_RESTART_PAUSE_S", 0.01)


def test_a_write_that_is_given_up_and_not_answered_ends_with_its_process_and_another_serves(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        hung = desk.freeze()
        job, writing = desk.write()
        await asyncio.sleep(0)
        desk.link.cancel(job)
        answer = await writing
        assert isinstance(answer, Failed)
        assert answer.reason == "the store process died"
        assert not Path(f"/proc/{hung}").exists()
        await desk.prepare()
        assert desk.link.pid != hung

    play(tmp_path, scene)


def test_a_preparation_that_is_abandoned_and_not_answered_does_not_hang_the_next_one(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        hung = desk.freeze()
        abandoned = asyncio.create_task(desk.prepare())
        await asyncio.sleep(0)
        abandoned.cancel()
        await desk.prepare()
        assert desk.link.pid != hung

    play(tmp_path, scene)


def test_a_write_that_is_given_up_and_answered_costs_its_process_nothing(tmp_path: Path) -> None:
    async def scene(desk: Desk) -> None:
        pid = desk.link.pid
        job, writing = desk.write()
        await asyncio.sleep(0)
        desk.link.cancel(job)
        answer = await writing
        assert isinstance(answer, Failed)
        assert "expected a snapshot in generation" in answer.reason
        assert desk.link._given_up == {}
        assert desk.link.pid == pid

    play(tmp_path, scene, answer_limit_s=LIMIT_S)


def test_a_successor_that_cannot_be_started_at_once_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = Child.start, list[str]()

    def start_but_once(module: str, *, environment: Mapping[str, str], own_session: bool) -> Child:
        if not refused:
            refused.append(module)
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(module, environment=environment, own_session=own_session)

    async def scene(desk: Desk) -> None:
        pid = desk.link.pid
        assert pid is not None
        monkeypatch.setattr(Child, "start", start_but_once)
        os.kill(pid, signal.SIGKILL)
        await desk.prepare()
        assert desk.link.pid not in (None, pid)
        assert refused == ["behemoth.wiring.store"]

    play(tmp_path, scene)
