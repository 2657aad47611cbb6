"""What a restore converts equals the logical array converted by numpy, bit for bit, on any mesh and in any share."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid
from behemoth.base.ids import Rank, Step
from behemoth.checkpoint import changes
from behemoth.checkpoint.changes import Change, Scales, ScaleTable, largest_of_blocks
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
)
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_rank
from behemoth.checkpoint.reshard import plan_resharding
from behemoth.checkpoint.scale_waves import RANK_KEPT_BYTES
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import Logical, arena_of, local_arrays, raw_bytes, save, unstaged
from checkpoint.plain_scales import blocked, scaled, scales_of
from checkpoint.random_layouts import CHUNK_BYTES, meshes, shared, small_chunks

Array = npt.NDArray[Any]
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn")
SHAPES = st.lists(st.integers(1, 12), min_size=0, max_size=3).map(tuple)
LONE = Mesh()


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Of many magnitudes, ties and zeros among them, all within float8_e4m3fn."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * 2.0 ** rng.integers(-14, 7, size=shape)
    values = np.where(rng.random(shape) < 0.2, np.round(values), values)
    return np.asarray(np.clip(values, -440, 440)).astype(DTYPES[dtype]).reshape(shape)


def random_bits(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    raw = np.random.default_rng(seed).integers(0, 256, math.prod(shape) * DTYPES[dtype].itemsize, dtype=np.uint8)
    return raw.view(DTYPES[dtype]).reshape(shape)


def saved(arrays: Logical, layout: Layout) -> tuple[MemoryStore, Commit]:
    store = MemoryStore()
    return store, open_commit(store, save(store, layout, arrays, step=5).ref)


def restored(
    store: MemoryStore,
    opened: Commit,
    layout: Layout,
    rank: int,
    intake: Intake,
    *,
    threads: int = 1,
    kept_bytes: int = RANK_KEPT_BYTES,
) -> dict[str, bytes]:
    plan = plan_rank(layout, Rank(rank))
    with arena_of(plan) as arena:
        np.frombuffer(arena.filling(0), dtype=np.uint8)[:] = 0xEE
        read_rank(store, opened, layout, plan, arena, 0, threads=threads, intake=intake, kept_bytes=kept_bytes)
        return unstaged(arena, plan, 0)  # checks the CRCs that the restore recorded


def plain(arrays: Logical) -> list[ArraySpec]:
    return [
        ArraySpec(name=name, dtype=array.dtype.name, shape=array.shape, may_be_zero=True)
        for name, array in arrays.items()
    ]


def check(data: st.DataObject, old: Logical, wanted: Logical, convert: Mapping[str, Conversion]) -> None:
    """Save `old` on one random mesh, restore on another, each array shared in a random way on either; every rank then
    holds what is its own of `wanted`. Values are worked on, and kept for their scales, some or all at a time."""
    was, now = data.draw(meshes()), data.draw(meshes())
    before = Layout(mesh=was, arrays=tuple(data.draw(shared(spec, was)) for spec in plain(old)))
    before = replace(before, arrays=tuple(replace(spec, may_be_zero=True) for spec in before.arrays))
    layout = Layout(mesh=now, arrays=tuple(data.draw(shared(spec, now)) for spec in plain(wanted)))
    with small_chunks(data.draw(CHUNK_BYTES)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "_BLOCK_ELEMENTS", data.draw(st.sampled_from([1, 7, 1 << 18])))
        kept_bytes = data.draw(st.sampled_from([0, 50, 300, 1 << 20]))
        store, opened = saved(old, before)
        for rank in range(now.num_ranks):
            intake, threads = Intake(convert=dict(convert)), data.draw(st.sampled_from([1, 4]))
            got = restored(store, opened, layout, rank, intake, threads=threads, kept_bytes=kept_bytes)
            expected = local_arrays(layout, rank, wanted)
            assert got == {name: raw_bytes(array) for name, array in expected.items()}


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=SHAPES, source=st.sampled_from(FLOATS), target=st.sampled_from(FLOATS))
def test_a_cast_gives_the_nearest_values_beside_the_array_as_it_is(
    data: st.DataObject, shape: tuple[int, ...], source: str, target: str
) -> None:
    master = numbers(shape, source, 1)
    wanted = {"master": master, "weights": master.astype(DTYPES[target])}
    check(data, {"master": master}, wanted, {"weights": Cast(array="master")})


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), target=st.sampled_from(FLOATS))
def test_a_part_of_an_array_comes_alone(data: st.DataObject, shape: list[int], target: str) -> None:
    whole = numbers(tuple(shape), target, 2)
    ends = [sorted(data.draw(st.sets(st.integers(0, size), min_size=2, max_size=2))) for size in shape]
    part = whole[tuple(slice(low, high) for low, high in ends)]
    begin = tuple(low for low, _ in ends)
    check(data, {"experts": whole}, {"experts": part}, {"experts": Cast(array="experts", begin=begin)})


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=SHAPES)
def test_float32_comes_from_its_halves_and_falls_into_them(data: st.DataObject, shape: tuple[int, ...]) -> None:
    master = random_bits(shape, "float32", 3)  # NaN of all kinds too
    bits = master.view(np.uint32)
    halves = {
        "high": (bits >> 16).astype(np.uint16).view(DTYPES["bfloat16"]),
        "low": (bits & 0xFFFF).astype(np.uint16),
    }
    check(data, halves, {"master": master}, {"master": Joined(high="high", low="low")})
    check(data, {"master": master}, halves, {"high": HighBits(array="master"), "low": LowBits(array="master")})


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    shape=SHAPES,
    source=st.sampled_from(["float32", "bfloat16", "float64"]),
    dtype=st.sampled_from(["float8_e4m3fn", "float8_e5m2"]),
)
def test_float8_with_scales_is_that_of_the_whole_array_whoever_holds_which_part(
    data: st.DataObject, shape: tuple[int, ...], source: str, dtype: str
) -> None:
    master = (numbers(shape, "float64", 4) * 1000).astype(DTYPES[source])
    block = tuple(data.draw(st.sampled_from([1, 2, 5, 128])) for _ in shape)
    weights, scales = scaled(master, block, dtype)
    down: dict[str, Conversion] = {
        "w": ScaledDown(array="w", block=block),
        "s": ScalesOf(array="w", block=block, dtype=dtype),
    }
    check(data, {"w": master}, {"w": weights, "s": scales}, down)
    by_saved = {"w": ScaledDown(array="w", block=block, scales="s")}
    check(data, {"w": master, "s": scales}, {"w": weights, "s": scales}, by_saved)
    target = data.draw(st.sampled_from(["float32", "bfloat16"]))
    back = (weights.astype(np.float32) * blocked(scales, shape, block)).astype(DTYPES[target]).reshape(shape)
    up: Mapping[str, Conversion] = {"w": ScaledUp(array="w", scales="s", block=block)}
    check(data, {"w": weights, "s": scales}, {"w": back, "s": scales}, up)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=SHAPES)
def test_one_array_may_have_scales_of_several_kinds_at_once_and_be_wanted_as_it_is(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    master = (numbers(shape, "float32", 9) * 1000).astype(np.float32)
    wanted, convert = {"w": master}, dict[str, Conversion]()
    for name, dtype in (("a", "float8_e4m3fn"), ("b", "float8_e5m2")):
        block = tuple(data.draw(st.sampled_from([1, 2, 5, 128])) for _ in shape)
        wanted[name], wanted[f"{name}_scales"] = scaled(master, block, dtype)
        convert[name] = ScaledDown(array="w", block=block)
        convert[f"{name}_scales"] = ScalesOf(array="w", block=block, dtype=dtype)
    check(data, {"w": master}, wanted, convert)


def test_one_scale_for_all_may_have_any_number_of_dims() -> None:
    master = numbers((4, 6), "float32", 5)
    scale = scales_of(master, (4, 6), "float8_e4m3fn")
    weights = (master / scale).astype(DTYPES["float8_e4m3fn"])
    for shape in ((), (1,), (1, 1, 1)):
        wanted = {"w": weights, "s": scale.reshape(shape)}
        layout = Layout(mesh=LONE, arrays=tuple(plain(wanted)))
        store, opened = saved({"w": master}, Layout(mesh=LONE, arrays=tuple(plain({"w": master}))))
        down: dict[str, Conversion] = {"w": ScaledDown(array="w", block=(9, 9)), "s": ScalesOf(array="w", block=(9, 9))}
        got = restored(store, opened, layout, 0, Intake(convert=down))
        assert got == {name: raw_bytes(array) for name, array in wanted.items()}
        store, opened = saved(wanted, layout)
        up = Intake(convert={"w": ScaledUp(array="w", scales="s", block=(9, 9))}, extra=("s",))
        back = restored(store, opened, Layout(mesh=LONE, arrays=tuple(plain({"w": master}))), 0, up)
        assert back["w"] == raw_bytes(weights.astype(np.float32) * scale)


def lone(old: Logical, wanted: Logical, intake: Intake) -> dict[str, bytes]:
    store, opened = saved(old, Layout(mesh=LONE, arrays=tuple(plain(old))))
    return restored(store, opened, Layout(mesh=LONE, arrays=tuple(plain(wanted))), 0, intake)


def test_what_exceeds_a_type_with_infinities_becomes_infinite() -> None:
    master = np.array([70000, -70000, 65519, np.inf, np.nan], dtype=np.float32)
    half = lone({"w": master}, {"w": np.zeros(5, np.float16)}, Intake(convert={"w": Cast(array="w")}))["w"]
    assert np.array_equal(
        np.frombuffer(half, np.float16), np.array([np.inf, -np.inf, 65504, np.inf, np.nan], np.float16), equal_nan=True
    )


@pytest.mark.parametrize("value", [465.0, -1e6, np.inf])
def test_what_float8_e4m3fn_lacks_is_refused_by_name_instead_of_a_nan(value: float) -> None:
    wanted = {"w": np.zeros(2, DTYPES["float8_e4m3fn"])}
    with pytest.raises(Invalid, match=r"array 'm': expected values that float8_e4m3fn has, at most 448, got "):
        lone({"m": np.array([1, value], np.float32)}, wanted, Intake(convert={"w": Cast(array="m")}))
    kept = lone({"m": np.array([464, np.nan], np.float32)}, wanted, Intake(convert={"w": Cast(array="m")}))["w"]
    assert kept == np.array([448, np.nan], DTYPES["float8_e4m3fn"]).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_scale_is_computed_over_what_is_not_finite(value: float) -> None:
    master = np.array([[1, value]], dtype=np.float32)
    wanted = {"w": np.zeros((1, 2), DTYPES["float8_e4m3fn"])}
    down = Intake(convert={"w": ScaledDown(array="m", block=(1, 1))})
    with pytest.raises(Invalid, match="array 'm': expected finite values to store as float8_e4m3fn"):
        lone({"m": master}, wanted, down)


WANTED = {"w": np.zeros((4, 6), DTYPES["bfloat16"])}
OLD = {"w": np.ones((4, 6), np.float32), "i": np.ones((4, 6), np.int32), "s": np.ones((2, 6), np.float32)}


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_a_saved_scale_by_which_nothing_can_be_divided_is_refused(scale: float) -> None:
    old = {"m": np.zeros((2, 3), dtype=np.float32), "s": np.array([[1.0], [scale]], dtype=np.float32)}
    wanted = {"w": np.zeros((2, 3), dtype=DTYPES["float8_e4m3fn"])}
    down = Intake(convert={"w": ScaledDown(array="m", block=(1, 3), scales="s")})
    with pytest.raises(Invalid, match="array 's': expected finite scales other than 0 to divide by, got"):
        lone(old, wanted, down)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_values_that_saved_scales_are_too_small_for_are_refused_instead_of_clipped(dtype: str) -> None:
    most = float(ml_dtypes.finfo(DTYPES[dtype]).max)
    wanted = {"w": np.zeros((1, 2), DTYPES[dtype])}
    down = Intake(convert={"w": ScaledDown(array="m", block=(1, 2), scales="s")}, extra=())

    def stored(value: float) -> bytes:
        old = {"m": np.array([[1, value]], np.float32), "s": np.full((1, 1), 0.5, np.float32)}
        return lone(old, wanted, down)["w"]

    assert stored(-most / 2) == np.array([2, -most], DTYPES[dtype]).tobytes()
    assert stored(most / 2 * 1.03) == np.array([2, most], DTYPES[dtype]).tobytes()  # as a cast rounds
    assert stored(np.nan) == np.array([2, np.nan], DTYPES[dtype]).tobytes()
    for value in (most, -1e38, *([np.inf] if dtype == "float8_e4m3fn" else [])):
        with pytest.raises(Invalid, match=f"array 'm': expected value / scale to be at most {most:g} to store it as"):
            stored(value)


@pytest.mark.parametrize(
    ("conversion", "text"),
    [
        (Cast(array="v"), "expected a saved array 'v', got none of that name"),
        (Cast(array="i"), "expected 'i' saved as bfloat16, or two of .*, got int32"),
        (Cast(array="s"), r"expected 's' saved with shape \[4, 6\], got float32\[2, 6\]"),
        (Cast(array="w", begin=(1, 0)), r"a part of shape \[4, 6\] of 'w' at \[1, 0\], got float32\[4, 6\]"),
        (Cast(array="w", begin=(-1, 0)), r"a part of shape \[4, 6\] of 'w' at \[-1, 0\]"),
        (Cast(array="w", begin=(0,)), r"a part of shape \[4, 6\] of 'w' at \[0\]"),
        (
            ScaledDown(array="w", block=(2, 2)),
            "to make float8_e4m3fn or float8_e5m2, got an array of bfloat16",
        ),
        (ScaledUp(array="w", scales="s", block=(2, 1)), "expected 'w' saved as float8_e4m3fn or float8_e5m2"),
        (Joined(high="w", low="i"), "expected to make float32, got an array of bfloat16"),
        (HighBits(array="i"), r"expected 'i' saved as bfloat16 or float16 or float32\[4, 6\], got int32"),
        (LowBits(array="w"), "expected to make uint16, got an array of bfloat16"),
    ],
)
def test_a_conversion_that_does_not_fit_is_refused_before_anything_is_read(conversion: Conversion, text: str) -> None:
    with pytest.raises(Invalid, match=f"array 'w' by {type(conversion).__name__}: .*{text}"):
        lone(OLD, WANTED, Intake(convert={"w": conversion}, extra=("i", "s")))


@pytest.mark.parametrize(
    ("conversion", "text"),
    [
        (ScaledDown(array="w", block=(2,)), r"expected a block of 2 dims, each 1 or more, got \[2\]"),
        (ScaledDown(array="w", block=(2, 0)), r"expected a block of 2 dims, each 1 or more, got \[2, 0\]"),
        (ScaledDown(array="w", block=(3, 1), scales="i"), r"expected scales 'i' as .*\[2, 6\], got int32\[4, 6\]"),
        (ScaledDown(array="w", block=(2, 2), scales="s"), r"expected scales 's' as .*\[2, 3\], got float32\[2, 6\]"),
    ],
)
def test_scales_that_do_not_fit_are_refused(conversion: Conversion, text: str) -> None:
    wanted = {"w": np.zeros((4, 6), DTYPES["float8_e4m3fn"])}
    with pytest.raises(Invalid, match=text):
        lone(OLD, wanted, Intake(convert={"w": conversion}, extra=("i", "s")))


def test_an_array_of_another_type_is_refused_unless_it_is_converted() -> None:
    with pytest.raises(Invalid, match=r"1 differ 'w': saved float32\[4, 6\], this run has bfloat16\[4, 6\]"):
        lone(OLD, WANTED, Intake(extra=("i", "s")))
    with pytest.raises(Invalid, match="expected conversions into arrays of the layout, got one into 'v'"):
        lone(OLD, WANTED, Intake(convert={"v": Cast(array="w")}, extra=("i", "s")))


def test_a_conversion_counts_also_where_the_checkpoint_has_an_array_of_that_form() -> None:
    old = {"w": numbers((4, 6), "bfloat16", 6), "m": numbers((4, 6), "float32", 7)}
    got = lone(old, old, Intake(convert={"w": Cast(array="m")}))
    assert got == {"w": raw_bytes(old["m"].astype(DTYPES["bfloat16"])), "m": raw_bytes(old["m"])}


def test_a_chunk_that_is_wanted_as_it_is_and_converted_is_read_once() -> None:
    master = numbers((8, 16), "float32", 7)
    wanted = {"m": master, "w": master.astype(DTYPES["bfloat16"])}
    with small_chunks(64):
        before = Layout(mesh=LONE, arrays=tuple(plain({"m": master})))
        layout = Layout(mesh=LONE, arrays=tuple(plain(wanted)))
        found = origins(before, layout, step=Step(1), intake=Intake(convert={"w": Cast(array="m")}))
        work = plan_resharding(before, layout, plan_rank(layout, Rank(0)), found)
        assert [read.chunk for read in work.reads] == list(range(grids(before)[0].num_chunks))


def test_a_rank_looks_for_scales_in_its_parts_of_a_packed_dim_and_not_between_them() -> None:
    """gate|up of 4 columns each: coordinate 0 of 4 holds the first column of either."""
    master = np.arange(1, 17, dtype=np.float32).reshape(2, 8)
    packed = ArraySpec(name="w", dtype="float32", shape=(2, 8), dims=((1, "tp"),), packed=(1, (4, 4)))
    layout = Layout(mesh=Mesh(tp=4, edp=4), arrays=(replace(packed, dtype="float8_e4m3fn"),))
    down = Intake(convert={"w": ScaledDown(array="w", block=(2, 1))})
    with small_chunks(4):
        store, opened = saved({"w": master}, Layout(mesh=Mesh(tp=8, edp=8), arrays=(replace(packed, packed=None),)))
        grid = grids(opened.layout)[0]
        mine = {chunk for chunk in range(grid.num_chunks) if grid.chunk_box(chunk)[1].start in (0, 4)}
        for chunk in set(range(grid.num_chunks)) - mine:
            store._objects[opened.shard_key(0, 0)][grid.chunk_offset_bytes(chunk)] ^= 1
        got = restored(store, opened, layout, 0, down)["w"]
    columns = master[:, [0, 4]]
    scales = columns.max(axis=0) / np.float32(448)
    assert got == raw_bytes((columns / scales).astype(DTYPES["float8_e4m3fn"]))


def test_a_chunk_of_a_stack_of_experts_is_scaled_with_little_memory_beside_it() -> None:
    values = np.ones((1, 1, 2048, 1024), dtype=np.float32)
    scales = Scales(values=0, block=(1, 1, 128, 128), dtype="float8_e4m3fn")
    table = ScaleTable(scales=scales, box=((0, 1), (0, 1), (0, 16), (0, 8)), values=np.ones((1, 1, 16, 8), np.float32))
    change = Change(
        conversion=ScaledDown(array="w", block=scales.block),
        part="w",
        source="float32",
        target=scales.dtype,
        low=(0, 0, 0, 0),
        scales=scales,
    )
    target = np.empty(values.shape, dtype="V1")
    place = tuple(slice(0, size) for size in values.shape)
    tracemalloc.start()
    assert {float(found.max()) for _, found in largest_of_blocks(values, (0, 0, 0, 0), scales)} == {1}
    change.apply(values.view("V4"), target, place, {scales: table})
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert target.tobytes() == np.ones(values.shape, DTYPES[scales.dtype]).tobytes()
    assert peak_bytes < values.nbytes


def test_a_damaged_chunk_is_named_also_when_only_its_scale_is_wanted() -> None:
    master = numbers((8, 16), "float32", 8)
    with small_chunks(64):
        store, opened = saved({"m": master}, Layout(mesh=LONE, arrays=tuple(plain({"m": master}))))
        store._objects[opened.shard_key(0, 0)][grids(opened.layout)[0].chunk_offset_bytes(3)] ^= 1
        wanted = Layout(mesh=LONE, arrays=(ArraySpec(name="s", dtype="float32", shape=(1, 1)),))
        with pytest.raises(Corrupt, match="array 'm', chunk 3, file "):
            restored(store, opened, wanted, 0, Intake(convert={"s": ScalesOf(array="m", block=(8, 16))}))


@given(st.binary(max_size=200))
def test_rubbish_is_corrupt_and_never_a_raw_error(data: bytes) -> None:
    with suppress(Corrupt):
        assert isinstance(Intake.decode(data), Intake)


def test_an_intake_survives_the_wire() -> None:
    intake = Intake(
        convert={
            "a": Cast(array="b", begin=(1, 0)),
            "c": ScaledDown(array="d", block=(1, 128)),
            "e": Joined(high="f", low="g"),
        },
        only=("m/*",),
        missing=("x",),
    )
    assert Intake.decode(intake.encode()) == intake
