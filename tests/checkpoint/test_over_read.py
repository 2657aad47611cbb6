"""Over-read, beside the reads that ranks really plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank, Step
from behemoth.checkpoint.box import enclosing
from behemoth.checkpoint.conversion import (
    Cast,
    Conversion,
    HighBits,
    Intake,
    Joined,
    LowBits,
    ScaledDown,
    ScaledUp,
    ScalesOf,
    num_blocks,
)
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.into import num_bytes
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.over_read import OverRead, over_read
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_rank
from behemoth.checkpoint.reshard import chunks_met, plan_resharding
from behemoth.checkpoint.scale_waves import RANK_KEPT_BYTES
from behemoth.ports import Into
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import arena_of, logical_arrays, save, toy_layout
from checkpoint.random_layouts import CHUNK_BYTES, layouts, meshes, reshared, shared, small_chunks


def planned(old: Layout, new: Layout, rank: int) -> tuple[int, int]:
    """Bytes that a rank holds, and that it reads for itself."""
    plan = plan_rank(new, Rank(rank))
    work = plan_resharding(old, new, plan, origins(old, new, step=Step(1)))
    read_bytes = sum(grids(old)[read.array].payload_bytes + TRAILER_BYTES for read in work.reads)
    return sum(piece.nbytes for piece in plan.pieces), read_bytes


@settings(max_examples=80, deadline=None)
@given(data=st.data(), old=layouts(), chunk_bytes=CHUNK_BYTES)
def test_the_figures_are_those_of_all_ranks_plans(data: st.DataObject, old: Layout, chunk_bytes: int) -> None:
    new = data.draw(reshared(old))
    ranks = data.draw(st.lists(st.integers(0, new.mesh.num_ranks - 1), min_size=1, unique=True) | st.none())
    with small_chunks(chunk_bytes):
        found = over_read(old, new, origins(old, new, step=Step(1)), ranks=ranks)
        planned_of = [planned(old, new, rank) for rank in (range(new.mesh.num_ranks) if ranks is None else ranks)]
        assert found.held_bytes == sum(held for held, _ in planned_of)
        assert found.alone_bytes == sum(read for _, read in planned_of)
        assert found.worst_alone == max([1.0, *(read / held for held, read in planned_of if held)])
        assert found.needed_bytes == sum(array.num_bytes for array in old.arrays)
        assert found.once_bytes == sum(grid.num_chunks * (grid.payload_bytes + TRAILER_BYTES) for grid in grids(old))


def test_bytes_of_what_is_converted_are_those_of_the_saved_arrays() -> None:
    """Halves of a float32 whose high ones are weights on every rank, its low ones flat over dp; and the other way."""
    master = ArraySpec(name="m", dtype="float32", shape=(6, 40), dims=((1, "tp"),), flat_over="dp")
    high = ArraySpec(name="w", dtype="bfloat16", shape=(6, 40), dims=((1, "tp"),))
    low = ArraySpec(name="l", dtype="uint16", shape=(6, 40), dims=((0, "tp"),), flat_over="dp")
    split, lone = (
        Layout(mesh=Mesh(tp=2, dp=3, edp=6), arrays=(high, low)),
        Layout(mesh=Mesh(dp=2, edp=2), arrays=(master,)),
    )
    halves: dict[str, Conversion] = {"w": HighBits(array="m"), "l": LowBits(array="m")}
    joined: dict[str, Conversion] = {"m": Joined(high="w", low="l")}
    with small_chunks(64):
        for old, new, convert in ((split, lone, joined), (lone, split, halves)):
            found = origins(old, new, step=Step(1), intake=Intake(convert=convert))
            figures = over_read(old, new, found)
            held = alone = 0
            for rank in range(new.mesh.num_ranks):
                plan = plan_rank(new, Rank(rank))
                for array in {piece.array for piece in plan.pieces}:  # each by itself
                    mine = [one if at == array else None for at, one in enumerate(found)]
                    work = plan_resharding(old, new, plan, mine)
                    alone += sum(grids(old)[one.array].payload_bytes + TRAILER_BYTES for one in work.reads)
                elements = sum(piece.nbytes // new.arrays[piece.array].itemsize for piece in plan.pieces)
                held += 4 * elements
            assert (figures.held_bytes, figures.alone_bytes) == (held, alone)
            assert figures.needed_bytes == 6 * 40 * 4


class Metered(MemoryStore):
    """Counts what is read, and how often each range."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self.reads: Counter[tuple[str, int, int]] = Counter()

    @property
    def read_bytes(self) -> int:
        return sum(length * num for (_, _, length), num in self.reads.items())

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        super().read_into(key, offset_bytes=offset_bytes, into=into)
        self.reads[key, offset_bytes, num_bytes(into)] += 1


