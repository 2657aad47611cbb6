"""Who may use a generation while a write is given up: the agent's book, with a store process that never answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from behemoth.agent import saves as saves_module
from behemoth.agent.arenas import Arenas, RankMemory
from behemoth.agent.member import Member
from behemoth.agent.saves import Saves
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import Cancel, Failed, OpenStore, Write, Written
from behemoth.base.ids import Attempt, Epoch, Rank, RunUid, Step, WriteId
from behemoth.state.fence import Fence
from behemoth.wire.commands import RestoreFrom, SaveAt
from behemoth.wire.reports import ReceiptBatch, SaveBroken, SaveReached
from behemoth.wire.session import Declare, Staged, Staging, StagingFailed

FIRST, SECOND = WriteId("a1-1"), WriteId("a1-2")


class Wire:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        del descriptors
        self.sent.append(message)


class Desk:
    """One rank that has been granted generation 0 for the first save."""

    def __init__(self) -> None:
        self.arenas = Arenas()
        self.memory: RankMemory = self.arenas.declare(
            0, Rank(0), Declare(layout=b"layout", digest="digest", arena_bytes=4096)
        )
        self.store = StoreLink(environment={}, opening=OpenStore(job=0, url="file:///x", threads=1, num_ranks=1))
        self.to_store = Wire()
        self.store._channel = self.to_store  # type: ignore[assignment]
        self.told: list[object] = []
        self.saves = Saves(arenas=self.arenas, store=self.store, send=self.told.append)
        member = SimpleNamespace(rank=0, local_rank=0, channel=Wire(), is_standing=True, stall_us=0)
        self.member = cast(Member, member)
        self.saves.began([self.member])
        fence = Fence(run_uid=RunUid("run"), epoch=Epoch(1), attempt=Attempt(1))
        command = SaveAt(fence=fence, step=Step(5), write_id=FIRST, is_last=False)
        self.saves.announce(command, attempt=Attempt(1), is_slot_zero=True)
        assert self.states == ["granted", "free"]

    @property
    def states(self) -> list[str]:
        return [generation.state for generation in self.memory.generations]

    def begin_copying(self) -> None:
        self.saves.take(self.member, Staging(write_id=FIRST, generation=0, sequence=1))

    async def answer(self, reason: str = "cancelled") -> None:
        (job,) = self.store._answers
        self.store._answers[job].set_result(Failed(job=job, reason=reason, is_corrupt=False))
        await turns()

    async def write(self) -> None:
        (job,) = self.store._answers
        self.store._answers[job].set_result(Written(job=job, receipt=b"receipt"))
        await turns()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def play(scene: Callable[[Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        desk = Desk()
        await scene(desk)
        await desk.saves.close()
        desk.arenas.close()

    asyncio.run(run())


def test_a_save_that_is_given_up_before_its_write_was_sent_is_never_sent() -> None:
    async def scene(desk: Desk) -> None:
        desk.begin_copying()
        desk.saves.abort(FIRST, "given up")
        await turns()
        assert desk.to_store.sent == []
        assert desk.states == ["free", "free"]

    play(scene)


def test_a_checkpoint_is_still_found_in_memory_when_a_newer_one_was_committed_after_the_restart_was_decided() -> None:
    async def scene(desk: Desk) -> None:
        desk.memory.staged(FIRST)
        desk.memory.committed(FIRST)
        assert desk.memory.grant(SECOND) == 1
        desk.memory.staged(SECOND)
        desk.memory.committed(SECOND)
        assert desk.states == ["free", "committed"]
        assert desk.memory.source(RestoreFrom(step=Step(5), write_id=FIRST)).held_in == 0
        assert desk.memory.grant(WriteId("a1-3")) == 0
        assert desk.memory.source(RestoreFrom(step=Step(5), write_id=FIRST)).held_in is None

    play(scene)


def test_memory_that_is_still_read_is_not_given_out_until_the_store_process_answers() -> None:
    async def scene(desk: Desk) -> None:
        desk.begin_copying()
        await turns()
        desk.saves.ended()
        assert [type(order) for order in desk.to_store.sent] == [Write, Cancel]
        assert desk.states == ["granted", "free"]
        assert desk.memory._spare() == 1
        assert desk.memory.grant(SECOND) == 1
        await desk.answer()
        assert desk.states == ["free", "granted"]

    play(scene)


def test_a_cancelled_write_gives_its_memory_back_when_it_is_answered() -> None:
    async def scene(desk: Desk) -> None:
        desk.begin_copying()
        await turns()
        desk.saves.abort(FIRST, "given up")
        for memory in desk.arenas.all():
            memory.drop(FIRST)
        assert desk.states == ["granted", "free"]
        await desk.answer()
        assert desk.states == ["free", "free"]

    play(scene)


def test_receipts_are_told_once_every_rank_says_that_its_copy_is_whole() -> None:
    async def scene(desk: Desk) -> None:
        desk.begin_copying()
        await turns()
        await desk.write()
        assert desk.told == []
        desk.saves.take(desk.member, Staged(write_id=FIRST, generation=0))
        assert [type(report) for report in desk.told] == [SaveReached, ReceiptBatch]
        desk.told.clear()
        desk.saves.tell_again()
        assert [type(report) for report in desk.told] == [SaveReached, ReceiptBatch]

    play(scene)


def test_a_coordinator_that_comes_back_hears_of_a_save_that_was_given_up() -> None:
    async def scene(desk: Desk) -> None:
        desk.saves.take(desk.member, StagingFailed(write_id=FIRST, reason="no memory"))
        broken = SaveBroken(attempt=Attempt(1), write_id=FIRST, reason="rank 0, staging: no memory")
        assert desk.told == [broken]
        desk.saves.tell_again()
        assert desk.told == [broken, broken]

    play(scene)


def test_a_save_that_cannot_be_written_names_rank_stage_and_object() -> None:
    async def scene(desk: Desk) -> None:
        desk.begin_copying()
        await turns()
        await desk.answer("write steps/000000005-a1-1/model/w/c/0: no space left on device")
        told = "rank 0, writing: write steps/000000005-a1-1/model/w/c/0: no space left on device"
        assert desk.told == [SaveBroken(attempt=Attempt(1), write_id=FIRST, reason=told)]

    play(scene)


def test_a_save_whose_workers_end_names_the_ranks_that_had_not_copied_yet() -> None:
    async def scene(desk: Desk) -> None:
        others: Any = [SimpleNamespace(rank=rank, local_rank=rank, channel=Wire()) for rank in (1, 2)]
        desk.saves.began([desk.member, *others])
        save = desk.saves._saves[FIRST]
        save.num_ranks, save.staged = 3, {Rank(1)}
        desk.saves.ended()
        (broken,) = desk.told
        assert isinstance(broken, SaveBroken)
        assert broken.reason.startswith("rank 0, 2, staging: the node's workers ended before")

    play(scene)


def test_a_save_that_the_coordinator_gives_up_is_logged_with_the_stage_of_each_rank(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(desk: Desk) -> None:
        others: Any = [
            SimpleNamespace(rank=rank, local_rank=rank, channel=Wire(), is_standing=True) for rank in (1, 2, 3)
        ]
        desk.saves.began([desk.member, *others])
        save = desk.saves._saves[FIRST]
        save.staged, save.receipts = {Rank(1), Rank(2)}, {Rank(2): b"receipt"}
        desk.saves.abort(FIRST, "no commit within 600 s")
        stages = "rank 0 staging, rank 1 writing, rank 2 written, rank 3 without a half of the staging memory"
        assert f"save a1-1 of step 5 given up: no commit within 600 s; {stages}" in caplog.text

    play(scene)


def test_receipts_of_many_chunks_go_up_in_several_frames_of_which_the_first_has_the_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(desk: Desk) -> None:
        monkeypatch.setattr(saves_module, "MAX_BATCH_BYTES", 4)
        save = desk.saves._saves[FIRST]
        save.num_ranks, save.layout = 3, b"layout"
        save.staged = {Rank(rank) for rank in range(3)}
        save.receipts = {Rank(0): b"abc", Rank(1): b"de", Rank(2): b"fg"}
        desk.saves.tell_receipts(FIRST)
        batches = [report for report in desk.told if isinstance(report, ReceiptBatch)]
        assert [(batch.receipts, batch.layout) for batch in batches] == [((b"abc",), b"layout"), ((b"de", b"fg"), None)]
        assert {batch.num_ranks for batch in batches} == {3}

    play(scene)
