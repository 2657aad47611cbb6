"""What a copy to the own disk takes, and what it leaves alone: room, budget, files of others, and saves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.fake_pace import FakePace
from agent.peers.staged import LAYOUT, NUM_RANKS, StagedRank, staged_rank
from behemoth.agent import pace
from behemoth.agent.budget import OVER_DISK_BUDGET
from behemoth.agent.memories import Memories
from behemoth.agent.own_disk import OwnDisk
from behemoth.agent.storewire import DiskService, KeepOnDisk, KeptOnDisk
from behemoth.base.errors import Conflict, Invalid, NotFound, Unavailable
from behemoth.base.ids import Rank, RunUid, Step, WriteId
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.snapshot_format import file_bytes
from behemoth.ports import WritesRanges
from behemoth.testing.faults import FaultyStore, lost_answer
from behemoth.testing.store import MemoryStore, contents
from behemoth.wire.setup import LocalDisk

FOLDER = "toy-run-1/n0"
MEMORIES = Memories(num_ranks=NUM_RANKS)


@pytest.fixture
def rank() -> Iterator[StagedRank]:
    staged = staged_rank(MEMORIES)
    staged.save(0, "a1-1", 7)
    yield staged
    staged.close()


def disk_on(
    store: WritesRanges,
    folder: Path,
    *,
    budget: int | None = None,
    rate: int | None = None,
    is_writing: Callable[[], bool] = lambda: False,
) -> OwnDisk:
    disk = LocalDisk(path=str(folder / "disk"), rate_bytes_per_s=rate, budget_bytes=budget)
    service = DiskService(disk=disk, folder=FOLDER, run_uid=RunUid("run-1"))
    return OwnDisk(service, store, MEMORIES, num_ranks=NUM_RANKS, is_writing=is_writing)


def keep(
    disk: OwnDisk, rank: StagedRank, write_id: str = "a1-1", step: int = 7, *, cancelled: Callable[[], bool] = bool
) -> KeptOnDisk:
    order = KeepOnDisk(job=1, rank=rank.rank, layout=LAYOUT.encode(), write_id=WriteId(write_id), step=Step(step))
    return disk.keep(order, rank.fd, cancelled=cancelled)


def test_a_write_is_copied_once(tmp_path: Path, rank: StagedRank) -> None:
    disk = disk_on(MemoryStore(), tmp_path)
    assert keep(disk, rank) == KeptOnDisk(job=1, num_bytes=rank.plan.data_bytes)
    assert keep(disk, rank) == KeptOnDisk(job=1, num_bytes=0)
    assert list(disk.snapshot(rank.plan, WriteId("a1-1"), Step(7)).crcs()) == rank.arena.crcs(0).tolist()


@pytest.mark.parametrize(("write_id", "step"), [("a1-2", 7), ("a1-1", 8)])
def test_what_memory_does_not_hold_is_not_copied(tmp_path: Path, rank: StagedRank, write_id: str, step: int) -> None:
    store = MemoryStore()
    with pytest.raises(NotFound, match=f"memory of rank 0: expected a snapshot of write {write_id}, got none"):
        keep(disk_on(store, tmp_path), rank, write_id, step)
    assert contents(store) == {}


def test_files_of_ranks_that_the_node_has_no_more_go_and_those_of_others_stay(tmp_path: Path, rank: StagedRank) -> None:
    store = MemoryStore()
    own, others = [f"{FOLDER}/rank-00001.0"], ["toy-run-1/n1/rank-00004.0", "toy-run-2/n0/rank-00004.0"]
    for key in (*own, *others, f"{FOLDER}/rank-00002.1", f"{FOLDER}/rank-00004.0"):
        store.create(key, b"x")
    disk = disk_on(store, tmp_path)
    keep(disk, rank)
    assert sorted(contents(store)) == sorted([*own, *others, f"{FOLDER}/rank-00000.0"])
    disk.clear()
    assert sorted(contents(store)) == others


def test_a_disk_without_room_is_not_begun_to_be_filled_and_says_so_with_numbers(
    tmp_path: Path, rank: StagedRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, needed, free = MemoryStore(), file_bytes(rank.plan), {"bytes": 0}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free["bytes"], path=path))
    disk = disk_on(store, tmp_path)
    free["bytes"] = needed - 1
    with pytest.raises(Unavailable, match=r"own disk .*/disk: expected .* free for rank 0, got ") as caught:
        keep(disk, rank)
    assert caught.value.code == "no-space"
    assert "saves and training go on without it" in caught.value.hint
    assert contents(store) == {}
    free["bytes"] = needed
    keep(disk, rank)
    rank.save(1, "a1-2", 8)
    keep(disk, rank, "a1-2", 8)
    free["bytes"] = 0  # both files are there now: the next one fills the older
    rank.save(0, "a1-3", 9)
    assert keep(disk, rank, "a1-3", 9).num_bytes == rank.plan.data_bytes


def test_the_budget_counts_two_files_of_each_rank_of_the_node(tmp_path: Path) -> None:
    needed = sum(2 * file_bytes(plan_rank(LAYOUT, Rank(one))) for one in range(NUM_RANKS))
    disk_on(MemoryStore(), tmp_path, budget=needed).require_budget(LAYOUT, Rank(1))
    disk_on(MemoryStore(), tmp_path).require_budget(LAYOUT, Rank(1))
    with pytest.raises(
        Invalid, match=r"own disk: expected at most .* on a node, got .* for 2 files of each of 2"
    ) as caught:
        disk_on(MemoryStore(), tmp_path, budget=needed - 1).require_budget(LAYOUT, Rank(1))
    assert caught.value.code == OVER_DISK_BUDGET


def test_a_copy_waits_for_saves_keeps_to_its_rate_and_ends_when_it_is_told_to(
    tmp_path: Path, rank: StagedRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakePace()
    monkeypatch.setattr(pace, "time", time)
    looks = iter([True, True, True, *[False] * 1000])
    store = MemoryStore()
    keep(disk_on(store, tmp_path, rate=rank.plan.data_bytes // 4, is_writing=lambda: next(looks)), rank)
    burst_s = 1.0
    assert time.slept[:3] == [pace.LOOK_S] * 3
    assert sum(time.slept[3:]) == pytest.approx(4 - burst_s)
    rank.save(1, "a1-2", 8)
    with pytest.raises(Conflict, match="rank 0 to the own disk: cancelled"):
        keep(disk_on(store, tmp_path), rank, "a1-2", 8, cancelled=lambda: True)
    assert list(disk_on(store, tmp_path).snapshot(rank.plan, WriteId("a1-1"), Step(7)).crcs())


def test_a_damaged_copy_that_cannot_be_dropped_is_no_error(
    tmp_path: Path, rank: StagedRank, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    keep(disk_on(store, tmp_path), rank)
    broken = disk_on(FaultyStore(store, lost_answer(0)), tmp_path)
    broken.distrust(rank.plan, WriteId("a1-1"), Unavailable("the disk was slow"))
    assert caplog.text == ""
    broken.distrust(rank.plan, WriteId("a1-1"), Conflict("expected another CRC"))
    assert "rank 0, write a1-1 stays, though damaged: connection reset" in caplog.text
