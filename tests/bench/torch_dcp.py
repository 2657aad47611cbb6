"""torch.distributed.checkpoint through our adapters beside its own FileSystemWriter and FileSystemReader.

One and two gloo ranks save and load the same state dict of DTensors, each with its share of the rows, in one run in
turns, into new files; all writers make files durable. torch's own goes as it comes (one thread) and with as many
threads as there are cores. Everybody's files are in the page cache after a save: `load, just saved` reads them there,
`load, cold` from the disk after they were dropped (on tmpfs nothing can be dropped). `async_save` is what training
waits for, in threads: a copy into new memory by torch's own stagers, of which it takes a faster one for ours than for
its FileSystemWriter; and with `kept memory` by the faster one for everybody, into the memory of the save before. Ours
checks every CRC, torch's has none. The second state has next to some large tensors many small ones, as optimizers make
them: each is two files of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from bench_table import Row, alternate, arguments, beside, show
from page_states import drop, each_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from behemoth.dcp import BehemothReader, BehemothWriter

WORLDS = (1, 2)
NUM_TENSORS = 16
NUM_SMALL = 100
"""Of 4 KiB each, in the second state."""
CORES = len(os.sched_getaffinity(0))
OURS, DEFAULT, BEST = "ours", "torch DCP", f"torch DCP, {CORES} threads"
Timed = Mapping[str, float]
ON_CPU = StagingOptions(
    use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
)


def main() -> None:
    options = arguments(__doc__ or "", extend=extend)
    size_mib = options.mib or (32 if options.quick else 256)
    rounds = options.rounds or (2 if options.quick else 15)
    found: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-dcp-") as folder:
        for num_ranks, num_small in [*((world, 0) for world in WORLDS), (1, NUM_SMALL)]:
            mp.spawn(rank_main, args=(folder, num_ranks, num_small, size_mib, rounds), nprocs=num_ranks)
            samples = json.loads(Path(folder, "samples.json").read_text())
            found += rows(samples, f"{num_ranks} rank{'s'[: num_ranks > 1]}" + (", small" if num_small else ""))
    notes = [f"{size_mib} MiB in {NUM_TENSORS} tensors; small: and {NUM_SMALL} of 4 KiB"]
    show("torch_dcp", found, options, notes=notes)


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default=None, help="folder to write into; by default the system's for temporary files")
    parser.add_argument("--mib", type=int, help="size of the state (default: 256, quick 32)")
    parser.add_argument("--rounds", type=int, help="counted rounds (default: 15, quick 2)")


def rows(samples: Mapping[str, Mapping[str, list[float]]], world: str) -> list[Row]:
    ours = samples[OURS]
    return [
        beside(f"{metric}, {world}", "s", ours[metric], peer, samples[peer][metric])
        for metric in ours
        for peer in samples
        if peer != OURS
    ]


def rank_main(rank: int, folder: str, num_ranks: int, num_small: int, size_mib: int, rounds: int) -> None:
    """The same rounds on every rank; rank 0 writes down what it saw."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    meeting = f"file://{folder}/rendezvous-{num_ranks}-{num_small}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_ranks)
    mesh = init_device_mesh("cpu", (num_ranks,))
    saved, blank = (state(mesh, size_mib, num_small, value) for value in (1.0, 0.0))
    best = partial(dcp.FileSystemWriter, thread_count=CORES)
    contenders: dict[str, tuple[Callable[[str], Any], Callable[[str], Any]]] = {
        OURS: (partial(BehemothWriter, threads=CORES), partial(BehemothReader, threads=CORES)),
        DEFAULT: (dcp.FileSystemWriter, dcp.FileSystemReader),
        BEST: (best, dcp.FileSystemReader),
    }
    stagers = {name: DefaultStager(ON_CPU) for name in contenders}
    samples = alternate(
        {
            name: partial(one_round, Path(folder, "checkpoint"), saved, blank, writer, reader, stagers[name])
            for name, (writer, reader) in contenders.items()
        },
        num_rounds=rounds,
    )
    for stager in stagers.values():
        stager.close()
    if rank == 0:
        Path(folder, "samples.json").write_text(json.dumps(samples))
    dist.destroy_process_group()


def state(mesh: DeviceMesh, size_mib: int, num_small: int, value: float) -> dict[str, Any]:
    """Rows over the ranks; half is float32, half bfloat16."""
    made: dict[str, Any] = {"step": 7}
    for number in range(NUM_TENSORS):
        dtype = torch.float32 if number % 2 else torch.bfloat16
        rows = (size_mib << 20) // NUM_TENSORS // mesh.size() // 1024 // dtype.itemsize
        local = torch.full((rows, 1024), value + number, dtype=dtype)
        made[f"layers.{number}.weight"] = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    for number in range(num_small):
        made[f"layers.{number}.norm"] = DTensor.from_local(
            torch.full((1024,), value), mesh, [Shard(0)], run_check=False
        )
    return made


def one_round(
    path: Path,
    saved: dict[str, Any],
    blank: dict[str, Any],
    writer: Callable[[str], Any],
    reader: Callable[[str], Any],
    stager: DefaultStager,
) -> Timed:
    """Save, load twice and save asynchronously, each from a barrier on; checks that the loads did load. `stager` keeps
    its memory as long as the tensors of `saved` live."""
    at = str(path)
    timed = {"save": seconds(lambda: dcp.save(saved, storage_writer=writer(at)))}
    for metric in ("load, just saved", "load, cold"):
        for value in blank.values():
            if isinstance(value, DTensor):
                value.to_local().zero_()
        if metric == "load, cold":
            dist.barrier()
            each_file(path, drop)
        timed[metric] = seconds(lambda: dcp.load(blank, storage_reader=reader(at)))
        assert all(torch.equal(blank[key].to_local(), saved[key].to_local()) for key in saved if key != "step")
    clear(path)

    def begin(staging: DefaultStager | None) -> Any:
        return dcp.async_save(saved, storage_writer=writer(at), async_stager=staging)

    for metric, staging in (("async_save, blocks", None), ("async_save, kept memory, blocks", stager)):
        timed[metric] = blocked(partial(begin, staging))
        clear(path)
    return timed


def seconds(work: Callable[[], object]) -> float:
    """Of the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    work()
    dist.barrier()
    return time.perf_counter() - start


def blocked(save: Callable[[], Any]) -> float:
    """Seconds until it returned on this rank; the save is waited for besides."""
    dist.barrier()
    start = time.perf_counter()
    saving = save()
    until_returned = time.perf_counter() - start
    saving.result()
    return until_returned


def clear(path: Path) -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(path)
    dist.barrier()


if __name__ == "__main__":
    main()
