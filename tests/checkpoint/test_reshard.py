"""A checkpoint of one layout comes back on any other of the same arrays, bit for bit, and no byte of it unchecked."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid, NotFound
from behemoth.base.ids import Rank, Step
from behemoth.checkpoint import chunk_parts, reshard_reader
from behemoth.checkpoint.box import flat_boxes
from behemoth.checkpoint.chunk_reader import ChunkReader
from behemoth.checkpoint.conversion import AS_SAVED, Cast, Intake
from behemoth.checkpoint.crc import TRAILER_BYTES, crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_box, read_rank
from behemoth.checkpoint.records import rank_records_spec
from behemoth.checkpoint.reshard import plan_resharding
from behemoth.ports import ObjectStore
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import arena_of, local_arrays, logical_arrays, raw_bytes, save, toy_layout, unstaged
from checkpoint.random_layouts import CHUNK_BYTES, layouts, reshared, small_chunks

SEED = 1


def saved(layout: Layout) -> tuple[MemoryStore, Commit]:
    store = MemoryStore()
    return store, open_commit(store, save(store, layout, logical_arrays(layout, SEED), step=5).ref)


def restored(
    store: ObjectStore,
    opened: Commit,
    layout: Layout,
    rank: int,
    *,
    threads: int = 1,
    intake: Intake = AS_SAVED,
) -> dict[str, bytes]:
    plan = plan_rank(layout, Rank(rank))
    with arena_of(plan) as arena:
        np.frombuffer(arena.filling(0), dtype=np.uint8)[:] = 0xEE  # what it held before must not show
        snapshot = read_rank(store, opened, layout, plan, arena, 0, threads=threads, intake=intake)
        assert (snapshot.step, snapshot.write_id, snapshot.is_verified) == (5, "a1-1", True)
        data = arena.data(0)
        expected = [crc32c(data[span.arena_offset : span.arena_offset + span.length]) for span in plan.spans]
        assert arena.crcs(0).tolist() == expected
        return unstaged(arena, plan, 0)


def expected_on(layout: Layout, rank: int, *, of: Layout | None = None) -> dict[str, bytes]:
    """What a rank holds of the arrays that `saved` saves, on this layout, by numpy alone; `of`: of a layout that has
    more of them."""
    local = local_arrays(layout, rank, logical_arrays(of or layout, SEED))
    return {name: raw_bytes(array) for name, array in local.items()}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), old=layouts(), chunk_bytes=CHUNK_BYTES, direct_bytes=st.sampled_from([1, 1 << 20]))
def test_every_element_comes_back_on_any_other_layout(
    data: st.DataObject, old: Layout, chunk_bytes: int, direct_bytes: int
) -> None:
    new = data.draw(reshared(old))
    with small_chunks(chunk_bytes), pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_parts, "DIRECT_BYTES", direct_bytes)
        store, opened = saved(old)
        for rank in range(new.mesh.num_ranks):
            assert restored(store, opened, new, rank, threads=1 + rank % 2) == expected_on(new, rank)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), old=layouts(), chunk_bytes=CHUNK_BYTES)
def test_a_rank_reads_each_chunk_that_it_needs_once_and_no_other(
    data: st.DataObject, old: Layout, chunk_bytes: int
) -> None:
    new = data.draw(reshared(old))
    with small_chunks(chunk_bytes):
        positions = origins(old, new, step=Step(5))
        numbered = {array.name: np.arange(array.num_elements).reshape(array.shape) for array in old.arrays}
        for rank in range(new.mesh.num_ranks):
            work = plan_resharding(old, new, plan_rank(new, Rank(rank)), positions)
            read = [(one.array, one.chunk) for one in work.reads]
            needed = set()
            for name, local in local_arrays(new, rank, numbered).items():
                grid, position = grids(old)[old.positions[name]], old.positions[name]
                chunks = range(grid.num_chunks)
                held = (k for k in chunks if np.isin(numbered[name][grid.chunk_box(k)], local).any())
                needed |= {(position, chunk) for chunk in held}
            assert read == sorted(needed)


@given(data=st.data(), sizes=st.lists(st.integers(1, 4), max_size=4))
def test_a_flat_range_is_few_boxes_one_behind_the_other(data: st.DataObject, sizes: list[int]) -> None:
    box = tuple((low, low + size) for size in sizes for low in [data.draw(st.integers(0, 3))])
    whole = np.arange(math.prod(sizes)).reshape(sizes)
    start = data.draw(st.integers(0, whole.size))
    stop = data.draw(st.integers(start, whole.size))
    found = flat_boxes(box, (start, stop))
    elements = [
        whole[tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(part, box, strict=True))].reshape(-1).tolist()
        for part in found
    ]
    assert list(chain.from_iterable(elements)) == list(range(start, stop))
    assert len(found) <= max(1, 2 * len(sizes) - 1)


def other_layout() -> Layout:
    """The toy's arrays on three ranks, for which nothing divides."""
    specs = {array.name: replace(array, dims=(), flat_over=None, stage=None) for array in toy_layout().arrays}
    specs["model/experts"] = replace(specs["model/experts"], dims=((1, "tp"),))
    specs["model/dense"] = replace(specs["model/dense"], dims=((0, "tp"),))
    specs["optim/dense"] = replace(specs["optim/dense"], dims=((1, "tp"),), packed=(1, (4, 6)))
    specs["optim/odd"] = replace(specs["optim/odd"], flat_over="tp", flat_rows=True)
    return Layout(mesh=Mesh(tp=3, edp=3), arrays=tuple(specs.values()))


