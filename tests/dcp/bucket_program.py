"""`dcp.bucket_program URL FOLDER STATE ..`: four ranks save states into a bucket, three load them. With `fsdp`
also: an async_save; a save in which a rank is killed, and one after it; a checkpoint that is replaced. Torch's own DCP
goes to FOLDER beside it.

Prints one JSON document as `resharding_program` does.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import behemoth.storage.s3  # noqa: F401  takes a second, here once for all ranks
from behemoth.dcp import BehemothReader, BehemothWriter
from dcp.resharding_program import OTHER, SAVED, KilledHalfway, compared
from dcp.states import dtypes, fsdp, leaves, placements, tensor_parallel_fsdp
from dcp.world import run_world


def large(seed: int) -> dict[str, Any]:
    """Objects of several parts: one rank's, and one that all share, where no part ends with a rank's rows."""
    torch.manual_seed(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    wide = 1 << 14
    return {
        "even": distribute_tensor(torch.randn(1536, wide).bfloat16(), mesh, [Shard(0)]),
        "uneven": distribute_tensor(torch.randn(1027, wide).bfloat16(), mesh, [Shard(0)]),
        "alone": distribute_tensor(torch.randn(9 << 20).bfloat16(), mesh, [Replicate()]),
    }


STATES = {make.__name__: make for make in (fsdp, tensor_parallel_fsdp, placements, dtypes, large)}


def save(url: str, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        state = STATES[name](SAVED)
        dcp.save(state, storage_writer=FileSystemWriter(folder / name))
        dcp.save(state, storage_writer=BehemothWriter(f"{url}/{name}"), checkpoint_id=f"{url}/{name}/step-7")
    if "fsdp" in names:
        saving = dcp.async_save(fsdp(SAVED), storage_writer=BehemothWriter(f"{url}/async"))
        assert isinstance(saving, Future)
        saving.result()
    return {}


def replace(url: str) -> dict[str, Any]:
    """Twice under one id, and a third time, which is not allowed."""
    for seed in (OTHER, SAVED):
        dcp.save(fsdp(seed), storage_writer=BehemothWriter(f"{url}/replaced/step-3"))
    try:
        dcp.save(fsdp(OTHER), storage_writer=BehemothWriter(f"{url}/replaced/step-3", overwrite=False))
    except CheckpointException as error:
        return {"refused": str(next(iter(error.failures.values()))[0])}
    return {}


def save_and_die(url: str, rank: int) -> dict[str, Any]:
    """The first save ends well; in the second rank 1 is killed with its upload under way."""
    dcp.save(fsdp(SAVED), storage_writer=BehemothWriter(f"{url}/killed"))
    planner = KilledHalfway() if rank == 1 else None
    state = {**fsdp(OTHER), **large(OTHER)}
    dcp.save(state, storage_writer=BehemothWriter(f"{url}/killed", threads=1), planner=planner)
    return {}


def save_again(url: str) -> dict[str, Any]:
    dcp.save(fsdp(SAVED), storage_writer=BehemothWriter(f"{url}/killed"))
    return {}


def load(url: str, folder: Path, names: Sequence[str]) -> dict[str, Any]:
    told = {}
    for name in names:
        expected = STATES[name](OTHER)
        before = leaves(expected)
        dcp.load(expected, storage_reader=FileSystemReader(folder / name))
        for store in (name, *(("async", "killed", "replaced") if name == "fsdp" else ())):
            got = STATES[name](OTHER)
            dcp.load(got, storage_reader=BehemothReader(f"{url}/{store}"))
            told[store] = compared(before, leaves(expected), leaves(got))
    return told


def main(url: str, folder: Path, names: Sequence[str]) -> None:
    warnings.simplefilter("ignore")  # torch warns of its own deprecations here
    told: dict[str, Any] = {"save": run_world(4, lambda _: save(url, folder, names))}
    if "fsdp" in names:
        told["replace"] = run_world(2, lambda _: replace(url))
        told["killed"] = run_world(2, lambda rank: save_and_die(url, rank), killed=1)
        told["again"] = run_world(2, lambda _: save_again(url))
    told["load"] = run_world(3, lambda _: load(url, folder, names))
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
