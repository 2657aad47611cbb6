"""Over-read counted from geometry is that of numbering every element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.checkpoint import grid as grid_module
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.over_read import OverRead, over_read
from behemoth.checkpoint.sharing import kinds
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe
from checkpoint.test_save_restore import array_specs, clear_caches, layouts


@settings(max_examples=150, deadline=None)
@given(saved=layouts(), data=st.data(), chunk_bytes=st.sampled_from([16, 64, 300]))
def test_over_read_is_that_of_numbered_elements(saved: Layout, data: st.DataObject, chunk_bytes: int) -> None:
    mesh = data.draw(layouts()).mesh
    likes = [data.draw(array_specs("like", mesh)) for _ in saved.arrays]
    wanted = Layout(mesh=mesh, arrays=tuple(_shared_as(*pair) for pair in zip(saved.arrays, likes, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_module, "MAX_CHUNK_BYTES", chunk_bytes)
        clear_caches()
        assert over_read(saved, wanted) == by_numbers(saved, wanted)
    clear_caches()


def _shared_as(spec: ArraySpec, like: ArraySpec) -> ArraySpec:
    """The same array on another mesh: dims and flat range of `like`, where the shape has such dims."""
    dims = tuple((dim, axis) for dim, axis in like.dims if dim < len(spec.shape))
    return replace(
        spec,
        dims=dims,
        packed=spec.packed if spec.packed is not None and spec.packed[0] in [dim for dim, _ in dims] else None,
        flat_over=like.flat_over,
        flat_rows=like.flat_rows and bool(spec.shape),
        stage=like.stage,
    )


def by_numbers(saved: Layout, wanted: Layout) -> OverRead:
    needed = fleet = alone = 0
    for kind in kinds(wanted):
        for position in kind.positions:
            spec = wanted.arrays[position]
            grid = grids(saved)[saved.positions[spec.name]]
            chunk_of = np.empty(spec.shape, dtype=np.int64)
            for chunk in range(grid.num_chunks):
                chunk_of[grid.chunk_box(chunk)] = chunk
            chunk_bytes = grid.payload_bytes + TRAILER_BYTES
            needed += spec.num_bytes
            fleet += len(np.unique(chunk_of)) * chunk_bytes
            for piece in range(len(kind.sharing.holders)):
                for part in kind.share(piece).parts:
                    box = tuple(slice(*interval) for interval in part.held.box)
                    alone += len(np.unique(chunk_of[box].reshape(-1)[slice(*part.flat)])) * chunk_bytes
    return OverRead(needed_bytes=needed, fleet_bytes=fleet, alone_bytes=alone)


def test_flat_ranges_that_share_a_chunk_read_it_several_times_unless_they_pass_it_on() -> None:
    saved = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="uint8", shape=(1000,)),))
    wanted = Layout(mesh=Mesh(dp=4, edp=4), arrays=(replace(saved.arrays[0], flat_over="dp"),))
    found = over_read(saved, wanted)
    assert (found.fleet, found.alone) == (1.004, 4.016)


def test_an_array_that_was_not_saved_so_is_refused() -> None:
    saved = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="uint8", shape=(8,)),))
    other = replace(saved.arrays[0], shape=(9,))
    with pytest.raises(Invalid, match=r"'w': expected uint8\[9\] in the checkpoint, got uint8\[8\]"):
        over_read(saved, Layout(mesh=Mesh(), arrays=(other,)))
    with pytest.raises(Invalid, match=r"'v': expected .* got none"):
        over_read(saved, Layout(mesh=Mesh(), arrays=(replace(other, name="v"),)))


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh(tp=4, dp=1000, pp=8, ep=16, etp=2, edp=125),
        Mesh(tp=8, dp=250, pp=16, ep=8, etp=1, edp=250),
        Mesh(tp=8, dp=480, pp=8, ep=16, etp=2, edp=120),
    ],
)
def test_the_fleet_of_another_mesh_reads_the_reference_behemoth_about_once(mesh: Mesh) -> None:
    inventory, saved_mesh = named_inventory("behemoth-ref"), Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
    found = over_read(model_layout(inventory, Recipe(), saved_mesh), model_layout(inventory, Recipe(), mesh))
    assert found.needed_bytes == 12 * inventory.num_params
    assert 1.0 <= found.fleet <= 1.1
    assert found.alone > found.fleet
