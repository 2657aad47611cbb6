"""What a node pulls, when, and what it keeps; the store process is a fake that answers as it is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec import structs

from agent.stage import RUN, setup_for
from agent.told_store import ToldStore
from behemoth.agent import copies as copies_module
from behemoth.agent.copies import Copies
from behemoth.agent.storewire import Failed, Pull, Pulled
from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, Slot, Step, WriteId
from behemoth.state.fence import Fence
from behemoth.wire.commands import PeerPlace, RestoreFrom, StartGang
from behemoth.wire.session import Declare

FIRST, SECOND = (RestoreFrom(step=Step(step), write_id=WriteId(f"a1-{step}")) for step in (10, 20))
DECLARED = Declare(layout=b"layout", digest="one", arena_bytes=4096)


class FakeStore(ToldStore[Pull]):
    def __init__(self) -> None:
        super().__init__()
        self.let_go_of: list[int] = []
        self.kept: list[tuple[Rank, ...]] = []

    async def pull(self, order: Pull, fd: int) -> Pulled | Failed:
        return await self.answered(order, fd, Pulled(job=order.job, num_bytes=1))

    def let_go(self, job: int) -> None:
        self.let_go_of.append(job)
        super().let_go(job)

    def keep_copies(self, ranks: object) -> None:
        self.kept.append(tuple(ranks))  # type: ignore[arg-type]

    async def pulled(self, count: int) -> list[tuple[Slot, Rank, WriteId]]:
        return [(order.slot, order.rank, order.write_id) for order in await self.first(count)]


def table(restore: RestoreFrom | None, *, domains: tuple[int, ...] = (0, 1, 2), attempt: int = 1) -> StartGang:
    return StartGang(
        fence=Fence(run_uid=RUN, epoch=Epoch(1), attempt=Attempt(attempt)),
        nodes=tuple(NodeId(f"n{slot}") for slot in range(len(domains))),
        master_host="",
        master_port=0,
        restore=restore,
        peers=tuple(PeerPlace(host="h", port=1, domain=domain) for domain in domains),
    )


def play(
    folder: Path, scene: Callable[[Copies, FakeStore], Awaitable[None]], *, peer_copies: int = 1, ranks: int = 2
) -> None:
    async def run() -> None:
        store = FakeStore()
        setup = structs.replace(setup_for(folder, ranks=ranks), peer_copies=peer_copies)
        copies = Copies(store=store, setup=setup)  # type: ignore[arg-type]
        task = asyncio.create_task(copies.run())
        try:
            await scene(copies, store)
        finally:
            task.cancel()
            copies.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(copies_module, "LONGEST_PAUSE_S", 0.002)


def test_a_node_pulls_each_rank_of_its_ward_once_for_each_commit(tmp_path: Path) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        copies.began(table(None), Slot(1))
        copies.declared(DECLARED)
        copies.declared(DECLARED)
        copies.committed(FIRST)
        assert await store.pulled(2) == [(0, 0, "a1-10"), (0, 1, "a1-10")]
        copies.committed(SECOND)
        assert (await store.pulled(4))[2:] == [(0, 0, "a1-20"), (0, 1, "a1-20")]
        assert [share.rank for share, _ in copies.shared()] == [0, 1]

    play(tmp_path, scene)


def test_an_attempt_that_restores_is_copied_from_its_start(tmp_path: Path) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        copies.began(table(FIRST, attempt=2), Slot(2))
        copies.declared(DECLARED)
        assert await store.pulled(1) == [(1, 1, "a1-10")]
        assert copies.asked() == (0,)

    play(tmp_path, scene, ranks=1)


def test_what_a_ward_does_not_have_yet_is_asked_for_again_and_the_others_meanwhile(tmp_path: Path) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        store.answers = ["not there yet", "", "still not there"]
        copies.began(table(FIRST), Slot(1))
        copies.declared(DECLARED)
        assert [rank for _, rank, _ in await store.pulled(4)] == [0, 1, 0, 0]

    play(tmp_path, scene)


def test_a_newer_commit_ends_a_pull_that_is_under_way(tmp_path: Path) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        store.stuck = asyncio.get_running_loop().create_future()
        copies.began(table(FIRST), Slot(1))
        copies.declared(DECLARED)
        await store.pulled(1)
        copies.committed(SECOND)
        assert store.let_go_of == [1]
        assert [write_id for _, _, write_id in await store.pulled(2)] == ["a1-10", "a1-20"]

    play(tmp_path, scene, ranks=1)


def test_a_new_attempt_that_restores_the_same_write_leaves_its_copies_as_they_are(tmp_path: Path) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        copies.began(table(FIRST), Slot(1))
        copies.declared(DECLARED)
        await store.pulled(1)
        copies.began(table(FIRST, attempt=2), Slot(1))
        copies.declared(DECLARED)
        assert len(await store.pulled(1)) == 1

    play(tmp_path, scene, ranks=1)


def test_copies_of_a_former_ward_stay_until_the_next_commit_and_then_give_their_memory_back(tmp_path: Path) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        copies.began(table(FIRST), Slot(1))
        copies.declared(DECLARED)
        await store.pulled(1)
        copies.began(table(FIRST, domains=(1, 1, 2), attempt=2), Slot(1))  # slot 2 holds for slot 0 now
        ((share, fd),) = copies.shared()
        assert share.rank == 0
        copies.committed(SECOND)
        assert copies.shared() == []
        assert store.kept == [()]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    play(tmp_path, scene, ranks=1)


def test_another_layout_gets_other_memory(tmp_path: Path) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        copies.began(table(FIRST), Slot(1))
        copies.declared(DECLARED)
        await store.pulled(1)
        ((_, before),) = copies.shared()
        inode = os.fstat(before).st_ino
        copies.declared(structs.replace(DECLARED, digest="two"))
        await store.pulled(2)
        ((_, after),) = copies.shared()
        assert os.fstat(after).st_ino != inode

    play(tmp_path, scene, ranks=1)


@pytest.mark.parametrize(("slot", "peer_copies"), [(None, 1), (Slot(1), 0)])
def test_a_spare_and_a_run_without_copies_hold_nothing(tmp_path: Path, slot: Slot | None, peer_copies: int) -> None:
    async def scene(copies: Copies, store: FakeStore) -> None:
        copies.began(table(FIRST), slot)
        copies.declared(DECLARED)
        copies.committed(SECOND)
        assert await store.pulled(0) == []
        assert copies.asked() == ()

    play(tmp_path, scene, peer_copies=peer_copies)
