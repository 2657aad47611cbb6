"""Whole saves and restores through the ObjectStore port."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid, NotFound
from behemoth.base.ids import Rank
from behemoth.checkpoint.commit_log import commits, latest
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout, Sharding
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import digest, read_array, read_rank
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectStore, WritesRanges
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import Crash, FaultyStore, every_death, lost_answer
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import (
    arena_of,
    commit_receipts,
    local_arrays,
    logical_arrays,
    raw_bytes,
    save,
    toy_layout,
    unstaged,
    write_all_ranks,
)
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WritesRanges]:
    if request.param == "memory":
        yield MemoryStore()
        return
    local = LocalStore(str(tmp_path))
    yield local
    local.close()


def restored(store: ObjectStore, layout: Layout, rank: int, *, threads: int = 1) -> dict[str, bytes]:
    newest = latest(store)
    assert newest is not None
    plan = plan_rank(layout, Rank(rank))
    with arena_of(plan) as arena:
        snapshot = read_rank(store, open_commit(store, newest), layout, plan, arena, 1, threads=threads)
        assert (snapshot.step, snapshot.write_id, snapshot.is_verified) == (newest.step, newest.write_id, True)
        return unstaged(arena, plan, 1)


def local_bytes(layout: Layout, rank: int, seed: int) -> dict[str, bytes]:
    local = local_arrays(layout, rank, logical_arrays(layout, seed))
    return {name: raw_bytes(array) for name, array in local.items()}


def test_every_rank_gets_back_what_it_saved(store: WritesRanges) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)
    for rank in range(4):
        assert restored(store, layout, rank, threads=2) == local_bytes(layout, rank, 1)


def test_logical_arrays_and_their_digest_are_independent_of_the_order_of_writes(store: WritesRanges) -> None:
    layout = toy_layout()
    arrays = logical_arrays(layout, 1)
    digests = set()
    for step in (1, 2, 3):
        save(store, layout, arrays, step=step, order_seed=step)
        newest = latest(store)
        assert newest is not None
        opened = open_commit(store, newest)
        digests.add(digest(store, opened))
        for name, array in arrays.items():
            assert raw_bytes(read_array(store, opened, name)) == raw_bytes(array)
    assert len(digests) == 1


def test_an_array_is_read_into_the_callers_buffer() -> None:
    store, layout = MemoryStore(), toy_layout()
    arrays = logical_arrays(layout, 1)
    opened = open_commit(store, save(store, layout, arrays, step=1).ref)
    out = bytearray(arrays["model/norm"].nbytes)
    read_array(store, opened, "model/norm", out)
    assert bytes(out) == raw_bytes(arrays["model/norm"])
    with pytest.raises(Invalid, match="132 bytes"):
        read_array(store, opened, "model/norm", bytearray(5))
    with pytest.raises(NotFound, match="nothing"):
        read_array(store, opened, "nothing")


def test_the_digest_is_the_documented_one() -> None:
    store = MemoryStore()
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="b", dtype="int16", shape=(2,)),))
    opened = open_commit(store, save(store, layout, {"b": np.array([1, 2], dtype=np.int16)}, step=1).ref)
    assert digest(store, opened) == hashlib.sha256(b'["b","int16",[2]]\n\x01\x00\x02\x00').hexdigest()


@settings(max_examples=80, deadline=None)
@given(layout=layouts(), chunk_bytes=CHUNK_BYTES, seed=st.integers(0, 99))
def test_random_worlds_with_tiny_chunks_come_back_whole(layout: Layout, chunk_bytes: int, seed: int) -> None:
    with small_chunks(chunk_bytes):
        store, arrays = MemoryStore(), logical_arrays(layout, seed)
        save(store, layout, arrays, step=1, order_seed=seed)
        newest = latest(store)
        assert newest is not None
        opened = open_commit(store, newest)
        for name, array in arrays.items():
            assert raw_bytes(read_array(store, opened, name)) == raw_bytes(array)
        for rank in range(layout.mesh.num_ranks):
            assert restored(store, layout, rank) == local_bytes(layout, rank, seed)


@pytest.mark.parametrize("sharding", ["array", "box"])
def test_a_crash_at_any_write_leaves_a_whole_checkpoint_the_newest(sharding: Sharding) -> None:
    layout = toy_layout(sharding)
    first, second = logical_arrays(layout, 1), logical_arrays(layout, 2)

    def attempt(store: WritesRanges) -> None:
        save(store, layout, second, step=2, write_id="a1-2")

    before, counted = MemoryStore(), FaultyStore(MemoryStore())
    save(before, layout, first, step=1)
    attempt(counted)
    for death in every_death(counted.num_writes):
        inner = before.copy()
        with pytest.raises(Crash):
            attempt(FaultyStore(inner, death))
        after = inner.after_power_loss(seed=death.write)
        newest = latest(after)
        assert newest is not None
        seed = {1: 1, 2: 2}[newest.step]
        assert restored(after, layout, 0) == local_bytes(layout, 0, seed), death
        # The same step again, by another write, as the restarted run would.
        if newest.step == 1:
            save(after, layout, second, step=2, write_id="a2-1")
            assert restored(after, layout, 3) == local_bytes(layout, 3, 2)


def test_a_lost_answer_at_the_commit_is_read_back() -> None:
    layout = toy_layout()
    counted = FaultyStore(MemoryStore())
    save(counted, layout, logical_arrays(layout, 1), step=1)
    inner = MemoryStore()
    save(FaultyStore(inner, lost_answer(counted.num_writes - 1)), layout, logical_arrays(layout, 1), step=1)
    assert restored(inner, layout, 0) == local_bytes(layout, 0, 1)


def test_the_bytes_in_the_store_are_those_of_format_1() -> None:
    """A change here breaks old checkpoints: it needs a new format version, and a reader for this one."""
    layout, store = toy_layout(), MemoryStore()
    arrays = {
        spec.name: (np.arange(spec.num_bytes) % 100).astype(np.uint8).view(DTYPES[spec.dtype]).reshape(spec.shape)
        for spec in layout.arrays
    }
    receipts = [replace(one, freshness=msgspec.UNSET) for one in write_all_ranks(store, layout, arrays, step=1)]
    commit_receipts(store, layout, receipts, step=1)
    total = hashlib.sha256()
    for key, size_bytes in objects_of(store):
        data = bytearray(size_bytes)
        store.read_into(key, offset_bytes=0, into=data)
        total.update(key.encode() + b"\n" + data)
    assert total.hexdigest() == "d3024e9ce06d97ce1977913d1e97924ad06ea713dc1ea38abd37c8bcfc95051c"


def objects_of(store: ObjectStore) -> list[tuple[str, int]]:
    return [(info.key, info.size_bytes) for info in store.list("")]


def flip(store: MemoryStore, key: str, bit: int) -> None:
    store._objects[key][bit // 8] ^= 1 << bit % 8


def damage_is_found(store: ObjectStore) -> bool:
    """By who restores, or, in what only other readers need, by `verify`."""
    found = commits(store)
    if len(found) != 1 or not isinstance(found[0], CommitRef):
        return True
    try:
        digest(store, open_commit(store, found[0]))
    except (Corrupt, Invalid):
        return True
    return not verify(store, found[0], threads=1, deep=False).is_intact


def test_a_checkpoint_whose_zarr_json_is_damaged_comes_back_and_is_told_by_verify() -> None:
    layout = toy_layout()
    store = MemoryStore()
    arrays = logical_arrays(layout, 1)
    ref = save(store, layout, arrays, step=1).ref
    whole = digest(store, open_commit(store, ref))
    keys = [key for key, _ in objects_of(store) if key.endswith("/zarr.json")]
    for key in keys:
        flip(store, key, 8)
    assert digest(store, open_commit(store, ref)) == whole
    told = verify(store, ref, threads=1, deep=False).problems
    assert {problem.object_key for problem in told} == set(keys)


@pytest.mark.parametrize("sharding", ["array", "box"])
def test_a_flipped_bit_anywhere_is_found(sharding: Sharding) -> None:
    layout = toy_layout(sharding)
    store = MemoryStore()
    save(store, layout, logical_arrays(layout, 1), step=1)
    assert not damage_is_found(store)
    for key, size_bytes in objects_of(store):
        for byte in range(0, size_bytes, max(1, size_bytes // 97)):
            flip(store, key, byte * 8 + byte % 8)
            assert damage_is_found(store), f"{key}, byte {byte}"
            flip(store, key, byte * 8 + byte % 8)
    assert not damage_is_found(store)


@pytest.mark.parametrize("damage", ["missing", "zero", "truncated"])
def test_a_damaged_shard_is_named_with_array_chunk_and_file(damage: str) -> None:
    layout, store = toy_layout(), MemoryStore()
    ref = save(store, layout, logical_arrays(layout, 1), step=1).ref
    opened = open_commit(store, ref)
    key = opened.shard_key(layout.positions["model/norm"], 0)
    if damage == "missing":
        store.delete([key])
    elif damage == "zero":
        store._objects[key][:] = bytes(len(store._objects[key]))
    else:
        del store._objects[key][50:]
    plan = plan_rank(layout, Rank(0))
    with arena_of(plan) as arena:
        with pytest.raises(Corrupt, match=rf"'model/norm', chunk 0, file {key}") as told:
            read_rank(store, opened, layout, plan, arena, 0, threads=2)
        assert "`behemoth ckpt verify`" in told.value.hint
        assert arena.held() == ()


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated"])
def test_a_damaged_index_is_named_with_its_file_and_what_to_do(damage: str) -> None:
    layout, store = toy_layout(), MemoryStore()
    record = save(store, layout, logical_arrays(layout, 1), step=1)
    key = f"{record.prefix}/index"
    if damage == "missing":
        store.delete([key])
    elif damage == "flipped":
        flip(store, key, 9)
    else:
        del store._objects[key][20:]
    with pytest.raises(Corrupt, match=rf"file {key}: .*expected .*, got ") as told:
        open_commit(store, record.ref)
    assert "`behemoth ckpt verify`" in told.value.hint


def test_another_model_is_refused_before_the_arena_is_touched() -> None:
    layout, store = toy_layout(), MemoryStore()
    opened = open_commit(store, save(store, layout, logical_arrays(layout, 1), step=1).ref)
    new = ArraySpec(name="model/new", dtype="int8", shape=(1,))
    wider = ArraySpec(name="model/norm", dtype="float32", shape=(34,))
    other = Layout(mesh=Mesh(), arrays=(*layout.arrays[1:], new))
    resized = Layout(mesh=Mesh(), arrays=tuple(wider if array.name == wider.name else array for array in layout.arrays))
    for wanted, text in (
        (other, r"1 arrays are missing \['model/new'\], 1 are unknown \['model/dense'\], 0 differ"),
        (resized, r"0 are unknown \[\], 1 differ 'model/norm': saved float32\[33\], this run has float32\[34\]"),
    ):
        plan = plan_rank(wanted, Rank(0))
        with arena_of(plan) as arena:
            with pytest.raises(Invalid, match=text):
                read_rank(store, opened, wanted, plan, arena, 0, threads=1)
            assert arena.held() == ()


def test_receipts_may_be_written_and_committed_by_several_threads(store: WritesRanges) -> None:
    layout = Layout(
        mesh=Mesh(dp=2, edp=2), arrays=(ArraySpec(name="w", dtype="uint8", shape=(25_000_003,), flat_over="dp"),)
    )
    arrays = logical_arrays(layout, 4)
    receipts = write_all_ranks(store, layout, arrays, step=1, threads=3)
    commit_receipts(store, layout, receipts, step=1)
    for rank in range(2):
        assert restored(store, layout, rank, threads=3) == local_bytes(layout, rank, 4)
