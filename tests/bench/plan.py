"""Planning a save of the reference Behemoth on 32,000 ranks: time, metadata, balance, requests.

Goals: the plan of one rank, of spans or of parts, in at most 10 ms once the owners are known, metadata of at most
8 MB, the largest rank at most 1.02 of the mean, at most 4 M requests and 8% of the bytes exchanged on object storage.
What the leader does once all ranks have written is measured by `sections.leading`.
The peer is the global step of torch DCP's planner (`DefaultSavePlanner.create_global_plan`), which runs on one rank for
all, on a smaller world with the same tensors and the same pieces of them (rows of blocks, as FSDP2 has them). Beside it
stands what each of our ranks does instead, all at once and without talking: grids, owners, its own plan, nothing kept
from before. Left out on both sides: what the program declares. Left out of DCP's: local plans, their way to the
coordinator and back, and what its storage adds to the metadata.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import bench_table
import torch
from sections import leading
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from behemoth.base.ids import Rank
from behemoth.checkpoint.chunk_ends import chunk_ends
from behemoth.checkpoint.forecast import Forecast, Rates, forecast
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.part_cuts import cut_parts
from behemoth.checkpoint.part_plan import plan_parts
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.sharing import kinds, owners
from behemoth.checkpoint.uploads import plan_uploads
from behemoth.spec.mesh import Mesh
from behemoth.spec.model import named_inventory
from behemoth.spec.recipe import Recipe

GIANT = Mesh(tp=8, dp=500, pp=8, ep=16, etp=2, edp=125)
SMALLER = Mesh(tp=8, dp=4, pp=8, ep=16, etp=2, edp=1)
SMALLEST = Mesh(tp=8, dp=4, pp=1, ep=16, etp=2, edp=1)
LAST_OF_A_STAGE = range(GIANT.tp * GIANT.dp - GIANT.tp, GIANT.tp * GIANT.dp)
"""They hold the last bytes of the most arrays that are shared flat."""
RUN_FILE = Path(__file__).parents[2] / "manifests" / "examples" / "behemoth.yaml"
PROGRAM = Path(sys.executable).with_name("behemoth")
GOAL_PLAN_MS, GOAL_METADATA_BYTES, GOAL_MAX_OF_MEAN, GOAL_REQUESTS, GOAL_EXCHANGED = 10.0, 8e6, 1.02, 4e6, 0.08


def main() -> int:
    options = bench_table.arguments(__doc__ or "")
    num_rounds, rank_step = (2, 3_997) if options.quick else (9, 499)
    layout = layout_of("behemoth-ref", GIANT, Recipe())
    owners_s = [timed(lambda: cold_owners(layout)) for _ in range(num_rounds)]
    plan_ms = [timed_plan_ms(layout, rank) for rank in range(0, GIANT.num_ranks, rank_step)]
    boxes = replace(layout, sharding="box")
    uploads_s = [timed(lambda: cold_uploads(boxes)) for _ in range(num_rounds)]
    parts_ms = [timed_parts_ms(boxes, rank) for rank in range(0, GIANT.num_ranks, rank_step)]
    ends = [asked_for_ends(layout, rank) for rank in range(0, GIANT.num_ranks, rank_step)]
    most_crcs = max(asked_for_ends(layout, rank).crcs for rank in LAST_OF_A_STAGE)
    verb_s = [timed(run_verb) for _ in range(num_rounds)]
    of_giant = forecast(layout, ranks_per_node=8, rates=Rates())
    rows = [
        bench_table.alone("plan of one rank, owners known", "ms", plan_ms),
        bench_table.alone("owners of all ranks, once per process", "s", owners_s),
        bench_table.alone("parts that one rank uploads, their owners known", "ms", parts_ms),
        bench_table.alone("owners of all parts, once per process", "s", uploads_s),
        bench_table.alone("ends of shared chunks of one rank, owners known", "ms", [one.ms for one in ends]),
        bench_table.alone("CRCs that one rank asks for, file system: mean", "CRCs", [mean(one.crcs for one in ends)]),
        bench_table.alone("CRCs that one rank asks for, file system: most", "CRCs", [most_crcs]),
        bench_table.alone("behemoth plan -o json, whole command", "s", verb_s),
        *leading.rows_of(layout_of("scout", SMALLEST, Recipe()) if options.quick else layout, num_rounds),
        *figures(of_giant),
        *beside_dcp("scout" if options.quick else "behemoth-ref", SMALLEST if options.quick else SMALLER, num_rounds),
    ]
    bench_table.show("plan", rows, options, notes=[f"{len(layout.arrays)} arrays, {GIANT.num_ranks} ranks"])
    return 0 if options.quick or reaches_goals(plan_ms, parts_ms, of_giant) else 1


def layout_of(model: str, mesh: Mesh, recipe: Recipe) -> Layout:
    layout = model_layout(named_inventory(model), recipe, mesh)
    assert layout.digest  # derived once when the program declares its arrays
    return layout


def timed(work: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    work()
    return time.perf_counter() - begin_s


def cold_owners(layout: Layout) -> None:
    for kept in (grids, kinds, owners, plan_rank):
        kept.cache_clear()
    owners(layout)


def timed_plan_ms(layout: Layout, rank: int) -> float:
    plan_rank.cache_clear()
    return timed(lambda: plan_rank(layout, Rank(rank))) * 1e3


def cold_uploads(layout: Layout) -> None:
    for kept in (grids, kinds, cut_parts, plan_uploads):
        kept.cache_clear()
    plan_uploads(layout)


def timed_parts_ms(layout: Layout, rank: int) -> float:
    plan_parts.cache_clear()
    return timed(lambda: plan_parts(layout, Rank(rank))) * 1e3


class Asked(NamedTuple):
    """What one rank asks others for to put CRCs behind the chunks that it ends, and how long it takes to know."""

    ms: float
    crcs: int


def asked_for_ends(layout: Layout, rank: int) -> Asked:
    plan = plan_rank(layout, Rank(rank))
    chunk_ends(layout, plan)  # the tables of all its kinds, once per process
    begin_s = time.perf_counter()
    ends = chunk_ends(layout, plan)
    return Asked((time.perf_counter() - begin_s) * 1e3, int((ends.rank != rank).sum()))


def run_verb() -> None:
    done = subprocess.run([PROGRAM, "plan", "-f", RUN_FILE, "-o", "json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["numRanks"] == GIANT.num_ranks


def figures(found: Forecast) -> list[bench_table.Row]:
    """Counts, which no repetition changes."""
    values = {
        ("metadata", "MB"): found.metadata_bytes / 1e6,
        ("largest rank / mean, file system", "x"): found.bytes_per_rank.max / found.bytes_per_rank.mean,
        ("largest rank / mean, object storage", "x"): found.sent_per_rank.max / found.sent_per_rank.mean,
        ("requests, object storage", "M"): found.num_requests / 1e6,
        ("objects, object storage", "k"): found.num_objects / 1e3,
        ("exchanged, object storage", "%"): found.exchanged_share * 100,
    }
    return [bench_table.alone(metric, unit, [value]) for (metric, unit), value in values.items()]


def reaches_goals(plan_ms: list[float], parts_ms: list[float], found: Forecast) -> bool:
    return (
        max(bench_table.interval(each).high for each in (plan_ms, parts_ms)) <= GOAL_PLAN_MS
        and found.metadata_bytes <= GOAL_METADATA_BYTES
        and max(one.max / one.mean for one in (found.bytes_per_rank, found.sent_per_rank)) <= GOAL_MAX_OF_MEAN
        and found.num_requests <= GOAL_REQUESTS
        and found.exchanged_share <= GOAL_EXCHANGED
    )


def beside_dcp(model: str, mesh: Mesh, num_rounds: int) -> list[bench_table.Row]:
    """The same arrays and pieces, in turns."""
    layout = layout_of(model, mesh, Recipe(shares="rows"))
    local_plans = [dcp_local_plan(layout, rank) for rank in range(mesh.num_ranks)]
    num_items = sum(len(plan.items) for plan in local_plans)
    found = forecast(layout, ranks_per_node=8, rates=Rates())

    def ours() -> Mapping[str, float]:
        def work() -> None:
            cold_owners(layout)
            plan_rank(layout, Rank(0))

        return {"s": timed(work), "bytes": found.metadata_bytes}

    def theirs() -> Mapping[str, float]:
        planner = DefaultSavePlanner(flatten_state_dict=False)
        begin_s = time.perf_counter()
        _, metadata = planner.create_global_plan(local_plans)
        return {"s": time.perf_counter() - begin_s, "bytes": len(pickle.dumps(metadata))}

    samples = bench_table.alternate({"ours": ours, "torch-dcp": theirs}, num_rounds=num_rounds)
    where = f"{mesh.num_ranks} ranks, {num_items} pieces"
    return [
        bench_table.beside(f"{what}, {where}", unit, samples["ours"][metric], "torch-dcp", samples["torch-dcp"][metric])
        for what, unit, metric in (("plan, nothing known", "s", "s"), ("metadata", "bytes", "bytes"))
    ]


def dcp_local_plan(layout: Layout, rank: int) -> SavePlan:
    """What DCP's local planner makes of a rank's DTensors: one item for each piece that is a box."""
    items = []
    for piece in plan_rank(layout, Rank(rank)).pieces:
        spec = layout.arrays[piece.array]
        offsets, sizes = zip(*box_of(piece.box, piece.flat), strict=True)
        if 0 in sizes:
            continue
        chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        data = TensorWriteData(
            chunk=chunk, properties=TensorProperties(dtype=torch.float32), size=torch.Size(spec.shape)
        )
        index = MetadataIndex(spec.name, chunk.offsets)
        items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
    return SavePlan(items=items)


def box_of(box: tuple[tuple[int, int], ...], flat: tuple[int, int]) -> list[tuple[int, int]]:
    """Offset and size per dim of whole rows of a box; `flat` are its elements."""
    row = 1
    for start, stop in box[1:]:
        row *= stop - start
    first, last = flat[0] // max(row, 1), flat[1] // max(row, 1)
    return [(box[0][0] + first, last - first), *((start, stop - start) for start, stop in box[1:])]


if __name__ == "__main__":
    raise SystemExit(main())
