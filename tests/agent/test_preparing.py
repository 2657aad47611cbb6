"""How long the store process keeps a rank's memory mapped, and which files it lets a rank read itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from agent.lone_node import lone_preparing
from behemoth.agent import preparing
from behemoth.agent.budget import OVER_BUDGET
from behemoth.agent.memories import Memories
from behemoth.agent.preparing import Preparing, RankFiles, files_of
from behemoth.agent.storewire import Budget, Prepare, Prepared, RestoreSource
from behemoth.base.errors import Invalid
from behemoth.base.ids import Rank, Slot
from behemoth.checkpoint import gathering
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.conversion import Intake
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.gathering import SnapshotSource
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.reader import read_rank_into
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from checkpoint.other_memory import OtherMemory, payload
from checkpoint.saved_checkpoint import save, small_layout

RANKS = 4


def layout_of(size: int) -> Layout:
    return Layout(
        mesh=Mesh(dp=RANKS, edp=RANKS), arrays=(ArraySpec(name="w", dtype="uint8", shape=(size,), flat_over="dp"),)
    )


def mapped_memories() -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split("memfd:")[1].split()[0] for line in lines if "memfd:store-test" in line]


def test_memory_that_the_agent_has_replaced_does_not_stay_mapped() -> None:
    memories = Memories(num_ranks=2)
    for turn, (rank, size) in enumerate([(0, 64), (1, 64), (0, 128), (2, 128), (3, 128)]):
        fd = os.memfd_create(f"store-test-{turn}", os.MFD_ALLOW_SEALING)
        plan = plan_rank(layout_of(size), Rank(rank))
        arena = memories.mapped(Rank(rank), fd, new=plan)
        assert memories.mapped(Rank(rank), fd) is arena
        os.close(fd)
        del arena
    assert sorted(mapped_memories()) == ["store-test-3", "store-test-4"]


def test_memory_beyond_the_budget_is_refused_with_the_numbers_before_any_is_formatted() -> None:
    layout = layout_of(4 << 20)
    size_bytes = Arena.size_bytes(plan_rank(layout, Rank(0)))
    memories = Memories(num_ranks=1)
    unasked: Any = pytest.fail
    preparing = Preparing(
        memories, store=unasked, peer=unasked, shared=unasked, threads=1, ranks_per_node=1, run_name="toy"
    )
    fd = os.memfd_create("budget-test", os.MFD_ALLOW_SEALING)

    def prepare(limit_bytes: int) -> Prepared:
        budget = Budget(limit_bytes=limit_bytes, own=(Rank(0),), copies=(Rank(1), Rank(2)))
        order = Prepare(job=1, rank=Rank(0), layout=layout.encode(), is_new=True, source=None, budget=budget)
        return preparing.prepare(order, fd)

    with pytest.raises(
        Invalid, match=r"expected at most 3MiB on a node, got .*: .* for 1 ranks and .* for copies of 2"
    ):
        prepare(3 << 20)
    with pytest.raises(Invalid) as caught:
        prepare(3 * size_bytes - 1)
    assert caught.value.code == OVER_BUDGET
    assert os.fstat(fd).st_size == 0
    assert prepare(3 * size_bytes).origin == "nothing"
    assert os.fstat(fd).st_size == size_bytes
    os.close(fd)


def test_a_rank_reads_files_itself_only_when_they_are_of_its_own_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "FILES_BYTES", 0)
    store, layout = LocalStore(tmp_path), small_layout()
    record = save(store, layout, step=3, write_id="a1-1")
    assert record is not None
    opened = open_commit(store, record.ref)
    other = Layout(mesh=Mesh(), arrays=layout.arrays)
    for share, is_cold in ((0.95, False), (0.85, True)):
        monkeypatch.setattr(LocalStore, "cached_share", lambda _store, _ranges, share=share: share)
        found = files_of(store, opened, layout, plan_rank(layout, Rank(0)))
        assert found == RankFiles(folder=str(tmp_path / record.prefix), are_cold=is_cold)
    assert files_of(store, opened, other, plan_rank(other, Rank(0))) is None
    monkeypatch.undo()
    monkeypatch.setattr(preparing, "FILES_BYTES", 0)
    next((tmp_path / record.prefix).rglob("c")).rename(tmp_path / "elsewhere")
    assert files_of(store, opened, layout, plan_rank(layout, Rank(0))) is None
    store.close()


ARRAYS = tuple(ArraySpec(name=f"w{number}", dtype="uint8", shape=(3000,), flat_over="dp") for number in range(5))


class OneRank:
    """A rank of five arrays of 3,000 bytes, saved in a directory, perhaps by more ranks."""

    def __init__(
        self, folder: Path, peer: Callable[[RankPlan, bytes], SnapshotSource], *, saved_on: Mesh | None = None
    ) -> None:
        self.store = LocalStore(folder)
        self.layout = Layout(mesh=Mesh(), arrays=ARRAYS)
        self.plan = plan_rank(self.layout, Rank(0))
        record = save(self.store, Layout(mesh=saved_on or Mesh(), arrays=ARRAYS), step=3, write_id="a1-1")
        assert record is not None
        self.source = RestoreSource(step=record.step, write_id=record.write_id, held_in=None, spare=0)
        data = bytearray(self.plan.data_bytes)
        opened = open_commit(self.store, record.ref)
        read_rank_into(self.store, opened, self.layout, self.plan, memoryview(data), threads=1)
        self.data = bytes(data)
        self.fd = os.memfd_create("one-rank-test", os.MFD_ALLOW_SEALING)
        self.memories = Memories(num_ranks=1)
        self.preparing = Preparing(
            self.memories,
            store=lambda: self.store,
            peer=lambda *_: peer(self.plan, self.data),
            shared=lambda: None,
            threads=1,
            ranks_per_node=1,
            run_name="test",
        )

    @property
    def opening_bytes(self) -> int:
        """Of the commit and its index."""
        sizes = {info.key: info.size_bytes for info in self.store.list("")}
        return sum(size for key, size in sizes.items() if key.startswith("commits/") or key.endswith("/index"))

    def prepared(self, source: RestoreSource) -> Prepared:
        """Its memory must hold what was saved then."""
        order = Prepare(job=1, rank=Rank(0), layout=self.layout.encode(), is_new=True, source=source)
        prepared = self.preparing.prepare(order, self.fd)
        arena = self.memories.mapped(Rank(0), self.fd)
        assert prepared.generation is not None
        assert arena.snapshot(prepared.generation).is_verified
        held = arena.data(prepared.generation)
        assert all(payload(held, span) == payload(self.data, span) for span in self.plan.spans)
        return prepared

    def close(self) -> None:
        os.close(self.fd)
        self.store.close()


@pytest.mark.parametrize("num_blocks", range(5))
def test_what_a_holder_gave_before_it_was_lost_is_not_read_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_blocks: int
) -> None:
    monkeypatch.setattr(gathering, "BLOCK_BYTES", 4096)  # one array
    rank = OneRank(tmp_path, lambda plan, data: OtherMemory(plan, data=data, ends_after=num_blocks))
    prepared = rank.prepared(structs.replace(rank.source, holders=(Slot(1),)))
    assert (prepared.origin, prepared.peer_bytes) == ("several" if num_blocks else "store", 3000 * num_blocks)
    assert prepared.store_bytes == rank.opening_bytes + (5 - num_blocks) * (3000 + TRAILER_BYTES)
    assert prepared.missed == "gone"
    rank.close()


@pytest.mark.parametrize(("ends_after", "origin"), [(5, "peer"), (2, "store")])
def test_what_a_holder_has_of_another_mesh_s_checkpoint_is_used_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_after: int, origin: str
) -> None:
    """Its spans are no ranges of the commit's chunks, which could be read for it."""
    monkeypatch.setattr(gathering, "BLOCK_BYTES", 4096)  # one array
    rank = OneRank(
        tmp_path,
        lambda plan, data: OtherMemory(plan, data=data, ends_after=ends_after),
        saved_on=Mesh(dp=2, edp=2),
    )
    prepared = rank.prepared(structs.replace(rank.source, holders=(Slot(1),)))
    assert (prepared.origin, prepared.peer_bytes) == (origin, 3000 * ends_after)
    chunk_bytes = sum(3000 + TRAILER_BYTES for _ in ARRAYS)
    assert prepared.store_bytes == (rank.opening_bytes + chunk_bytes if origin == "store" else 0)
    rank.close()


