"""Random layouts for property tests, and the same arrays shared in other ways; chunks of some bytes, so that even small
arrays have many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import strategies as st

from behemoth.checkpoint import chunk_ends, cuts, grid, part_plan, plan, sharing, uploads
from behemoth.checkpoint.layout import ArraySpec, Chunking, Layout, Sharding, SplitAxes, axis_size
from behemoth.spec.mesh import DENSE_AXES, EXPERT_AXES, Axes, Axis, Mesh, each_axis

AXES = {"dense": DENSE_AXES, "expert": EXPERT_AXES}
DTYPES = ("uint8", "float8_e5m2", "bfloat16", "float32", "complex128")
SHARDINGS: st.SearchStrategy[Sharding] = st.sampled_from(["array", "box"])
CHUNKINGS: st.SearchStrategy[Chunking] = st.sampled_from(["plain", "close"])
MAX_PADDING = 6
CHUNK_BYTES = st.sampled_from([16, 64, 300, 8 << 20])


@contextmanager
def small_chunks(chunk_bytes: int, *, poor_bytes: int | None = None) -> Iterator[None]:
    """Chunks of at most so many bytes, where a divisor allows it."""
    with pytest.MonkeyPatch.context() as patch:
        poor_bytes = poor_bytes or max(16, chunk_bytes // 2)
        patch.setattr(cuts, "MAX_CHUNK_BYTES", chunk_bytes)
        patch.setattr(cuts, "POOR_CHUNK_BYTES", poor_bytes)
        patch.setattr(cuts, "MAX_HELD_CHUNK_BYTES", 4 * chunk_bytes)
        patch.setattr(cuts, "LEAST_BYTES", poor_bytes)
        patch.setattr(grid, "ALIGNED_BYTES", poor_bytes)
        _clear_caches()
        yield
    _clear_caches()


def _clear_caches() -> None:
    grid.grids.cache_clear()
    cuts._cut.cache_clear()
    cuts._cut_uneven.cache_clear()
    cuts._cut_closely.cache_clear()
    sharing.kinds.cache_clear()
    sharing.owners.cache_clear()
    plan.plan_rank.cache_clear()
    uploads.plan_uploads.cache_clear()
    part_plan.plan_parts.cache_clear()
    chunk_ends._table.cache_clear()


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    tp, dp, pp = draw(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2])))
    cp = draw(st.sampled_from([1, 2])) if tp * dp * pp <= 8 else 1
    per_stage = tp * cp * dp
    ep = draw(st.sampled_from([size for size in (1, 2, 3, 4) if per_stage % size == 0]))
    etp = draw(st.sampled_from([size for size in (1, 2) if per_stage // ep % size == 0]))
    return Mesh(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, etp=etp, edp=per_stage // ep // etp)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    mesh = draw(meshes())
    arrays = [draw(array_specs(f"a{index}", mesh)) for index in range(draw(st.integers(1, 4)))]
    return Layout(mesh=mesh, arrays=tuple(arrays), sharding=draw(SHARDINGS), chunking=draw(CHUNKINGS))


@st.composite
def array_specs(draw: st.DrawFn, name: str, mesh: Mesh) -> ArraySpec:
    """Of a shape that often fits how it is shared."""
    shape = draw(st.lists(st.integers(1, 9), min_size=0, max_size=3))
    spec = draw(shared(ArraySpec(name=name, dtype=draw(st.sampled_from(DTYPES)), shape=tuple(shape)), mesh))
    packed, padded = spec.packed, spec.padded
    for dim, axis in spec.dims:
        if draw(st.booleans()):  # an even split, of packed parts too
            size = axis_size(mesh, axis)
            shape[dim] *= size
            if packed is not None and packed[0] == dim:
                packed = dim, tuple(part * size for part in packed[1])
            if padded is not None and padded[0] == dim:
                padded = dim, padded[1] * size
    return replace(spec, shape=tuple(shape), packed=packed, padded=padded)


@st.composite
def reshared(draw: st.DrawFn, layout: Layout) -> Layout:
    """The same logical arrays on another mesh, each shared in another way."""
    mesh = draw(meshes())
    arrays = tuple(draw(shared(array, mesh)) for array in layout.arrays)
    return Layout(mesh=mesh, arrays=arrays, sharding=draw(SHARDINGS), chunking=draw(CHUNKINGS))


@st.composite
def shared(draw: st.DrawFn, array: ArraySpec, mesh: Mesh) -> ArraySpec:
    """The array, of the same name, type and shape, shared over axes of the dense or the expert mesh, or over ranks."""
    shape = array.shape
    kind = draw(st.sampled_from(["dense", "dense", "expert", "expert", "rank"]))
    if kind == "rank":
        whole: tuple[tuple[int, SplitAxes], ...] = ((draw(st.integers(0, len(shape) - 1)), "rank"),) if shape else ()
        return ArraySpec(name=array.name, dtype=array.dtype, shape=shape, dims=whole)
    axes: list[Axis] = list(draw(st.permutations(AXES[kind])))
    flat_rows = draw(st.booleans())
    dims: tuple[tuple[int, Axes], ...] = tuple(
        (dim, draw(_split_axes(axes))) for dim in range(len(shape)) if draw(st.booleans())
    )
    over = draw(st.sets(st.sampled_from(axes))) if axes else set()
    flat_axes = tuple(axis for axis in AXES[kind] if axis in over)
    flat_over: Axes | None = flat_axes[0] if len(flat_axes) == 1 else flat_axes or None
    has_pp = "pp" in over or any("pp" in each_axis(split) for _, split in dims)
    packed = draw(_packings(shape, [dim for dim, _ in dims if shape[dim] > 1]))
    return ArraySpec(
        name=array.name,
        dtype=array.dtype,
        shape=shape,
        dims=dims,
        packed=packed,
        padded=draw(_paddings(shape, [dim for dim, _ in dims if packed is None or packed[0] != dim])),
        flat_over=flat_over,
        flat_rows=flat_over is not None and bool(shape) and flat_rows,
        flat_bucket=draw(_buckets(shape)) if flat_over is not None and not (shape and flat_rows) else None,
        stage=draw(st.none() | st.integers(0, mesh.pp - 1)) if not has_pp else None,
    )


@st.composite
def _split_axes(draw: st.DrawFn, axes: list[Axis]) -> Axes:
    """Of these, which it takes away, one or two in any order. One is left for each of three dims."""
    first = axes.pop()
    return (first, axes.pop()) if len(axes) > 2 and draw(st.booleans()) else first


@st.composite
def _buckets(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Room for the whole array, wherever it is split and padded, with something before and behind it."""
    if draw(st.booleans()):
        return None
    begin = draw(st.integers(0, 40))
    return begin, begin + math.prod(size + MAX_PADDING for size in shape) + draw(st.integers(0, 40))


@st.composite
def _paddings(draw: st.DrawFn, shape: tuple[int, ...], dims: list[int]) -> tuple[int, int] | None:
    if not dims or draw(st.booleans()):
        return None
    dim = draw(st.sampled_from(dims))
    return dim, shape[dim] + draw(st.integers(0, MAX_PADDING))


@st.composite
def _packings(draw: st.DrawFn, shape: tuple[int, ...], dims: list[int]) -> tuple[int, tuple[int, ...]] | None:
    if not dims or draw(st.booleans()):
        return None
    dim = draw(st.sampled_from(dims))
    if shape[dim] % 2 == 0 and draw(st.booleans()):
        return dim, (shape[dim] // 2, shape[dim] // 2)
    ends = sorted(draw(st.sets(st.integers(1, shape[dim] - 1), min_size=1, max_size=2)))
    begins = [0, *ends]
    return dim, tuple(end - begin for begin, end in zip(begins, [*ends, shape[dim]], strict=True))