class Reads(NamedTuple):
    """Of a restore that converts."""

    of_ranks: list[int]
    of_fleet: int
    """When ranks that read a chunk share it, each reading of it."""
    told: OverRead


def metered(old: Layout, new: Layout, convert: Mapping[str, Conversion], *, kept_bytes: int, threads: int = 1) -> Reads:
    store = Metered()
    ones = {spec.name: np.ones(spec.shape, DTYPES[spec.dtype]) for spec in old.arrays}
    opened = open_commit(store, save(store, old, ones, step=1).ref)
    intake = Intake(convert=dict(convert))
    of_ranks, of_fleet = [], Counter[tuple[str, int, int]]()
    for rank in range(new.mesh.num_ranks):
        store.forget()
        plan = plan_rank(new, Rank(rank))
        with arena_of(plan) as arena:
            read_rank(store, opened, new, plan, arena, 0, threads=threads, intake=intake, kept_bytes=kept_bytes)
        of_ranks.append(store.read_bytes)
        of_fleet |= store.reads
    told = over_read(old, new, origins(old, new, step=Step(1), intake=intake), kept_bytes=kept_bytes)
    return Reads(of_ranks, sum(length * num for (_, _, length), num in of_fleet.items()), told)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=st.lists(st.integers(1, 12), min_size=0, max_size=3).map(tuple),
    way=st.sampled_from(["computed", "scales alone", "saved", "part"]),
    chunk_bytes=CHUNK_BYTES,
    kept_bytes=st.sampled_from([0, 30, 100, 400, RANK_KEPT_BYTES]),
    threads=st.sampled_from([1, 4]),
)
def test_what_ranks_read_for_scales_and_parts_is_counted_as_they_read_it(
    data: st.DataObject, shape: tuple[int, ...], way: str, chunk_bytes: int, kept_bytes: int, threads: int
) -> None:
    was, now = data.draw(meshes()), data.draw(meshes())
    block = tuple(data.draw(st.sampled_from([1, 2, 5, 128])) for _ in shape)
    values = ArraySpec(name="w", dtype="float32", shape=shape, may_be_zero=True)
    low = replace(values, dtype="float8_e4m3fn")
    scales = ArraySpec(name="s", dtype="float32", shape=num_blocks(shape, block), may_be_zero=True)
    begin = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    part = tuple(size - at for size, at in zip(shape, begin, strict=True))
    cases: dict[str, tuple[list[ArraySpec], list[ArraySpec], dict[str, Conversion]]] = {
        "computed": (
            [values],
            [low, scales],
            {"w": ScaledDown(array="w", block=block), "s": ScalesOf(array="w", block=block)},
        ),
        "scales alone": ([values], [scales], {"s": ScalesOf(array="w", block=block)}),
        "saved": ([low, scales], [values, scales], {"w": ScaledUp(array="w", scales="s", block=block)}),
        "part": ([values], [replace(values, shape=part)], {"w": Cast(array="w", begin=begin)}),
    }
    saved, wanted, convert = cases[way]
    with small_chunks(chunk_bytes):
        old = Layout(mesh=was, arrays=tuple(data.draw(shared(spec, was)) for spec in saved))
        new = Layout(mesh=now, arrays=tuple(data.draw(shared(spec, now)) for spec in wanted))
        found = metered(old, new, convert, kept_bytes=kept_bytes, threads=threads)
        taken_bytes = sum(taken_of_scales(old, new, convert)) if way == "saved" else 0
        assert found.told.alone_bytes == sum(found.of_ranks) + taken_bytes  # of what is taken too, twice is told
        assert found.told.once_bytes == found.of_fleet
        whole = replace(new, mesh=Mesh(), arrays=tuple(plain(spec) for spec in new.arrays))
        lone = metered(old, whole, convert, kept_bytes=kept_bytes)
        assert lone.told.once_bytes == lone.of_ranks[0] >= found.of_fleet
        assert way == "saved" or lone.told.alone_bytes == lone.of_ranks[0]
        needed = {"computed": values, "scales alone": values, "part": wanted[0]}
        assert found.told.needed_bytes == (needed[way].num_bytes if way in needed else low.num_bytes + scales.num_bytes)


