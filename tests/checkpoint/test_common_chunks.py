"""Which chunks several ranks read is what their plans say one by one, and is known for a giant node in columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank, Step
from behemoth.checkpoint.box import Box, enclosing
from behemoth.checkpoint.common_chunks import CommonChunks, SharedObject, read_by_several
from behemoth.checkpoint.conversion import Cast, Conversion, Intake, ScaledDown, ScaledUp, ScalesOf, num_blocks
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.checkpoint.matching import Origin, origins
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reshard import Resharding, chunks_met, plan_resharding
from behemoth.checkpoint.units import ReadUnit
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import save
from checkpoint.random_layouts import CHUNK_BYTES, layouts, meshes, reshared, shared, small_chunks

STEP = Step(1)


def one_by_one(
    commit: Commit, layout: Layout, found: Sequence[Origin], ranks: Sequence[Rank]
) -> dict[ReadUnit, frozenset[Rank]]:
    """By the plan of each rank, for every chunk that any of them reads."""
    readers: defaultdict[tuple[int, int], set[Rank]] = defaultdict(set)
    for rank in ranks:
        work = plan_resharding(commit.layout, layout, plan_rank(layout, rank), found)
        for chunk in chunks_read(commit.layout, work):
            readers[chunk].add(rank)
    return {chunk_unit(commit, *chunk): frozenset(some) for chunk, some in readers.items()}


def chunk_unit(commit: Commit, array: int, chunk: int) -> ReadUnit:
    grid = grids(commit.layout)[array]
    return ReadUnit(commit.shard_of(array, chunk), grid.chunk_offset_bytes(chunk), grid.payload_bytes + TRAILER_BYTES)


def chunks_read(saved: Layout, work: Resharding) -> set[tuple[int, int]]:
    """Array and number of each chunk that a rank takes something of, looks through for scales, or finds them in."""
    found = {(read.array, read.chunk) for read in work.reads}
    boxes: defaultdict[int, list[Box]] = defaultdict(list)
    for scales, blocks in work.scales.items():
        if scales.saved is None:
            shape = grids(saved)[scales.values].spec.shape
            boxes[scales.values] += [scales.elements(box, shape) for box in blocks]
        else:
            num_dims = len(grids(saved)[scales.saved].spec.shape)
            boxes[scales.saved].append(scales.stored(enclosing(blocks), num_dims))
    for array, some in boxes.items():
        grid = grids(saved)[array]
        found |= {(array, chunk) for chunk in chunks_met(grid.chunk_shape, grid.chunks_per_dim, some)}
    return found


def check(old: Layout, new: Layout, intake: Intake, ranks: Sequence[Rank]) -> int:
    """The units that several of these ranks read."""
    store = MemoryStore()
    ones = {spec.name: np.ones(spec.shape, DTYPES[spec.dtype]) for spec in old.arrays}
    commit = open_commit(store, save(store, old, ones, step=STEP).ref)
    found = origins(old, new, step=STEP, intake=intake)
    expected = one_by_one(commit, new, found, ranks)
    common, num_common = read_by_several(commit, new, found, ranks), 0
    for array, grid in enumerate(grids(old)):
        for chunk in range(grid.num_chunks):
            unit = chunk_unit(commit, array, chunk)
            some = expected.get(unit, frozenset())
            assert common.left(unit) == (some if len(some) > 1 else frozenset())
            num_common += len(some) > 1
    return num_common


@st.composite
def nodes(draw: st.DrawFn, mesh: Mesh) -> list[Rank]:
    """Some ranks that follow one another, often all."""
    first = draw(st.sampled_from([0, 0, 0, mesh.num_ranks // 2]))
    last = draw(st.sampled_from([mesh.num_ranks, mesh.num_ranks, (first + mesh.num_ranks + 1) // 2]))
    return [Rank(rank) for rank in range(first, last)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), old=layouts(), chunk_bytes=CHUNK_BYTES)
def test_they_are_those_of_the_plans_of_ranks_on_any_two_layouts(
    data: st.DataObject, old: Layout, chunk_bytes: int
) -> None:
    with small_chunks(chunk_bytes):
        new = data.draw(reshared(old))
        check(old, new, Intake(), data.draw(nodes(new.mesh)))


@pytest.mark.parametrize("way", ["computed", "scales alone", "saved", "part", "two of one"])
@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    shape=st.lists(st.integers(1, 12), min_size=0, max_size=3).map(tuple),
    chunk_bytes=CHUNK_BYTES,
)
def test_they_are_those_of_the_plans_where_a_restore_converts(
    data: st.DataObject, shape: tuple[int, ...], way: str, chunk_bytes: int
) -> None:
    block = tuple(data.draw(st.sampled_from([1, 2, 5, 128])) for _ in shape)
    values = ArraySpec(name="w", dtype="float32", shape=shape)
    low, other = replace(values, dtype="float8_e4m3fn"), replace(values, name="v", dtype="bfloat16")
    scales = ArraySpec(name="s", dtype="float32", shape=num_blocks(shape, block))
    begin = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    part = replace(values, shape=tuple(size - at for size, at in zip(shape, begin, strict=True)))
    up = ScaledUp(array="w", scales="s", block=block)
    cases: dict[str, tuple[list[ArraySpec], list[ArraySpec], Mapping[str, Conversion]]] = {
        "computed": (
            [values],
            [low, scales],
            {"w": ScaledDown(array="w", block=block), "s": ScalesOf(array="w", block=block)},
        ),
        "scales alone": ([values], [scales], {"s": ScalesOf(array="w", block=block)}),
        "saved": ([low, scales], [values, scales], {"w": up}),
        "part": ([values], [part], {"w": Cast(array="w", begin=begin)}),
        "two of one": ([low, scales], [values, other], {"w": up, "v": up}),
    }
    before, after, convert = cases[way]
    was, now = data.draw(meshes()), data.draw(meshes().filter(lambda mesh: mesh.num_ranks > 1))
    extra = ("s",) if way == "two of one" else ()
    with small_chunks(chunk_bytes):
        old = Layout(mesh=was, arrays=tuple(data.draw(shared(spec, was)) for spec in before))
        new = Layout(mesh=now, arrays=tuple(data.draw(shared(spec, now)) for spec in after))
        check(old, new, Intake(convert=dict(convert), extra=extra), data.draw(nodes(now)))


def test_saved_scales_are_read_from_the_first_to_the_last_that_a_rank_needs() -> None:
    """Of two packed parts a rank holds a half each; between them lie scales that are another one's."""
    values = ArraySpec(name="w", dtype="float32", shape=(32, 4), dims=((0, "tp"),), packed=(0, (16, 16)))
    scales = ArraySpec(name="s", dtype="float32", shape=(32, 1))
    with small_chunks(16):
        old = Layout(mesh=Mesh(), arrays=(replace(values, dtype="float8_e4m3fn"), scales))
        new = Layout(mesh=Mesh(tp=2, etp=2), arrays=(values,))
        intake = Intake(convert={"w": ScaledUp(array="w", scales="s", block=(1, 4))}, extra=("s",))
        assert grids(old)[1].num_chunks == 8
        assert check(old, new, intake, [Rank(0), Rank(1)]) == 4


def test_who_has_taken_a_unit_or_has_ended_is_not_waited_for_and_other_ranges_are_nobodys() -> None:
    ranks = [Rank(rank) for rank in range(100, 110)]
    bits = np.packbits(np.array([[True, False]] * 9 + [[True, True]]), axis=0, bitorder="little")
    common = CommonChunks(ranks, lambda key: SharedObject(16, 10, bits.copy()) if key == "a" else None)
    first, second = ReadUnit("a", 0, 10), ReadUnit("a", 16, 10)
    assert common.left(first) == set(ranks)
    assert common.left(second) == {109}
    common.took(first, Rank(109))
    common.took(first, Rank(100))
    common.took(first, Rank(100))
    common.ended(Rank(103))
    assert common.left(first) == set(ranks) - {100, 103, 109}
    assert common.left(second) == {109}
    for other in (ReadUnit("a", 32, 10), ReadUnit("a", 0, 26), ReadUnit("a", 3, 10), ReadUnit("b", 0, 10)):
        common.took(other, Rank(101))
        assert not common.left(other)