def test_any_damaged_byte_of_a_chunk_that_is_read_is_named_and_leaves_no_snapshot() -> None:
    old, new = toy_layout(), other_layout()
    with small_chunks(64):
        store, opened = saved(old)
        plan = plan_rank(new, Rank(1))
        work = plan_resharding(old, new, plan, origins(old, new, step=Step(5)))
        assert {old.arrays[read.array].name for read in work.reads} == {array.name for array in old.arrays}
        with arena_of(plan) as arena:
            for read in work.reads:
                grid, key = grids(old)[read.array], opened.shard_key(read.array, 0)
                name = re.escape(grid.spec.name)
                begin = grid.chunk_offset_bytes(read.chunk)
                for at in range(begin, begin + grid.payload_bytes + TRAILER_BYTES):
                    store._objects[key][at] ^= 1 << at % 8
                    with pytest.raises(Corrupt, match=rf"array '{name}', chunk {read.chunk}, file {key}: expected CRC"):
                        read_rank(store, opened, new, plan, arena, 0, threads=1 + at % 2)
                    assert arena.held() == ()
                    store._objects[key][at] ^= 1 << at % 8
            assert read_rank(store, opened, new, plan, arena, 0, threads=1).is_verified


def test_what_is_missing_in_the_store_is_corrupt() -> None:
    store, opened = saved(toy_layout())
    store.delete([opened.shard_key(opened.layout.positions["optim/odd"], 0)])
    with pytest.raises(Corrupt, match=r"'optim/odd', chunk 0, file .*: expected the file, got none"):
        restored(store, opened, other_layout(), 0)


def test_large_chunks_that_a_rank_holds_whole_go_straight_into_place_and_are_summed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = Layout(mesh=Mesh(tp=2, edp=2), arrays=(ArraySpec(name="w", dtype="int8", shape=(8, 64), dims=((0, "tp"),)),))
    new = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="int8", shape=(8, 64)),))
    straight: list[int] = []
    read_straight = ChunkReader.payload_into

    def counted(reader: ChunkReader, array: int, chunk: int, into: memoryview) -> int:
        straight.append(chunk)
        return read_straight(reader, array, chunk, into)

    monkeypatch.setattr(ChunkReader, "payload_into", counted)
    monkeypatch.setattr(chunk_parts, "DIRECT_BYTES", 64)
    monkeypatch.setattr(reshard_reader, "crc32c", pytest.fail)  # what the new layout has for chunks are the old ones
    with small_chunks(128):
        store, opened = saved(old)
        assert restored(store, opened, new, 0) == expected_on(new, 0)
        assert straight == list(range(grids(old)[0].num_chunks))


def test_one_host_takes_what_many_ranks_saved_and_many_what_one_saved() -> None:
    lone = Layout(mesh=Mesh(), arrays=toy_layout().arrays)
    for old, new in ((toy_layout(), lone), (lone, toy_layout())):
        store, opened = saved(old)
        for rank in range(new.mesh.num_ranks):
            assert restored(store, opened, new, rank, threads=2) == expected_on(new, rank)


