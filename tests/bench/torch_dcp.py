"""torch.distributed.checkpoint through our adapters beside its own FileSystemWriter and FileSystemReader.

Two gloo ranks save and load the same state dict of DTensors, each with its half of the rows, in one run in turns, into
new files; all writers make files durable. torch's own goes as it comes (one thread) and with as many threads as there
are cores. `async_save` is what training waits for, in threads, with each writer's own staging. Loads follow a save:
torch's files are in the page cache then, ours went past it. Ours checks every CRC, torch's has none.
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
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from behemoth.dcp import BehemothReader, BehemothWriter

NUM_RANKS = 2
NUM_TENSORS = 16
CORES = len(os.sched_getaffinity(0))
OURS, DEFAULT, BEST = "ours", "torch DCP", f"torch DCP, {CORES} threads"
Timed = Mapping[str, float]


def main() -> None:
    options = arguments(__doc__ or "", extend=extend)
    size_mib = options.mib or (32 if options.quick else 1024)
    rounds = options.rounds or (2 if options.quick else 7)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-dcp-") as folder:
        mp.spawn(rank_main, args=(folder, size_mib, rounds), nprocs=NUM_RANKS)
        samples = json.loads(Path(folder, "samples.json").read_text())
    show("torch_dcp", rows(samples), options, notes=[f"{size_mib} MiB in {NUM_TENSORS} tensors on {NUM_RANKS} ranks"])


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default=None, help="folder to write into; by default the system's for temporary files")
    parser.add_argument("--mib", type=int, help="size of the state (default: 1024, quick 32)")
    parser.add_argument("--rounds", type=int, help="counted rounds (default: 7, quick 2)")


def rows(samples: Mapping[str, Mapping[str, list[float]]]) -> list[Row]:
    ours = samples[OURS]
    return [
        beside(metric, "s", ours[metric], peer, samples[peer][metric])
        for metric in ours
        for peer in samples
        if peer != OURS
    ]


def rank_main(rank: int, folder: str, size_mib: int, rounds: int) -> None:
    """The same rounds on every rank; rank 0 writes down what it saw."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_RANKS)
    mesh = init_device_mesh("cpu", (NUM_RANKS,))
    saved, blank = state(mesh, size_mib, 1.0), state(mesh, size_mib, 0.0)
    best = partial(dcp.FileSystemWriter, thread_count=CORES)
    contenders = {
        OURS: (partial(BehemothWriter, threads=CORES), partial(BehemothReader, threads=CORES)),
        DEFAULT: (dcp.FileSystemWriter, dcp.FileSystemReader),
        BEST: (best, dcp.FileSystemReader),
    }
    samples = alternate(
        {
            name: partial(one_round, Path(folder, "checkpoint"), saved, blank, writer, reader)
            for name, (writer, reader) in contenders.items()
        },
        num_rounds=rounds,
    )
    if rank == 0:
        Path(folder, "samples.json").write_text(json.dumps(samples))
    dist.destroy_process_group()


def state(mesh: DeviceMesh, size_mib: int, value: float) -> dict[str, Any]:
    """Rows over the ranks; half is float32, half bfloat16."""
    made: dict[str, Any] = {"step": 7}
    for number in range(NUM_TENSORS):
        dtype = torch.float32 if number % 2 else torch.bfloat16
        rows = (size_mib << 20) // NUM_TENSORS // NUM_RANKS // 1024 // dtype.itemsize
        local = torch.full((rows, 1024), value + number, dtype=dtype)
        made[f"layers.{number}.weight"] = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    return made


def one_round(
    path: Path,
    saved: dict[str, Any],
    blank: dict[str, Any],
    writer: Callable[[str], Any],
    reader: Callable[[str], Any],
) -> Timed:
    """Save, load and save asynchronously, each from a barrier on; checks that the load did load."""
    at = str(path)
    timed = {"save": seconds(lambda: dcp.save(saved, storage_writer=writer(at)))}
    for value in blank.values():
        if isinstance(value, DTensor):
            value.to_local().zero_()
    timed["load, just saved"] = seconds(lambda: dcp.load(blank, storage_reader=reader(at)))
    assert all(torch.equal(blank[key].to_local(), saved[key].to_local()) for key in saved if key != "step")
    clear(path)
    futures: list[Any] = []
    timed["async_save, blocks"] = seconds(
        lambda: futures.append(dcp.async_save(saved, storage_writer=writer(at))), together=False
    )
    futures[0].result()
    clear(path)
    return timed


def seconds(work: Callable[[], object], *, together: bool = True) -> float:
    """Of the slowest rank, or of this one."""
    dist.barrier()
    start = time.perf_counter()
    work()
    if together:
        dist.barrier()
    return time.perf_counter() - start


def clear(path: Path) -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(path)
    dist.barrier()


if __name__ == "__main__":
    main()
