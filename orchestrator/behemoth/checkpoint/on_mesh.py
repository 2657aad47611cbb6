"""The layout that a saved state has on another mesh, from the checkpoint alone: no program and no model is asked.

Names, shapes and dtypes stay, and so does the axis over which each dim is cut; what changes is how many ranks share.
Buckets and paddings end, because what lies beside an array, or behind it, is of its own mesh. Two things must be
guessed. A checkpoint says which stage held an array and not which layer it is, so names that differ in their first
number alone are taken for layers, which the stages share evenly. And what all dense replicas shared along one axis,
since the other had one rank, they share along both where both have more, as Megatron and FSDP do. Pure. Neighbours:
`matching`, `model_layout`, which knows the layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from behemoth.checkpoint.cuts import with_close_chunks
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.records import RANKS_ARRAY
from behemoth.spec.mesh import Axes, Mesh, each_axis

_REPLICAS: Axes = ("cp", "dp")
_NUMBER = re.compile(r"\d+")


def on_mesh(layout: Layout, mesh: Mesh) -> Layout:
    """`layout` itself for its own mesh. The ranks' own records get a row for each rank of the new world."""
    if mesh == layout.mesh:
        return layout
    stages = _stages(layout.arrays, layout.mesh.pp, mesh.pp)
    arrays = (
        replace(
            array.without_idle_axes(mesh),
            stage=stage,
            flat_over=_over_replicas(array, layout.mesh, mesh),
            flat_bucket=None,
            padded=None,
        )
        for array, stage in zip(layout.arrays, stages, strict=True)
    )
    return with_close_chunks(Layout(mesh=mesh, arrays=tuple(_with_rows(array, mesh) for array in arrays)))


def _over_replicas(array: ArraySpec, old: Mesh, new: Mesh) -> Axes | None:
    if array.flat_over is None:
        return None
    is_of_all = old.without_idle(array.flat_over) == old.without_idle(_REPLICAS)
    is_split_by_them = any(axis in _REPLICAS for _, axes in array.dims if axes != "rank" for axis in each_axis(axes))
    return new.without_idle(_REPLICAS if is_of_all and not is_split_by_them else array.flat_over)


def _with_rows(array: ArraySpec, mesh: Mesh) -> ArraySpec:
    return replace(array, shape=(mesh.num_ranks, *array.shape[1:])) if array.name == RANKS_ARRAY else array


def _stages(arrays: Sequence[ArraySpec], num_old: int, num_new: int) -> list[int | None]:
    """Stage s of P covers the part [s / P, (s + 1) / P) of the layers. What has no layers (an embedding), or has all
    of them on one stage of several (a vision tower), stays whole: first, last, or in between."""
    numbers: dict[str, dict[int, set[int]]] = {}
    for array in arrays:
        if array.stage is not None:
            family, number = _layer(array.name)
            numbers.setdefault(family, {}).setdefault(array.stage, set()).add(number)
    order = {
        (family, stage): {number: at for at, number in enumerate(sorted(of_stage))}
        for family, of_family in numbers.items()
        for stage, of_stage in of_family.items()
        if len(of_family) > 1 or num_old == 1
    }

    def moved(array: ArraySpec) -> int | None:
        if array.stage is None:
            return None
        family, number = _layer(array.name)
        at = order.get((family, array.stage))
        if at is None:
            return num_new - 1 if array.stage == num_old - 1 else array.stage * num_new // num_old
        # floor((stage + at / n) / num_old * num_new), in whole numbers
        return (array.stage * len(at) + at[number]) * num_new // (len(at) * num_old)

    return [moved(array) for array in arrays]


def _layer(name: str) -> tuple[str, int]:
    """What a layer is called, and its number; 0 for what has none."""
    match = _NUMBER.search(name)
    return (name, 0) if match is None else (name[: match.start()], int(match[0]))
