"""How long the store process keeps a rank's memory mapped, and which files it lets a rank read itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from behemoth.agent import preparing
from behemoth.agent.memories import Memories
from behemoth.agent.preparing import files_of
from behemoth.base.ids import Rank
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import open_commit
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
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


def test_a_rank_reads_files_itself_only_when_they_are_of_its_own_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "FILES_BYTES", 0)
    store, layout = LocalStore(tmp_path), small_layout()
    record = save(store, layout, step=3, write_id="a1-1")
    assert record is not None
    opened = open_commit(store, record.ref)
    for path in (one for one in tmp_path.rglob("*") if one.is_file()):
        path.read_bytes()  # now the page cache has it
    other = Layout(mesh=Mesh(), arrays=layout.arrays)
    assert files_of(store, opened, layout, plan_rank(layout, Rank(0))) == str(tmp_path / record.prefix)
    assert files_of(store, opened, other, plan_rank(other, Rank(0))) is None
    store.close()