@pytest.mark.parametrize("has_copy", [True, False])
@pytest.mark.parametrize("damaged", [{2}, {0, 4}, set(range(5))], ids=["one", "two", "all"])
def test_of_a_rank_s_own_memory_only_what_is_damaged_comes_from_elsewhere(
    tmp_path: Path, damaged: set[int], has_copy: bool
) -> None:
    rank = OneRank(tmp_path, lambda plan, data: OtherMemory(plan, data=data))
    assert rank.prepared(rank.source).store_bytes == rank.opening_bytes + 5 * (3000 + TRAILER_BYTES)
    memory = rank.memories.mapped(Rank(0), rank.fd).data(0)
    for number in damaged:
        memory[rank.plan.spans[number].arena_offset + 7] ^= 1
    again = structs.replace(rank.source, held_in=0, spare=1, must_read=True, holders=(Slot(1),) if has_copy else ())
    prepared = rank.prepared(again)
    only = "peer" if has_copy else "store"
    assert (prepared.generation, prepared.origin) == (1, "several" if len(damaged) < 5 else only)
    assert prepared.peer_bytes == (3000 * len(damaged) if has_copy else 0)
    assert prepared.store_bytes == (0 if has_copy else len(damaged) * (3000 + TRAILER_BYTES))
    assert ("rank 0, write a1-1, array 'w" in prepared.missed) is not has_copy
    rank.close()


@pytest.mark.parametrize("files_bytes", [0, 64 << 20])
def test_what_a_program_leaves_out_of_a_checkpoint_comes_back_from_the_run_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_bytes: int
) -> None:
    """Of the very same arrays: whose they are is told by the run that its commit names."""
    monkeypatch.setattr(preparing, "FILES_BYTES", files_bytes)
    store, layout = LocalStore(tmp_path), small_layout()
    record = save(store, layout, step=3, write_id="a1-1")  # by run "test"
    assert record is not None
    for path in (one for one in tmp_path.rglob("*") if one.is_file()):
        path.read_bytes()  # now the page cache has it

    def prepared(run_name: str) -> Prepared:
        here = lone_preparing(store, ranks_per_node=2, run_name=run_name)
        fd = os.memfd_create("intake-test", os.MFD_ALLOW_SEALING)
        order = Prepare(
            job=1,
            rank=Rank(0),
            layout=layout.encode(),
            is_new=True,
            source=RestoreSource(step=record.step, write_id=record.write_id, held_in=None, spare=0),
            intake=Intake(only=("model/*",)).encode(),
        )
        try:
            return here.prepare(order, fd)
        finally:
            os.close(fd)

    own = prepared("test")
    assert (own.left_out, own.origin) == ((), "store" if files_bytes else "files")
    other = prepared("other")
    left_out = tuple(layout.positions[name] for name in ("optim/m", "state/count"))
    assert (other.left_out, other.origin) == (left_out, "store")
    store.close()
