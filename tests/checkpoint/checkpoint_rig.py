"""Saves and restores small worlds in one process: every rank has an arena, all share one store."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit import commit
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout, Sharding
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.staging import stage, unstage
from behemoth.checkpoint.writer import write_rank
from behemoth.ports import UploadsParts, WritesRanges
from behemoth.spec.mesh import Mesh

Logical = Mapping[str, npt.NDArray[np.generic]]
Buffers = dict[str, Any]
"""NumPy arrays by name, which are buffers; their types say so to checkers of Python 3.12 only."""


def toy_layout(sharding: Sharding = "array", **flags: bool) -> Layout:
    """Four ranks; every way of sharing: replicated, split inside, stacked experts, flat with a short and an uneven
    tail, a single stage, one slice per rank, no dims."""
    return Layout(
        mesh=Mesh(tp=2, dp=2, pp=1, etp=1, ep=2, edp=2),
        sharding=sharding,
        arrays=(
            ArraySpec(name="model/norm", dtype="float32", shape=(33,)),
            ArraySpec(name="model/dense", dtype="bfloat16", shape=(6, 10), dims=((1, "tp"),)),
            ArraySpec(name="model/experts", dtype="float8_e4m3fn", shape=(4, 5, 3), dims=((0, "ep"),)),
            ArraySpec(name="model/scale", dtype="float32", shape=(), may_be_zero=flags.get("scale_may_be_zero", False)),
            ArraySpec(name="optim/dense", dtype="float32", shape=(6, 10), dims=((1, "tp"),), flat_over="dp"),
            ArraySpec(name="optim/odd", dtype="float32", shape=(7, 3), flat_over="dp", stage=0),
            ArraySpec(name="optim/one", dtype="float64", shape=(1,), flat_over="edp"),
            ArraySpec(name="state/ranks", dtype="uint8", shape=(4, 9), dims=((0, "rank"),)),
        ),
    )


def logical_arrays(layout: Layout, seed: int) -> dict[str, npt.NDArray[np.generic]]:
    """Random bytes for every array, without NaN troubles: compare bytes."""
    rng = np.random.default_rng(seed)
    return {
        array.name: rng.integers(1, 100, array.num_bytes, dtype=np.uint8).view(DTYPES[array.dtype]).reshape(array.shape)
        for array in layout.arrays
    }


def held_by(layout: Layout, rank: int, spec: ArraySpec, whole: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """What a program on this rank holds of an array, from the text of ArraySpec and by numpy alone."""
    mesh, local = layout.mesh, whole
    for dim, axis in spec.dims:
        index = rank if axis == "rank" else mesh.coordinate(Rank(rank), axis)
        of_parts = spec.packed[1] if spec.packed is not None and spec.packed[0] == dim else (spec.shape[dim],)
        parts = np.split(local, np.cumsum(of_parts)[:-1], axis=dim)
        padded = spec.padded[1] if spec.padded is not None and spec.padded[0] == dim else 0
        local = np.concatenate([_share(part, layout.axis_size(axis), index, dim, padded) for part in parts], axis=dim)
    if spec.flat_over is not None:
        if not spec.flat_rows:
            local = local.reshape(-1)
        over = spec.flat_over if isinstance(spec.flat_over, tuple) else (spec.flat_over,)
        sizes = [mesh.size(axis) for axis in over]
        places = [mesh.coordinate(Rank(rank), axis) for axis in over]
        num, index = math.prod(sizes), int(np.ravel_multi_index(places, sizes, order="F"))  # the first is the innermost
        if spec.flat_bucket is not None:
            begin, size = spec.flat_bucket
            in_buffer = np.full(size, -1)
            in_buffer[begin : begin + local.size] = np.arange(local.size)
            mine: Any = _share(in_buffer, num, index, 0)
            kept: npt.NDArray[np.generic] = local[mine[mine >= 0]]
            return kept
        local = _share(local, num, index, 0)
    return np.ascontiguousarray(local)


def _share(part: npt.NDArray[np.generic], num: int, index: int, dim: int, padded: int = 0) -> npt.NDArray[np.generic]:
    size = part.shape[dim]
    share = -(-max(size, padded) // num)
    return part.take(range(min(index * share, size), min((index + 1) * share, size)), axis=dim)


def local_arrays(layout: Layout, rank: int, arrays: Logical) -> Buffers:
    """What a program on this rank holds of every array that its pipeline stage has."""
    stage = layout.mesh.coordinate(Rank(rank), "pp")
    held = (spec for spec in layout.arrays if spec.stage is None or spec.stage == stage)
    return {spec.name: held_by(layout, rank, spec, arrays[spec.name]) for spec in held}


@contextmanager
def arena_of(plan: RankPlan) -> Iterator[Arena]:
    fd = os.memfd_create("test-arena")
    try:
        arena = Arena.format(fd, plan)
        yield arena
        arena.close()
    finally:
        os.close(fd)


def written_rank(
    store: WritesRanges,
    layout: Layout,
    rank: int,
    held: Callable[[RankPlan], Mapping[str, Any]],
    *,
    step: int,
    write_id: str,
    attempt: int = 1,
    threads: int = 2,
    updated_step: Step | None = None,
    frozen: Collection[int] = (),
) -> Receipt:
    """Stage what a rank holds, as `held` tells by its plan, and write its part."""
    plan = plan_rank(layout, Rank(rank))
    with arena_of(plan) as arena:
        snapshot = stage(arena, plan, held(plan), WriteId(write_id), Step(step))
        return write_rank(
            store,
            RankWrite(
                prefix=step_prefix(Step(step), WriteId(write_id)),
                layout=layout,
                plan=plan,
                arena=arena,
                generation=snapshot.generation,
                attempt=Attempt(attempt),
                threads=threads,
                cancelled=lambda: False,
                updated_step=updated_step,
                frozen=frozen,
            ),
        )


def write_all_ranks(
    store: WritesRanges,
    layout: Layout,
    arrays: Logical,
    *,
    step: int,
    write_id: str = "a1-1",
    attempt: int = 1,
    stale: Mapping[int, Logical] | None = None,
    order_seed: int = 0,
    threads: int = 1,
    updated_step: int | None = None,
    frozen: Collection[str] = (),
) -> list[Receipt]:
    """Stage and write every rank in random order. `stale` gives single ranks other arrays. By default an update was
    announced in `step` itself."""
    ranks = list(range(layout.mesh.num_ranks))
    random.Random(order_seed).shuffle(ranks)
    receipts = []
    for rank in ranks:
        receipt = written_rank(
            store,
            layout,
            rank,
            lambda plan: local_arrays(layout, plan.rank, (stale or {}).get(plan.rank, arrays)),
            step=step,
            write_id=write_id,
            attempt=attempt,
            threads=threads,
            updated_step=Step(step if updated_step is None else updated_step),
            frozen=[layout.positions[name] for name in frozen],
        )
        receipts.append(Receipt.decode(receipt.encode()))
    return receipts


def commit_receipts(
    store: WritesRanges | UploadsParts,
    layout: Layout,
    receipts: Sequence[Receipt],
    *,
    step: int,
    write_id: str = "a1-1",
    attempt: int = 1,
    previous: CommitRecord | None = None,
) -> CommitRecord:
    return commit(
        store,
        Candidate(run="test", step=Step(step), write_id=WriteId(write_id), attempt=Attempt(attempt)),
        layout,
        receipts,
        previous=previous,
    )


def save(
    store: WritesRanges,
    layout: Layout,
    arrays: Logical,
    *,
    step: int,
    write_id: str = "a1-1",
    previous: CommitRecord | None = None,
    stale: Mapping[int, Logical] | None = None,
    order_seed: int = 0,
    updated_step: int | None = None,
    frozen: Collection[str] = (),
) -> CommitRecord:
    receipts = write_all_ranks(
        store,
        layout,
        arrays,
        step=step,
        write_id=write_id,
        stale=stale,
        order_seed=order_seed,
        updated_step=updated_step,
        frozen=frozen,
    )
    return commit_receipts(store, layout, receipts, step=step, write_id=write_id, previous=previous)


def out_buffers(plan: RankPlan) -> Buffers:
    num_bytes: dict[str, int] = {}
    for piece in plan.pieces:
        num_bytes[piece.name] = num_bytes.get(piece.name, 0) + piece.nbytes
    return {name: np.full(count, 0xEE, dtype=np.uint8) for name, count in num_bytes.items()}


def unstaged(arena: Arena, plan: RankPlan, generation: int) -> dict[str, bytes]:
    out = out_buffers(plan)
    unstage(arena, plan, generation, out, is_checked=not arena.snapshot(generation).is_verified)
    return {name: array.tobytes() for name, array in out.items()}


def raw_bytes(array: npt.NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def num_elements(shape: Sequence[int]) -> int:
    return math.prod(shape)
