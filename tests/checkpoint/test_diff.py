"""Two checkpoints compared: what changed, what is there on one side only, and how little is read for it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt
from behemoth.checkpoint import diff as module
from behemoth.checkpoint.diff import ArrayDiff, Side, diff
from behemoth.checkpoint.difference import difference
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.into import num_bytes
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout, SplitAxes
from behemoth.checkpoint.opened import open_commit
from behemoth.ports import Into, WritesRanges
from behemoth.spec.mesh import Axes, Mesh
from behemoth.testing.store import MemoryStore
from checkpoint import saved_checkpoint
from checkpoint.checkpoint_rig import Logical, logical_arrays, save, toy_layout
from checkpoint.random_layouts import small_chunks

LAYOUT = toy_layout()


class CountingStore(MemoryStore):
    """Counts the bytes that are read below `steps/`."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self._counting = threading.Lock()

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        super().read_into(key, offset_bytes=offset_bytes, into=into)
        if key.startswith("steps/"):
            with self._counting:
                self.num_bytes += num_bytes(into)


def saved(layout: Layout, arrays: Logical, *, step: int = 1, store: WritesRanges | None = None) -> Side:
    store = store if store is not None else MemoryStore()
    record = save(store, layout, arrays, step=step, write_id=f"a1-{step}")
    return Side(store=store, commit=open_commit(store, record.ref))


def by_name(found: tuple[ArrayDiff, ...]) -> dict[str, ArrayDiff]:
    return {one.name: one for one in found}


def test_the_same_state_twice_is_the_same_and_no_chunk_is_read() -> None:
    store = CountingStore()
    first, second = (saved(LAYOUT, logical_arrays(LAYOUT, 1), step=step, store=store) for step in (1, 2))
    store.num_bytes = 0
    assert {one.how for one in diff(first, second, threads=2)} == {"same"}
    assert store.num_bytes == 0


def test_every_array_that_changed_is_told_as_numpy_compares_it() -> None:
    before, after = logical_arrays(LAYOUT, 1), logical_arrays(LAYOUT, 1)
    after["model/dense"] = before["model/dense"].copy()
    after["model/dense"][5, 9] += 1
    after["optim/odd"] = np.negative(before["optim/odd"])
    found = by_name(diff(saved(LAYOUT, before), saved(LAYOUT, after), threads=3))
    assert {name for name, one in found.items() if one.how != "same"} == {"model/dense", "optim/odd"}
    for name in ("model/dense", "optim/odd"):
        assert found[name].difference == difference(before[name], after[name])
    assert found["optim/odd"].difference is not None
    assert found["optim/odd"].difference.num_changed == 21