def with_records(num_ranks: int, *, capacity_bytes: int = 16) -> Layout:
    arrays = (rank_records_spec(num_ranks, capacity_bytes), ArraySpec(name="w", dtype="int8", shape=(7,)))
    return Layout(mesh=Mesh(dp=num_ranks, edp=num_ranks), arrays=arrays)


def test_records_of_ranks_are_left_blank_in_a_world_of_another_size() -> None:
    store, opened = saved(with_records(4))
    weights = raw_bytes(logical_arrays(with_records(4), SEED)["w"])
    for rank in range(3):
        got = restored(store, opened, with_records(3), rank)
        assert got == {"state/ranks": bytes(16), "w": weights}


def test_records_of_ranks_come_back_on_another_mesh_of_the_same_size() -> None:
    old = with_records(4)
    store, opened = saved(old)
    new = Layout(mesh=Mesh(tp=4, edp=4), arrays=old.arrays)
    for rank in range(4):
        assert restored(store, opened, new, rank) == expected_on(new, rank)


@pytest.mark.parametrize(
    "arrays",
    [
        with_records(3, capacity_bytes=17).arrays,
        (
            ArraySpec(name="state/ranks", dtype="int8", shape=(3, 16), dims=((0, "rank"),)),
            ArraySpec(name="w", dtype="int8", shape=(7,)),
        ),
    ],
)
def test_records_that_differ_in_more_than_the_number_of_ranks_are_another_model(arrays: tuple[ArraySpec, ...]) -> None:
    store, opened = saved(with_records(4))
    with pytest.raises(Invalid, match="1 differ 'state/ranks'"):
        restored(store, opened, Layout(mesh=Mesh(dp=3, edp=3), arrays=arrays), 0)


OPTIMIZER = ("optim/dense", "optim/odd", "optim/one")


def test_weights_come_back_alone_when_the_rest_is_listed() -> None:
    store, opened = saved(toy_layout())
    weights = Layout(mesh=Mesh(), arrays=tuple(one for one in toy_layout().arrays if one.name not in OPTIMIZER))
    got = restored(store, opened, weights, 0, intake=Intake(extra=OPTIMIZER))
    assert got == expected_on(weights, 0, of=toy_layout())
    for listed in ((), OPTIMIZER[:2]):
        with pytest.raises(Invalid, match=rf"{3 - len(listed)} are unknown .*'optim/one'"):
            restored(store, opened, weights, 0, intake=Intake(extra=listed))


def test_an_array_that_the_checkpoint_lacks_is_zeros_when_it_is_listed() -> None:
    new = ArraySpec(name="model/bias", dtype="float32", shape=(6,), dims=((0, "tp"),))
    store, opened = saved(toy_layout())
    wider = Layout(mesh=Mesh(tp=2, edp=2), arrays=(*toy_layout().arrays, new))
    for rank in range(2):
        got = restored(store, opened, wider, rank, intake=Intake(missing=("model/bias",)))
        assert got.pop("model/bias") == bytes(12)
        assert got == expected_on(Layout(mesh=wider.mesh, arrays=toy_layout().arrays), rank)
    with pytest.raises(Invalid, match=r"1 arrays are missing \['model/bias'\]"):
        restored(store, opened, wider, 0)


@pytest.mark.parametrize(
    ("intake", "text"),
    [
        (
            Intake(extra=(*OPTIMIZER, "model/norm")),
            r"extra .*that the checkpoint alone has, got \['model/norm'\]",
        ),
        (
            Intake(extra=(*OPTIMIZER, "optim/od")),
            r"extra .*that the checkpoint alone has, got \['optim/od'\]",
        ),
        (Intake(missing=("optim/odd",)), r"missing to name arrays that the layout alone has, got \['optim/odd'\]"),
        (Intake(only=("model/*", "moel/*")), r"only to name arrays that either side has, got \['moel/\*'\]"),
    ],
)
def test_a_pattern_that_names_nothing_of_its_kind_is_refused(intake: Intake, text: str) -> None:
    store, opened = saved(toy_layout())
    weights = Layout(mesh=Mesh(), arrays=tuple(one for one in toy_layout().arrays if one.name not in OPTIMIZER))
    with pytest.raises(Invalid, match=text):
        restored(store, opened, weights, 0, intake=intake)


