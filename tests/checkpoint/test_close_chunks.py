"""Chunks of which hardly anything is padding, for sizes of any divisors; what older releases have saved stays readable.

The figures behind the limits are those that `open_models` prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.ids import Rank, Step
from behemoth.checkpoint.cuts import LEAST_BYTES, MAX_HELD_CHUNK_BYTES, with_close_chunks
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.interop.ingest import import_layout
from behemoth.checkpoint.interop.relayout import relayout
from behemoth.checkpoint.layout import ArraySpec, Chunking, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.on_mesh import on_mesh
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.verify import verify
from behemoth.sdk.state import BoundState, State
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import Inventory, Tensor
from behemoth.spec.recipe import Recipe
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import logical_arrays, save
from checkpoint.interop.tensor_trees import chunked
from checkpoint.open_models import MESHES, MODELS, UNEVEN, figures, layout_of, spread, stored_bytes
from checkpoint.restored import held_on, restored_to

MOST_STORED = 1.01 + (4 << 10) / (1 << 20)
"""Times the data: a hundredth of padding, and the page at which the next chunk begins, of chunks from 1 MiB on."""
CRC_AND_ENTRY_BYTES = 20
"""Of each chunk, in a shard: its CRC, its entry of the index."""
WORTH_BYTES = 80_000
"""Close chunks have as much at least, where they are not half of a dim that is cut unevenly, or all that a rank has."""
SIZES = (3, 7, 11, 13, 17, 24, 40, 60, 61, 94, 127, 160, 384, 2880, 5120, 7168, 11008, 13824, 18944, 30522, 50257)
AWKWARD = ArraySpec(name="awkward", dtype="uint8", shape=(11, 996_147))
"""Eleven rows of a bit less than 1 MiB: two chunks of six."""


@st.composite
def awkward_arrays(draw: st.DrawFn) -> Layout:
    """One array from LEAST_BYTES on, of up to three dims, cut over axes that often divide nothing."""
    sizes = st.sampled_from(SIZES) | st.integers(1, 400_000)
    shape = tuple(draw(st.lists(sizes, min_size=1, max_size=3)))
    dtype = draw(st.sampled_from(["uint8", "bfloat16", "float32"]))
    least = -(-LEAST_BYTES // math.prod(shape))
    shape = (shape[0] * least, *shape[1:])
    axes = dict(zip(("tp", "dp", "cp"), draw(st.permutations(range(3))), strict=True))
    tp, dp, cp = draw(st.tuples(*[st.integers(1, 16)] * 3))
    mesh = Mesh(tp=tp, dp=dp, cp=cp, edp=tp * dp * cp)
    dims = tuple(sorted((dim, axis) for axis, dim in axes.items() if dim < len(shape) and draw(st.booleans())))
    padded = None
    if draw(st.booleans()) and dims:
        dim = draw(st.sampled_from([dim for dim, _ in dims]))
        padded = dim, shape[dim] + draw(st.integers(0, 2000))
    spec = ArraySpec(name="w", dtype=dtype, shape=shape, dims=dims, padded=padded)  # type: ignore[arg-type]
    return Layout(mesh=mesh, arrays=(spec,))


@settings(max_examples=400, deadline=None)
@given(plain=awkward_arrays())
def test_close_chunks_store_hardly_more_than_the_data_whatever_the_sizes(plain: Layout) -> None:
    (close,) = grids(replace(plain, chunking="close"))
    spec, cut = close.spec, close.cut_dim
    many_bytes = CRC_AND_ENTRY_BYTES * (close.num_chunks + close.num_shards)
    assert stored_bytes(close) <= MOST_STORED * spec.num_bytes + many_bytes
    assert close.payload_bytes <= MAX_HELD_CHUNK_BYTES
    is_much = 2 * close.chunk_shape[cut] >= spec.shape[cut] or close.chunk_shape[cut] == share(plain, cut)
    assert close.payload_bytes >= WORTH_BYTES or is_much


@settings(max_examples=400, deadline=None)
@given(plain=awkward_arrays())
def test_a_layout_whose_plain_chunks_are_good_keeps_them_and_its_digest(plain: Layout) -> None:
    (of_plain,), chosen = grids(plain), with_close_chunks(plain)
    (of_close,) = grids(replace(plain, chunking="close"))
    padded_bytes = of_plain.num_chunks * of_plain.payload_bytes - of_plain.spec.num_bytes
    is_good = padded_bytes <= of_plain.spec.num_bytes / 100 and of_plain.payload_bytes <= MAX_HELD_CHUNK_BYTES
    assert (of_close == of_plain) is is_good
    assert chosen == (plain if is_good else replace(plain, chunking="close"))


def share(layout: Layout, dim: int) -> int:
    """Rows of a dim that each rank has; 0 where they differ."""
    spec = layout.arrays[0]
    num = next((layout.axis_size(axis) for split, axis in spec.dims if split == dim), 1)
    rows = -(-spec.shared_sizes(dim)[0] // num)
    return rows if spec.shape[dim] % rows == 0 else 0


@pytest.mark.parametrize(
    ("shape", "dims", "plain", "close"),
    [
        ((11, 996_147), (), (6, 996_147), (1, 996_147)),
        ((17, 500_000), (), (9, 500_000), (1, 500_000)),
        ((127, 300_000), (), (26, 300_000), (16, 300_000)),
        ((3, 2 << 20), ((0, "tp"),), (2, 2 << 20), (1, 2 << 20)),  # one holder each, as before
        ((3, 1 << 19), ((0, "tp"),), (2, 1 << 19), (3, 1 << 19)),  # of several holders rather than of many chunks
        ((2 * 9_000_011,), ((0, "tp"),), (9_000_011,), (9_000_011,)),
        ((2 * 90_000_049,), ((0, "tp"),), (90_000_049,), (8_181_823,)),  # no share as one chunk
        ((9_000_011,), (), (4_500_006,), (4_500_006,)),
        ((4096, 8192), ((1, "tp"),), (2048, 4096), (2048, 4096)),
        ((349_527, 3), ((1, "tp"),), (1, 2), (1, 3)),  # no chunks of a byte
        ((100, 7), ((1, "tp"),), (1, 4), (1, 4)),  # small
    ],
)
def test_what_is_cut_otherwise_and_what_is_not(
    shape: tuple[int, ...], dims: tuple[tuple[int, str], ...], plain: tuple[int, ...], close: tuple[int, ...]
) -> None:
    spec = ArraySpec(name="w", dtype="uint8", shape=shape, dims=dims)  # type: ignore[arg-type]
    layout = Layout(mesh=Mesh(tp=2, edp=2), arrays=(spec,))
    assert grids(layout)[0].chunk_shape == plain
    assert grids(replace(layout, chunking="close"))[0].chunk_shape == close


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_tensors_of_open_models_are_stored_in_hardly_more_bytes_than_they_have(model: str, mesh: str) -> None:
    plain = layout_of(model, MESHES[mesh])
    layout = with_close_chunks(plain)
    found = figures(layout)
    assert found.stored <= 1.003
    assert found.worst <= MOST_STORED
    assert found.largest_chunk <= MAX_HELD_CHUNK_BYTES
    assert mesh == UNEVEN or found.mean_chunk >= 1 << 19
    assert layout == plain or spread(layout) <= spread(plain)


def padded(layout: Layout) -> float:
    grid: Grid = grids(layout)[layout.positions[AWKWARD.name]]
    return grid.num_chunks * grid.payload_bytes / AWKWARD.num_bytes


def of_a_program() -> Layout:
    state = State()
    state.array(AWKWARD.name, np.zeros(AWKWARD.shape, np.uint8), shape=AWKWARD.shape)
    return BoundState(state, Mesh(), Rank(0)).layout


def of_a_model() -> Layout:
    tensor = Tensor(name="t", shape=AWKWARD.shape, cuts=(), stage="first", layer=None)
    recipe = Recipe(weights="float8_e4m3fn", master="none", exp_avg="none", exp_avg_sq="none")
    layout = model_layout(Inventory(num_experts=0, tensors=(tensor,)), recipe, Mesh())
    weights = layout.arrays[layout.positions["model/t"]]
    return replace(layout, arrays=(replace(weights, name=AWKWARD.name),))


PLAIN, TWO_RANKS = Layout(mesh=Mesh(), arrays=(AWKWARD,)), Mesh(dp=2, edp=2)
NEW_LAYOUTS: dict[str, Callable[[], Layout]] = {
    "a program's": of_a_program,
    "a model's": of_a_model,
    "an import's": lambda: import_layout({AWKWARD.name: chunked(np.zeros(AWKWARD.shape, np.uint8))}),
    "another mesh's": lambda: on_mesh(PLAIN, TWO_RANKS),
    "a reshard's": lambda: relayout(PLAIN, TWO_RANKS, step=Step(1), sharding="box").layout,
}
"""Of AWKWARD, from everywhere where one is made that will be saved."""


@pytest.mark.parametrize("made", NEW_LAYOUTS.values(), ids=NEW_LAYOUTS)
def test_whoever_makes_a_layout_to_be_saved_has_it_cut_closely(made: Callable[[], Layout]) -> None:
    layout = made()
    assert padded(layout) == 1
    assert padded(replace(layout, chunking="plain")) == pytest.approx(12 / 11)


@pytest.mark.parametrize(("first", "second"), [("plain", "close"), ("close", "plain")])
def test_what_was_saved_by_one_rule_is_restored_by_programs_of_the_other(
    tmp_path: Path, first: Chunking, second: Chunking
) -> None:
    """By an older release, or for one: on the same mesh and on another."""
    arrays = (replace(AWKWARD, flat_over="dp"), ArraySpec(name="w", dtype="float32", shape=(7, 41), dims=((0, "tp"),)))
    saved = Layout(mesh=Mesh(tp=2, dp=2, edp=4), arrays=arrays, chunking=first)
    values = logical_arrays(saved, 1)
    with closing(LocalStore(tmp_path)) as store:
        ref = save(store, saved, values, step=3).ref
        commit = open_commit(store, ref)
        assert commit.layout == saved
        assert all(np.array_equal(read_array(store, commit, name), array) for name, array in values.items())
        assert verify(store, ref, threads=1, deep=True).is_intact
        for mesh in (saved.mesh, Mesh(tp=3, edp=3)):
            layout = replace(on_mesh(saved, mesh), chunking=second)
            assert restored_to(store, commit, layout) == held_on(layout, values)
