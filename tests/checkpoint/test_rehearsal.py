"""A restore that is thrown away reads what a restore reads, and finds what it would find."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from behemoth.base.errors import Corrupt, NotFound, Unavailable
from behemoth.base.ids import Rank
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.on_mesh import on_mesh
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.over_read import over_read
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_rank_into
from behemoth.checkpoint.rehearsal import Rehearsal, rehearse
from behemoth.checkpoint.wrapper_store import WrapperStore
from behemoth.ports import ObjectStore, Part
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, save, toy_layout

MESHES = [Mesh(tp=2, dp=2, ep=2, edp=2), Mesh(), Mesh(tp=4, edp=4), Mesh(dp=3, pp=2, edp=3), Mesh(tp=3, dp=2, ep=6)]


def saved() -> tuple[MemoryStore, Commit]:
    store, layout = MemoryStore(), toy_layout()
    return store, open_commit(store, save(store, layout, logical_arrays(layout, 1), step=5).ref)


def rehearsed(store: ObjectStore, commit: Commit, layout: Layout, ranks: Sequence[int] | None = None) -> Rehearsal:
    chosen = range(layout.mesh.num_ranks) if ranks is None else ranks
    return rehearse(store, commit, layout, [Rank(rank) for rank in chosen], threads=2)


@pytest.mark.parametrize("mesh", MESHES)
def test_what_is_read_and_held_is_what_the_plan_of_a_restore_says(mesh: Mesh) -> None:
    store, commit = saved()
    layout = on_mesh(commit.layout, mesh)
    found = rehearsed(store, commit, layout)
    planned = over_read(commit.layout, layout, origins(commit.layout, layout, step=commit.record.step))
    assert found.is_intact
    blank = next(array.num_bytes for array in layout.arrays if array.name == "state/ranks")
    is_given = mesh.num_ranks == commit.layout.mesh.num_ranks
    assert found.held_bytes == planned.held_bytes + (0 if is_given else blank)
    assert found.read_bytes == planned.alone_bytes
    assert found.over_read == found.read_bytes / found.held_bytes > 1
    assert [one.rank for one in found.ranks] == list(range(mesh.num_ranks))


def test_some_ranks_are_restored_alone_and_progress_ends_at_all() -> None:
    store, commit = saved()
    told: list[tuple[int, int]] = []
    clock = count()
    found = rehearse(
        store,
        commit,
        commit.layout,
        [Rank(3), Rank(1)],
        threads=1,
        progress=lambda done, total: told.append((done, total)),
        now=lambda: float(next(clock)),
    )
    whole = rehearsed(store, commit, commit.layout)
    assert [(one.rank, one.read_bytes) for one in found.ranks] == [
        (rank, whole.ranks[rank].read_bytes) for rank in (3, 1)
    ]
    assert [one.seconds for one in found.ranks] == [1.0, 1.0]
    assert (found.seconds, found.slowest.rank) == (2.0, 3)
    assert len(told) == 2
    assert told[-1][0] == told[-1][1] > 0


def test_a_damaged_chunk_is_told_by_the_ranks_that_need_it_and_by_no_other() -> None:
    store, commit = saved()
    array = commit.layout.positions["model/dense"]
    key = commit.shard_key(array, 0)
    data = bytearray(1)
    store.read_into(key, offset_bytes=2, into=data)
    data[0] ^= 1
    whole_bytes = grids(commit.layout)[array].file_bytes
    store.write_parts(key, size_bytes=whole_bytes, parts=[Part(offset_bytes=2, buffers=[data])])
    found = rehearsed(store, commit, commit.layout)
    assert not found.is_intact
    damaged = [one.rank for one in found.ranks if one.damage]
    assert damaged == [0, 2]  # those of tp coordinate 0, which the chunk belongs to
    assert all("array 'model/dense', chunk 0" in found.ranks[rank].damage for rank in damaged)
    assert found.ranks[1].read_bytes > found.ranks[1].held_bytes


class Silent(WrapperStore):
    """A store that lists and does not answer reads."""

    def read_into(self, key: str, *, offset_bytes: int, into: object) -> None:
        raise Unavailable(f"read {key}: expected {into!r} filled from {offset_bytes}, got no answer")


def test_a_store_that_does_not_answer_is_no_damage() -> None:
    store, commit = saved()
    with pytest.raises(Unavailable):
        rehearsed(Silent(store), commit, commit.layout)


def test_a_missing_file_is_damage() -> None:
    store, commit = saved()
    store.delete([commit.shard_key(0, 0)])
    with pytest.raises(NotFound):
        store.read_into(commit.shard_key(0, 0), offset_bytes=0, into=bytearray(1))
    assert not rehearsed(store, commit, commit.layout).is_intact


def test_a_rank_for_which_there_is_no_memory_is_refused_with_a_way_out() -> None:
    store, commit = saved()
    huge = ArraySpec(name="w", dtype="float64", shape=(1 << 45,))  # more than the addresses of a process
    with pytest.raises(Unavailable, match="largest rank's state, 281474976710656 bytes, got none"):
        rehearsed(store, commit, Layout(mesh=Mesh(), arrays=(huge,)))


def with_a_shard_of_another_step(name: str) -> tuple[MemoryStore, Commit]:
    """Two steps whose bytes differ; the file of one array is that of the other step, whole and with the right CRCs."""
    store, commit = saved()
    layout = commit.layout
    other = open_commit(store, save(store, layout, logical_arrays(layout, 2), step=6).ref)
    array = layout.positions[name]
    file_bytes = grids(layout)[array].file_bytes
    data = bytearray(file_bytes)
    store.read_into(other.shard_key(array, 0), offset_bytes=0, into=data)
    store.delete([commit.shard_key(array, 0)])
    store.write_parts(commit.shard_key(array, 0), size_bytes=file_bytes, parts=[Part(offset_bytes=0, buffers=[data])])
    return store, commit


@pytest.mark.parametrize("mesh", MESHES)
def test_a_file_of_another_step_is_damage_although_each_chunk_has_its_crc(mesh: Mesh) -> None:
    store, commit = with_a_shard_of_another_step("model/dense")
    found = rehearsed(store, commit, on_mesh(commit.layout, mesh))
    assert not found.is_intact
    key = commit.shard_key(commit.layout.positions["model/dense"], 0)
    expected = "expected the chunks that were committed, got others, each of them intact"
    assert {one.damage for one in found.ranks if one.damage} == {f"array 'model/dense', file {key}: {expected}"}


def test_ranks_that_read_nothing_of_that_file_are_not_called_damaged() -> None:
    specs = [ArraySpec(name=f"w{stage}", dtype="float32", shape=(64,), stage=stage) for stage in range(3)]
    layout, store = Layout(mesh=Mesh(pp=3), arrays=tuple(specs)), MemoryStore()
    commit, other = (
        open_commit(store, save(store, layout, logical_arrays(layout, step), step=step).ref) for step in (1, 2)
    )
    data = bytearray(grids(layout)[0].file_bytes)
    store.read_into(other.shard_key(0, 0), offset_bytes=0, into=data)
    store.delete([commit.shard_key(0, 0)])
    store.write_parts(commit.shard_key(0, 0), size_bytes=len(data), parts=[Part(offset_bytes=0, buffers=[data])])
    assert [one.rank for one in rehearsed(store, commit, layout).ranks if one.damage] == [0]


def test_one_rank_alone_does_not_get_an_array_that_it_reads_whole_from_another_step() -> None:
    store, commit = with_a_shard_of_another_step("model/dense")
    layout = on_mesh(commit.layout, Mesh())
    memory = memoryview(bytearray(plan_rank(layout, Rank(0)).data_bytes))
    with pytest.raises(Corrupt, match="expected the chunks that were committed, got others"):
        read_rank_into(store, commit, layout, plan_rank(layout, Rank(0)), memory, threads=2)