def test_only_the_chunks_that_differ_are_read_and_the_crcs_beside_the_others() -> None:
    layout = saved_checkpoint.big_layout()
    (spec,) = layout.arrays
    before = logical_arrays(layout, 1)
    after = {spec.name: before[spec.name].copy()}
    after[spec.name][4, 7] = 0.25
    store = CountingStore()
    first, second = saved(layout, before, store=store), saved(layout, after, step=2, store=store)
    store.num_bytes = 0
    told: list[tuple[int, int]] = []
    (one,) = diff(first, second, threads=2, progress=lambda done, total: told.append((done, total)))
    assert one.difference == difference(before[spec.name], after[spec.name])
    assert 0 < store.num_bytes < 2 * (spec.num_bytes // 2)
    assert told[-1][0] == told[-1][1] >= spec.num_bytes


@pytest.mark.parametrize("job_bytes", [1, 20_000, 1 << 30])
def test_however_many_chunks_a_job_has_all_are_compared_once_and_progress_is_told_job_by_job(
    monkeypatch: pytest.MonkeyPatch, job_bytes: int
) -> None:
    monkeypatch.setattr(module, "JOB_BYTES", job_bytes)
    with small_chunks(4096):
        spec = ArraySpec(name="a", dtype="float32", shape=(100, 100))
        layout = Layout(mesh=Mesh(), arrays=(spec,))
        (grid,) = grids(layout)
        before = {"a": np.arange(10_000, dtype=np.float32).reshape(spec.shape)}
        after = {"a": before["a"] + np.float32(1)}
        told: list[tuple[int, int]] = []
        (one,) = diff(
            saved(layout, before),
            saved(layout, after),
            threads=1,
            progress=lambda done, total: told.append((done, total)),
        )
        assert one.difference is not None
        assert one.difference.num_changed == 10_000
        per_job = max(1, job_bytes // grid.stride_bytes)
        assert grid.num_chunks > 7
        sizes = [min(per_job, grid.num_chunks - first) for first in range(0, grid.num_chunks, per_job)]
        done = [0, *(done for done, _ in told)]
        assert Counter(after - before for before, after in pairwise(done)) == Counter(
            size * grid.payload_bytes for size in sizes
        )
        assert {total for _, total in told} == {grid.num_chunks * grid.payload_bytes} == {done[-1]}


def test_arrays_of_one_side_and_arrays_that_became_something_else_are_told() -> None:
    def layout(*arrays: ArraySpec) -> Layout:
        return Layout(mesh=Mesh(), arrays=arrays)

    one = layout(
        ArraySpec(name="gone", dtype="float32", shape=(3,)),
        ArraySpec(name="kept", dtype="float32", shape=(3,)),
        ArraySpec(name="reshaped", dtype="float32", shape=(3, 2)),
        ArraySpec(name="retyped", dtype="float32", shape=(3,)),
    )
    two = layout(
        ArraySpec(name="kept", dtype="float32", shape=(3,)),
        ArraySpec(name="new", dtype="int8", shape=()),
        ArraySpec(name="reshaped", dtype="float32", shape=(2, 3)),
        ArraySpec(name="retyped", dtype="bfloat16", shape=(3,)),
    )
    whole = {name: np.ones((3,), np.float32) for name in ("gone", "kept", "retyped")}
    found = diff(
        saved(one, {**whole, "reshaped": np.ones((3, 2), np.float32)}),
        saved(
            two,
            {
                "kept": whole["kept"],
                "new": np.ones((), np.int8),
                "reshaped": np.ones((2, 3), np.float32),
                "retyped": np.ones(3, DTYPES["bfloat16"]),
            },
        ),
        threads=1,
    )
    assert [(one.name, one.how) for one in found] == [
        ("gone", "only-first"),
        ("kept", "same"),
        ("new", "only-second"),
        ("reshaped", "reshaped"),
        ("retyped", "retyped"),
    ]
    assert all(one.difference is None for one in found)


SHAPES: st.SearchStrategy[tuple[int, ...]] = st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple)


@st.composite
def shared(draw: st.DrawFn, shape: tuple[int, ...]) -> Layout:
    """One array of this shape, shared over two or four ranks in some way."""
    mesh = draw(st.sampled_from([Mesh(), Mesh(tp=2, edp=2), Mesh(tp=2, dp=2, edp=4), Mesh(tp=4, edp=4)]))
    dims: tuple[tuple[int, SplitAxes], ...] = ()
    if len(shape) > 0 and draw(st.booleans()):
        dims = ((draw(st.integers(0, len(shape) - 1)), "tp"),)
    flat: Axes | None = "dp" if draw(st.booleans()) else None
    return Layout(mesh=mesh, arrays=(ArraySpec(name="a", dtype="float32", shape=shape, dims=dims, flat_over=flat),))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Layout, Layout, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    before = rng.integers(1, 9, shape).astype(np.float32)
    after = np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 1.0])), before + 1, before)
    return draw(shared(shape)), draw(shared(shape)), before, after.astype(np.float32).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_however_the_two_were_cut_the_difference_is_that_of_the_logical_arrays(
    pair: tuple[Layout, Layout, npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> None:
    one, two, before, after = pair
    (found,) = diff(saved(one, {"a": before}), saved(two, {"a": after}), threads=1)
    expected = difference(before, after)
    assert found.how == ("changed" if expected.num_changed else "same")
    if expected.num_changed:
        assert found.difference is not None
        assert found.difference.num_changed == expected.num_changed
        assert found.difference.max_abs == expected.max_abs
        assert found.difference.l2 == pytest.approx(expected.l2)


@pytest.mark.parametrize("num_shares", [(8, 1), (1, 8), (8, 4)], ids=["finer first", "coarser first", "both split"])
def test_of_arrays_that_are_cut_otherwise_each_byte_of_either_side_is_read_once(num_shares: tuple[int, int]) -> None:
    spec = ArraySpec(name="a", dtype="float32", shape=(48, 64), dims=((1, "tp"),))
    before, after = (logical_arrays(Layout(mesh=Mesh(), arrays=(spec,)), seed) for seed in (1, 2))
    with small_chunks(4096):
        layouts = [Layout(mesh=Mesh(tp=num, etp=num), arrays=(spec,)) for num in num_shares]
        assert grids(layouts[0])[0].chunk_shape != grids(layouts[1])[0].chunk_shape
        stores = CountingStore(), CountingStore()
        first, second = (
            saved(layout, state, store=store)
            for layout, state, store in zip(layouts, (before, after), stores, strict=True)
        )
        for store in stores:
            store.num_bytes = 0
        (one,) = diff(first, second, threads=2)
        expected = difference(before["a"], after["a"])
        assert one.difference is not None
        assert one.difference.sum_squares == pytest.approx(expected.sum_squares)
        assert replace(one.difference, sum_squares=expected.sum_squares) == expected
        for store, layout in zip(stores, layouts, strict=True):
            (grid,) = grids(layout)
            assert grid.num_chunks > 1
            assert store.num_bytes == grid.num_chunks * grid.stored_bytes


def test_chunks_of_another_checkpoint_are_damage_also_where_the_two_are_cut_otherwise() -> None:
    spec = ArraySpec(name="a", dtype="float32", shape=(8, 8), dims=((1, "tp"),))
    whole, split = (Layout(mesh=Mesh(tp=num, etp=num), arrays=(spec,)) for num in (1, 4))
    store = MemoryStore()
    first, other = (saved(whole, logical_arrays(whole, step), step=step, store=store) for step in (1, 2))
    keys = [side.commit.shard_key(0, 0) for side in (first, other)]
    (info,) = [info for info in store.list("steps") if info.key == keys[1]]
    data = bytearray(info.size_bytes)
    store.read_into(keys[1], offset_bytes=0, into=data)
    store.delete([keys[0]])
    store.create(keys[0], data)
    with pytest.raises(Corrupt, match=r"array 'a', file .*: expected the chunks that were committed, got others"):
        diff(first, saved(split, logical_arrays(split, 1)), threads=1)


def flip(side: Side, offset_bytes: int) -> None:
    """One bit in the shard of the first array."""
    key = side.commit.shard_key(0, 0)
    size_bytes = next(info.size_bytes for info in side.store.list(key.rpartition("/")[0]) if info.key == key)
    data = bytearray(size_bytes)
    side.store.read_into(key, offset_bytes=0, into=data)
    data[offset_bytes] ^= 1
    side.store.delete([key])
    side.store.create(key, data)


def test_damage_in_a_chunk_that_is_read_is_an_error_and_no_difference() -> None:
    before, after = logical_arrays(LAYOUT, 1), logical_arrays(LAYOUT, 2)
    second = saved(LAYOUT, after)
    flip(second, 0)
    name = LAYOUT.arrays[0].name
    with pytest.raises(Corrupt, match=f"array '{name}', chunk 0"):
        diff(saved(LAYOUT, before), second, threads=2)


def test_a_missing_file_is_damage_that_names_the_array() -> None:
    second = saved(LAYOUT, logical_arrays(LAYOUT, 2))
    second.store.delete([second.commit.shard_key(0, 0)])
    with pytest.raises(
        Corrupt, match=f"array '{LAYOUT.arrays[0].name}', chunk 0, file .*: expected the file, got none"
    ):
        diff(saved(LAYOUT, logical_arrays(LAYOUT, 1)), second, threads=2)


def test_chunks_that_are_not_those_of_their_index_are_damage_and_not_equal() -> None:
    before, after = logical_arrays(LAYOUT, 1), logical_arrays(LAYOUT, 1)
    name = LAYOUT.arrays[0].name
    after[name] = logical_arrays(LAYOUT, 2)[name]
    first, second = saved(LAYOUT, before), saved(LAYOUT, after)
    key = first.commit.shard_key(0, 0)
    (info,) = [info for info in first.store.list("steps") if info.key == key]
    data = bytearray(info.size_bytes)
    first.store.read_into(key, offset_bytes=0, into=data)
    second.store.delete([key])
    second.store.create(key, data)
    with pytest.raises(Corrupt, match="expected chunks that differ") as caught:
        diff(first, second, threads=1)
    assert "ckpt verify" in caught.value.hint