def test_only_leaves_out_the_rest_on_both_sides() -> None:
    store, opened = saved(toy_layout())
    kept = tuple(one for one in toy_layout().arrays if one.name != "optim/odd")
    new = Layout(mesh=Mesh(), arrays=(*kept, ArraySpec(name="optim/new", dtype="int8", shape=(3,))))
    got = restored(store, opened, new, 0, intake=Intake(only=("model/*",)))
    expected = expected_on(Layout(mesh=Mesh(), arrays=kept), 0, of=toy_layout())
    for name, data in got.items():
        assert data == (expected[name] if name.startswith("model/") else bytes(len(data))), name
    with pytest.raises(Invalid, match=r"1 arrays are missing \['optim/new'\]"):
        restored(store, opened, new, 0, intake=Intake(only=("model/*", "optim/new")))


@pytest.mark.parametrize("layout", [toy_layout(), other_layout()])
def test_an_intake_counts_for_a_checkpoint_of_the_same_arrays_too(layout: Layout) -> None:
    store, opened = saved(toy_layout())
    expected = expected_on(layout, 0)
    got = restored(store, opened, layout, 0, intake=Intake(only=("model/*",)))
    assert got == {name: data if name.startswith("model/") else bytes(len(data)) for name, data in expected.items()}
    of_another = Intake(convert={"optim/one": Cast(array="optim/one")})  # the values as they are, by another way
    assert restored(store, opened, layout, 0, intake=of_another) == expected
    for intake in (Intake(extra=("before/*",)), Intake(missing=("later/*",)), Intake(convert={"no": Cast(array="no")})):
        with pytest.raises(Invalid, match=r"(before|later|no)"):
            restored(store, opened, layout, 0, intake=intake)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), layout=layouts(), chunk_bytes=CHUNK_BYTES)
def test_any_box_of_an_array_is_read_by_itself(data: st.DataObject, layout: Layout, chunk_bytes: int) -> None:
    with small_chunks(chunk_bytes):
        store, opened = saved(layout)
        for name, whole in logical_arrays(layout, SEED).items():
            ends = [sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=2))) for size in whole.shape]
            box = [(low, high) for low, high in ends]
            expected = whole[tuple(slice(low, high) for low, high in box)]
            got = read_box(store, opened, name, box, threads=data.draw(st.sampled_from([1, 2])))
            assert (got.dtype, got.shape, raw_bytes(got)) == (whole.dtype, expected.shape, raw_bytes(expected))


def test_some_experts_are_read_without_a_look_at_the_others() -> None:
    layout = Layout(
        mesh=Mesh(ep=4, dp=4),
        arrays=(ArraySpec(name="experts", dtype="bfloat16", shape=(8, 3, 5), dims=((0, "ep"),)),),
    )
    with small_chunks(30):
        store, opened = saved(layout)
        key, grid = opened.shard_key(0, 0), grids(layout)[0]
        for chunk in (2, 6):
            store._objects[key][grid.chunk_offset_bytes(chunk)] ^= 1
        got = read_box(store, opened, "experts", [(3, 6), (0, 3), (0, 5)])
        assert raw_bytes(got) == raw_bytes(logical_arrays(layout, SEED)["experts"][3:6])
        with pytest.raises(Corrupt, match=rf"'experts', chunk 2, file {key}"):
            read_box(store, opened, "experts", [(2, 4), (0, 3), (0, 5)])


@pytest.mark.parametrize("box", [[], [(0, 33), (0, 1)], [(0, 34)], [(-1, 3)], [(3, 3)]])
def test_a_box_that_is_not_within_the_array_is_refused(box: list[tuple[int, int]]) -> None:
    store, opened = saved(toy_layout())
    with pytest.raises(Invalid, match=r"'model/norm': expected a box of \(start, stop\) within its shape \(33,\)"):
        read_box(store, opened, "model/norm", box)
    with pytest.raises(NotFound, match="expected array 'model/nothing' in it, got none"):
        read_box(store, opened, "model/nothing", [(0, 1)])
