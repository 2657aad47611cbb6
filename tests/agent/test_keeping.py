"""What a node has copied to its own disk, when, and what becomes of it; the store process is a fake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec import structs

from agent.stage import setup_for
from agent.told_store import ToldStore
from behemoth.agent.arenas import Arenas
from behemoth.agent.keeping import Keeping
from behemoth.agent.storewire import DiskCleared, Failed, KeepOnDisk, KeptOnDisk
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.wire.commands import RestoreFrom
from behemoth.wire.reports import DiskState
from behemoth.wire.session import Declare
from behemoth.wire.setup import LocalDisk

FIRST, SECOND, THIRD = (RestoreFrom(step=Step(step), write_id=WriteId(f"a1-{step}")) for step in (10, 20, 30))
DECLARED = Declare(layout=b"layout", digest="one", arena_bytes=4096)


class FakeStore(ToldStore[KeepOnDisk]):
    def __init__(self) -> None:
        super().__init__()
        self.num_cleared = 0
        self.troubles: list[str] = []
        """What of the disk was told to whom it concerns, in order."""

    async def keep_on_disk(self, order: KeepOnDisk, fd: int) -> KeptOnDisk | Failed:
        return await self.answered(order, fd, KeptOnDisk(job=order.job, num_bytes=1))

    async def clear_disk(self) -> DiskCleared | Failed:
        self.num_cleared += 1
        return DiskCleared(job=0)

    async def ordered(self, count: int) -> list[tuple[Rank, WriteId]]:
        return [(order.rank, order.write_id) for order in await self.first(count)]


def play(
    folder: Path,
    scene: Callable[[Keeping, FakeStore, Arenas], Awaitable[None]],
    *,
    disk: LocalDisk | None = LocalDisk(path="/disk"),  # noqa: B008 - frozen
) -> None:
    async def run() -> None:
        store, arenas = FakeStore(), Arenas()
        setup = structs.replace(setup_for(folder), local_disk=disk)
        keeping = Keeping(
            store=store,  # type: ignore[arg-type]
            arenas=arenas,
            setup=setup,
            changed=lambda: store.troubles.append(trouble(keeping)),
        )
        task = asyncio.create_task(keeping.run())
        try:
            await scene(keeping, store, arenas)
        finally:
            task.cancel()
            arenas.close()

    asyncio.run(run())


def trouble(keeping: Keeping) -> str:
    assert keeping.health.told is not None
    return keeping.health.told.trouble


def commit(keeping: Keeping, arenas: Arenas, write: RestoreFrom, *, ranks: int = 2) -> None:
    """As `saves` and `orders` do."""
    for local in range(ranks):
        memory = arenas.declare(local, Rank(4 + local), DECLARED)
        assert memory.grant(write.write_id) is not None
        memory.staged(write.write_id)
    arenas.committed(write.write_id)
    keeping.committed(write)


def test_each_rank_is_copied_once_for_each_commit(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        commit(keeping, arenas, FIRST)
        assert await store.ordered(2) == [(4, "a1-10"), (5, "a1-10")]
        keeping.committed(FIRST)
        await store.ordered(2)
        commit(keeping, arenas, SECOND)
        assert (await store.ordered(4))[2:] == [(4, "a1-20"), (5, "a1-20")]

    play(tmp_path, scene)


def test_what_a_restore_brought_back_is_copied_too(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        keeping.began(FIRST)
        assert await store.ordered(0) == []
        arenas.declare(0, Rank(4), DECLARED).restored(0, FIRST.write_id)
        keeping.restored(Rank(4))
        assert await store.ordered(1) == [(4, "a1-10")]

    play(tmp_path, scene)


def test_what_was_copied_once_is_asked_for_again_after_a_restore_which_may_have_found_it_damaged(
    tmp_path: Path,
) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        commit(keeping, arenas, FIRST)
        await store.ordered(2)
        keeping.began(FIRST)
        keeping.health.unreadable("its table of CRCs is damaged")
        store.answers, store.code = ["the disk fails"], "io-error"
        keeping.restored(Rank(4))
        assert (await store.ordered(3))[2:] == [(4, "a1-10")]
        assert trouble(keeping) == "failed"

    play(tmp_path, scene)


def test_memory_with_just_a_part_of_a_checkpoint_is_not_copied(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        keeping.began(FIRST)
        arenas.declare(0, Rank(4), DECLARED).restored(0, None)
        keeping.restored(Rank(4))
        assert await store.ordered(0) == []

    play(tmp_path, scene)


def test_a_copy_holds_no_memory_that_the_next_save_wants(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.stuck = asyncio.get_running_loop().create_future()
        commit(keeping, arenas, FIRST, ranks=1)
        await store.ordered(1)
        memory = arenas.of(0)
        assert memory is not None
        assert not any(generation.is_read for generation in memory.generations)
        assert memory.grant(SECOND.write_id) is not None
        store.let_go(1)

    play(tmp_path, scene)


def test_the_next_commit_ends_a_copy_that_is_under_way_and_the_log_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.stuck = asyncio.get_running_loop().create_future()
        commit(keeping, arenas, FIRST, ranks=1)
        await store.ordered(1)
        commit(keeping, arenas, SECOND, ranks=1)
        assert await store.ordered(2) == [(4, "a1-10"), (4, "a1-20")]

    play(tmp_path, scene)
    assert "rank 4, write a1-10 is not there: the next checkpoint was committed before" in caplog.text
    assert "raise spec.checkpoint.local_disk.rate" in caplog.text


def test_a_failure_is_logged_and_tried_again_with_the_next_news_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.answers = ["no room on the disk", ""]
        commit(keeping, arenas, FIRST)
        await store.ordered(2)
        keeping.restored(Rank(4))
        assert (await store.ordered(3))[2] == (4, "a1-10")

    play(tmp_path, scene)
    (told,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert told == "own disk: rank 4, write a1-10 is not there: no room on the disk"


def test_a_run_that_is_over_clears_the_disk_and_copies_nothing_more(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.stuck = asyncio.get_running_loop().create_future()
        commit(keeping, arenas, FIRST)
        await store.ordered(1)
        await keeping.clear()
        assert store.num_cleared == 1
        await store.ordered(1)

    play(tmp_path, scene)


def test_a_run_without_a_disk_has_nothing_copied_and_nothing_cleared(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        commit(keeping, arenas, FIRST)
        await store.ordered(0)
        await keeping.clear()
        assert store.num_cleared == 0

    play(tmp_path, scene, disk=None)


def test_a_disk_that_fails_is_told_once_and_once_that_it_works_again(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.answers = ["the disk fails", "", "the disk fails at another place"]
        commit(keeping, arenas, FIRST)
        await store.ordered(2)
        assert keeping.health.told == DiskState(trouble="failed", reason="rank 4, write a1-10: the disk fails")
        keeping.restored(Rank(4))
        await store.ordered(3)
        assert store.troubles == ["failed"]
        keeping.restored(Rank(4))
        await store.ordered(4)
        commit(keeping, arenas, SECOND)
        await store.ordered(6)
        assert store.troubles == ["failed", ""]

    play(tmp_path, scene)


def test_a_full_disk_is_another_trouble_than_one_that_fails_and_a_part_of_the_ranks_does_not_end_it(
    tmp_path: Path,
) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.answers, store.code = ["", "no room"], "no-space"
        commit(keeping, arenas, FIRST)
        await store.ordered(2)
        assert store.troubles == ["no-space"]
        store.answers, store.code = ["", "the disk fails"], "io-error"
        commit(keeping, arenas, SECOND)
        await store.ordered(4)
        assert store.troubles == ["no-space", "failed"]

    play(tmp_path, scene)


@pytest.mark.parametrize("code", ["", "cancelled", "copy-crc", "arena-empty"])
def test_what_is_not_the_disk_s_fault_is_no_trouble_of_it(tmp_path: Path, code: str) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.answers, store.code = ["memory was another", "memory was another"], code
        commit(keeping, arenas, FIRST)
        await store.ordered(2)
        assert store.troubles == []

    play(tmp_path, scene)


def test_a_disk_that_is_too_slow_for_two_checkpoints_in_a_row_is_told_even_while_it_hangs(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.stuck = asyncio.get_running_loop().create_future()
        commit(keeping, arenas, FIRST, ranks=1)
        await store.ordered(1)
        commit(keeping, arenas, SECOND, ranks=1)
        assert store.troubles == []
        store.stuck = asyncio.get_running_loop().create_future()  # in which it hangs for good
        await store.ordered(2)
        commit(keeping, arenas, THIRD, ranks=1)
        assert store.troubles == ["slow"]
        assert keeping.health.told is not None
        assert "raise spec.checkpoint.local_disk.rate" in keeping.health.told.reason

    play(tmp_path, scene)


def test_memory_that_the_next_save_took_before_it_was_copied_tells_of_a_slow_disk_too(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        store.answers, store.code = ["replaced"] * 2, "snapshot-replaced"
        commit(keeping, arenas, FIRST, ranks=1)
        await store.ordered(1)
        assert store.troubles == []
        commit(keeping, arenas, SECOND, ranks=1)
        await store.ordered(2)
        assert store.troubles == ["slow"]
        commit(keeping, arenas, THIRD, ranks=1)
        await store.ordered(3)
        assert store.troubles == ["slow", ""]

    play(tmp_path, scene)


def test_an_unreadable_copy_is_a_trouble_until_there_is_a_new_one(tmp_path: Path) -> None:
    async def scene(keeping: Keeping, store: FakeStore, arenas: Arenas) -> None:
        keeping.began(FIRST)
        arenas.declare(0, Rank(4), DECLARED).restored(0, FIRST.write_id)
        keeping.health.unreadable("its table of CRCs is damaged")
        assert store.troubles == ["unreadable"]
        keeping.restored(Rank(4))
        await store.ordered(1)
        assert store.troubles == ["unreadable", ""]

    play(tmp_path, scene)
