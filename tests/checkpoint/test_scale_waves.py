"""The order in which chunks are read whose values wait for scales: nothing is converted too early, little is kept."""

from __future__ import annotations

import math
import tracemalloc
from collections import defaultdict
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank
from behemoth.checkpoint import changes
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.changes import Scales
from behemoth.checkpoint.conversion import Intake, ScaledDown
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_rank_into
from behemoth.checkpoint.reshard import plan_boxes
from behemoth.checkpoint.scale_waves import (
    NODE_KEPT_BYTES,
    RANK_KEPT_BYTES,
    Waiting,
    Wave,
    kept_share,
    outermost,
    plan_waves,
)
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import save
from checkpoint.random_layouts import CHUNK_BYTES, small_chunks

ITEM_BYTES = 4


def grid_of(shape: tuple[int, ...]) -> Grid:
    return grids(Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="float32", shape=shape),)))[0]


def planned(
    grid: Grid, wanted: list[tuple[Scales, Box]], *, limit_bytes: int
) -> tuple[list[Wave], dict[int, list[Waiting]]]:
    """As a rank that holds these boxes converted."""
    waiting: defaultdict[int, list[Waiting]] = defaultdict(list)
    chunks: set[int] = set()
    for scales, box in wanted:
        chunks |= {read.chunk for read in plan_boxes(grid, 0, [scales.elements(scales.box(box), grid.spec.shape)])}
        for read in plan_boxes(grid, 0, [box]):
            waiting[read.chunk] += [Waiting(scales, copy.source) for copy in read.copies]
    return plan_waves(grid, chunks, waiting, kept_bytes=limit_bytes), dict(waiting)


def chunks_of_blocks(grid: Grid, chunk: int, one: Waiting) -> set[int]:
    """By looking at each element of the part, and of its block."""
    begins = [within.start for within in grid.chunk_box(chunk)]
    met = set()
    for element in product(
        *(range(low + part.start, low + part.stop) for low, part in zip(begins, one.part, strict=True))
    ):
        block = one.scales.box(tuple((at, at + 1) for at in element))
        met |= {read.chunk for read in plan_boxes(grid, 0, [one.scales.elements(block, grid.spec.shape)])}
    return met


def kept_bytes(some: list[Waiting]) -> int:
    return sum(ITEM_BYTES * math.prod(part.stop - part.start for part in one.part) for one in some)


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=3).map(tuple),
    chunk_bytes=CHUNK_BYTES,
    limit_bytes=st.sampled_from([0, 20, 60, 200, 1 << 20]),
)
def test_nothing_is_converted_before_its_blocks_are_looked_through_and_no_more_is_kept_than_allowed(
    data: st.DataObject, shape: tuple[int, ...], chunk_bytes: int, limit_bytes: int
) -> None:
    wanted = []
    for number in range(data.draw(st.integers(1, 2))):
        block = tuple(data.draw(st.sampled_from([1, 2, 3, 5, 128])) for _ in shape)
        ends = [sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=2))) for size in shape]
        wanted.append((Scales(number, block, "float8_e4m3fn"), tuple((low, high) for low, high in ends)))
    with small_chunks(chunk_bytes):
        grid = grid_of(shape)
        waves, waiting = planned(grid, wanted, limit_bytes=limit_bytes)
        blocks = {
            chunk: set().union(*(chunks_of_blocks(grid, chunk, one) for one in waiting[chunk])) for chunk in waiting
        }
        seen: set[int] = set()
        kept: dict[int, int] = {}
        dropped: set[int] = set()
        converted: list[int] = []
        for wave in waves:
            for chunk, then in wave.reads:
                assert chunk not in seen
                seen.add(chunk)
                if then == "convert":
                    assert blocks.get(chunk, set()) <= {chunk}
                    converted.append(chunk)
                elif then == "keep":
                    kept[chunk] = kept_bytes(waiting[chunk])
                else:
                    dropped.add(chunk)
                assert sum(kept.values()) <= limit_bytes
            for chunk in (*wave.ready, *wave.again):
                assert blocks[chunk] <= seen
                converted.append(chunk)
            assert set(wave.ready) <= kept.keys()
            assert set(wave.again) <= dropped
            kept = {chunk: size for chunk, size in kept.items() if chunk not in wave.ready}
        assert sorted(converted) == sorted(seen)
        assert seen == waiting.keys() | set[int]().union(*blocks.values())
        if limit_bytes >= sum(map(kept_bytes, waiting.values())):
            assert not dropped


@pytest.mark.parametrize(
    ("block", "num_kept", "num_dropped"),
    [
        ((4, 8), 0, 0),  # each within a chunk
        ((5, 8), 2, 0),  # down a column of chunks, one waits for the next
        ((1, 32), 4, 0),
        ((64, 32), 4, 60),
    ],
)
def test_chunks_that_share_blocks_are_read_one_behind_the_other(
    block: tuple[int, int], num_kept: int, num_dropped: int
) -> None:
    """Sixteen rows of four chunks: a column of them is no row in the file, and a block's row of them would be kept."""
    limit_bytes = num_kept * 4 * 8 * ITEM_BYTES
    layout = Layout(
        mesh=Mesh(tp=16, pp=4, etp=16),
        arrays=(ArraySpec(name="w", dtype="float32", shape=(64, 32), dims=((0, "tp"), (1, "pp"))),),
    )
    with small_chunks(4 * 8 * ITEM_BYTES):
        grid = grids(layout)[0]
        assert (grid.chunk_shape, grid.chunks_per_dim) == ((4, 8), (16, 4))
        waves, _ = planned(grid, [(Scales(0, block, "float8_e4m3fn"), ((0, 64), (0, 32)))], limit_bytes=limit_bytes)
        assert sum(len(wave.again) for wave in waves) == num_dropped


def test_a_node_keeps_no_more_than_it_may_however_many_ranks_it_has() -> None:
    for ranks_per_node in (1, 2, 3, 8, 9, 72, 1024):
        assert ranks_per_node * kept_share(ranks_per_node) <= NODE_KEPT_BYTES
        assert 0 < kept_share(ranks_per_node) <= RANK_KEPT_BYTES
    assert kept_share(8) == RANK_KEPT_BYTES


def test_only_boxes_that_no_other_one_holds_are_looked_through() -> None:
    whole, part, beside = ((0, 4), (0, 4)), ((1, 3), (0, 4)), ((3, 5), (0, 4))
    assert outermost([part, whole, beside, whole]) == [whole, beside]


def test_a_restore_keeps_no_more_than_allowed_and_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 MiB of float32 with one scale, of which a quarter may wait; what is allocated is counted."""
    limit_bytes, chunk_bytes, rows = 2 << 20, 64 << 10, 2048
    monkeypatch.setattr(changes, "_BLOCK_ELEMENTS", 1024)
    values = np.linspace(-1, 1, rows * 1024, dtype=np.float32).reshape(rows, 1024)
    with small_chunks(chunk_bytes):
        old = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="float32", shape=values.shape),))
        new = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="float8_e4m3fn", shape=values.shape),))
        store = MemoryStore()
        opened = open_commit(store, save(store, old, {"w": values}, step=1).ref)
        plan, intake = plan_rank(new, Rank(0)), Intake(convert={"w": ScaledDown(array="w", block=values.shape)})
        data = memoryview(bytearray(plan.data_bytes))
        read = partial(read_rank_into, store, opened, new, plan, data, threads=1, intake=intake, kept_bytes=limit_bytes)
        read()  # what is computed once has been
        tracemalloc.start()
        read()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert limit_bytes <= peak_bytes < limit_bytes + 8 * chunk_bytes