def taken_of_scales(old: Layout, new: Layout, convert: Mapping[str, Conversion]) -> Iterator[int]:
    """For each rank, the bytes of chunks of saved scales that it both takes and finds scales in."""
    found = origins(old, new, step=Step(1), intake=Intake(convert=dict(convert)))
    for rank in range(new.mesh.num_ranks):
        work = plan_resharding(old, new, plan_rank(new, Rank(rank)), found)
        for scales, boxes in work.scales.items():
            assert scales.saved is not None
            grid = grids(old)[scales.saved]
            box = scales.stored(enclosing(boxes), len(grid.spec.shape))
            looked = chunks_met(grid.chunk_shape, grid.chunks_per_dim, [box])
            taken = {read.chunk for read in work.reads if read.array == scales.saved}
            yield len(looked & taken) * (grid.payload_bytes + TRAILER_BYTES)


def plain(spec: ArraySpec) -> ArraySpec:
    """Whole, on one rank."""
    return ArraySpec(name=spec.name, dtype=spec.dtype, shape=spec.shape, may_be_zero=True)


def test_one_scale_for_a_tensor_makes_each_rank_read_all_of_it_and_one_a_block_its_own() -> None:
    """And what it cannot keep of its own until all are known it reads again."""
    old = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="float32", shape=(256, 64)),))
    low = ArraySpec(name="w", dtype="float8_e4m3fn", shape=(256, 64), dims=((0, "tp"),))
    new = Layout(mesh=Mesh(tp=8, edp=8), arrays=(low,))
    with small_chunks(64 * 4):  # a chunk a row
        row = (256 + TRAILER_BYTES) / 256
        cases = (((256, 64), 32, 8, 1), ((256, 64), 8, 8 + 0.75, 1 + 0.75), ((32, 64), 32, 1, 1), ((1, 64), 0, 1, 1))
        for block, kept_rows, alone, once in cases:
            found = origins(old, new, step=Step(1), intake=Intake(convert={"w": ScaledDown(array="w", block=block)}))
            told = over_read(old, new, found, kept_bytes=kept_rows * 256)
            assert (told.alone, told.once) == pytest.approx((alone * row, once * row))


def test_the_reader_reads_what_is_told_of_ranks_that_read_for_themselves() -> None:
    old = toy_layout()
    new = Layout(mesh=Mesh(tp=3, dp=2, edp=6), arrays=old.arrays)
    with small_chunks(64):
        store = Metered()
        opened = open_commit(store, save(store, old, logical_arrays(old, 1), step=1).ref)
        store.forget()
        for rank in range(new.mesh.num_ranks):
            plan = plan_rank(new, Rank(rank))
            with arena_of(plan) as arena:
                read_rank(store, opened, new, plan, arena, 0, threads=1)
        found = over(old, new)
        assert store.read_bytes == found.alone_bytes > found.held_bytes > found.needed_bytes


def over(old: Layout, new: Layout, *, extra: tuple[str, ...] = ()) -> OverRead:
    return over_read(old, new, origins(old, new, step=Step(1), intake=Intake(extra=extra)))


def test_a_column_cut_makes_each_rank_read_what_its_peers_need_and_the_fleet_nothing_twice() -> None:
    old = Layout(
        mesh=Mesh(tp=2, edp=2), arrays=(ArraySpec(name="w", dtype="float32", shape=(1024, 1024), dims=((1, "tp"),)),)
    )
    new = Layout(mesh=Mesh(tp=4, edp=4), arrays=old.arrays)
    found = over(old, new)
    assert round(found.once, 3) == 1.0
    assert round(found.alone, 3) == round(found.worst_alone, 3) == 2.0


def test_what_is_not_restored_is_not_counted() -> None:
    weights = ArraySpec(name="w", dtype="int8", shape=(1000,))
    old = Layout(mesh=Mesh(), arrays=(weights, ArraySpec(name="m", dtype="int8", shape=(5000,))))
    found = over(old, Layout(mesh=Mesh(dp=2, edp=2), arrays=(weights,)), extra=("m",))
    assert (found.needed_bytes, found.once_bytes) == (1000, 1004)
    assert (found.held_bytes, found.alone_bytes) == (2000, 2008)


def test_of_nothing_nothing_is_read() -> None:
    array = ArraySpec(name="w", dtype="int8", shape=(10,))
    found = over(Layout(mesh=Mesh(), arrays=(array,)), Layout(mesh=Mesh(), arrays=()), extra=("w",))
    assert (found.once, found.alone, found.once_bytes) == (1.0, 1.0, 0)
