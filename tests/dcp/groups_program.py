"""`dcp.groups_program URL`: four ranks save and load as programs do that use more of DCP than its defaults.

URL is a folder or a prefix in a bucket. Prints one JSON document: of each rank, by name, what came of each case: true
where what was loaded is what was saved.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import SGD, AdamW, Optimizer

from behemoth.checkpoint.commit_log import commits
from behemoth.dcp import BehemothReader, BehemothWriter
from behemoth.storage.open import open_store
from dcp.states import leaves
from dcp.world import run_world

WIDTH = 13
"""No world divides it."""
Make = Callable[[int], dict[str, Any]]
Optimize = Callable[..., Optimizer]


def rows_over(mesh: DeviceMesh, seed: int, *more: str) -> dict[str, Any]:
    """A state whose keys are a few and `more`."""
    torch.manual_seed(seed)
    tensors = {name: distribute_tensor(torch.randn(7, 3), mesh, [Shard(0)]) for name in ("w", *more)}
    return {**tensors, "whole": torch.randn(5), "none": torch.empty(0), "step": seed}


def everybody() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def trained(optimize: Optimize, seed: int) -> tuple[nn.Module, Optimizer]:
    """HSDP, after a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    optimizer = optimize(model.parameters())
    model(torch.randn(4, WIDTH)).sum().backward()
    optimizer.step()
    return model, optimizer


def train_state(optimize: Optimize, seed: int) -> dict[str, Any]:
    model, optim = get_state_dict(*trained(optimize, seed))
    return {"model": model, "optim": optim}


def comes_back(url: str, make: Make, **options: Any) -> bool:
    """Whether a load makes the state of another seed equal to what was saved."""
    saved, loaded = make(1), make(2)
    assert leaves(saved) != leaves(loaded)
    dcp.save(saved, storage_writer=BehemothWriter(url), **options)
    planner = options.pop("planner", None)
    assert planner is None or isinstance(planner, DefaultSavePlanner)
    dcp.load(loaded, storage_reader=BehemothReader(url), **options)
    return leaves(loaded) == leaves(saved)


class Tied(nn.Module):
    """Head and embedding are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.embed(words))
        return logits


def tied(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = Tied()
    fully_shard(model)
    optimizer = AdamW(model.parameters())
    model(torch.arange(11)).square().sum().backward()
    optimizer.step()
    of_model, of_optimizer = get_state_dict(model, optimizer)
    assert len(of_model) == 2
    return {"model": of_model, "optim": of_optimizer}


def on_two_of_four(seed: int) -> dict[str, Any]:
    """A tensor whose mesh is not all ranks of the group that saves."""
    return {**rows_over(everybody(), seed), "inner": rows_over(DeviceMesh("cpu", [1, 2]), seed)["w"]}


def two_boxes_of_each_rank(seed: int) -> dict[str, Any]:
    """Rows of the front and of the back half of a tensor, in one buffer with padding between, as torch's protocol
    CheckpointableTensor has it."""
    rank, half = dist.get_rank(), 2 * dist.get_world_size()
    torch.manual_seed(seed)
    rows, buffer = torch.randn(2 * half, 5), torch.zeros(6, 5)
    buffer[0:2], buffer[3:5] = rows[2 * rank :][:2], rows[half + 2 * rank :][:2]
    told = {
        "global_shape": tuple(rows.shape),
        "global_offsets": ((2 * rank, 0), (half + 2 * rank, 0)),
        "local_offsets": ((0, 0), (3, 0)),
        "local_sizes": ((2, 5), (2, 5)),
    }
    for name, value in told.items():
        setattr(buffer, name, value)
    return {"rows": buffer}


def full_state_of_rank_0(url: str) -> bool:
    """What `full_state_dict` gathers on rank 0, loaded into shards."""
    gathers = StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved, optimizer = trained(AdamW, 1)
    model, optim = get_state_dict(saved, optimizer, options=gathers)
    assert bool(model) == (dist.get_rank() == 0)
    dcp.save({"model": model, "optim": optim}, storage_writer=BehemothWriter(url))
    other = trained(AdamW, 2)
    model, optim = get_state_dict(*other)
    loaded: dict[str, Any] = {"model": model, "optim": optim}
    dcp.load(loaded, storage_reader=BehemothReader(url))
    set_state_dict(*other, model_state_dict=loaded["model"], optim_state_dict=loaded["optim"])
    return leaves(other[0].state_dict()) == leaves(saved.state_dict())


def some_ranks(url: str, *ranks: int, planner: DefaultSavePlanner | None = None) -> bool:
    """A group without rank 0. The others do nothing meanwhile."""
    group: Any = dist.new_group([*ranks])
    if dist.get_rank() not in ranks:
        return True
    mesh = DeviceMesh.from_group(group, "cpu", mesh=torch.tensor(ranks))
    return comes_back(url, partial(rows_over, mesh), process_group=group, planner=planner)


def one_rank(url: str) -> bool:
    def make(seed: int) -> dict[str, Any]:
        return {"w": torch.full((3,), float(seed)), "step": seed}

    return dist.get_rank() != 1 or comes_back(url, make, no_dist=True)


def another_coordinator(url: str) -> bool:
    saved, loaded = (rows_over(everybody(), seed) for seed in (1, 2))
    save_state_dict(saved, BehemothWriter(url), coordinator_rank=2)
    load_state_dict(loaded, BehemothReader(url), coordinator_rank=1)
    return leaves(loaded) == leaves(saved)


def cached_plans(url: str) -> bool:
    """Of the same state, of a larger one, the same again, and the smaller one; each save has a writer of its own."""
    same = []
    for step, more in enumerate([(), (), ("x",), ("x",), ()]):
        saved, loaded = (rows_over(everybody(), seed, *more) for seed in (step, 9))
        place = f"{url}/step-{step}"
        planner = DefaultSavePlanner(enable_plan_caching=True)
        dcp.save(saved, storage_writer=BehemothWriter(place), planner=planner)
        dcp.load(loaded, storage_reader=BehemothReader("unused"), checkpoint_id=place)
        same.append(leaves(loaded) == leaves(saved))
    return all(same)


def a_rank_elsewhere(url: str) -> dict[str, Any]:
    """What the save says, which steps are committed, and whether the next one is well."""
    place = f"{url}/here" if dist.get_rank() != 1 else f"{url}/elsewhere"
    try:
        dcp.save(rows_over(everybody(), 1), storage_writer=BehemothWriter(f"{place}/step-1"))
    except CheckpointException as error:
        told = {rank: str(failure[0]) for rank, failure in error.failures.items()}
    dist.barrier()
    with closing(open_store(f"{url}/here")) as store:
        steps = [one.step for one in commits(store)]
    dist.barrier()
    well = comes_back(f"{url}/here/step-2", partial(rows_over, everybody()))
    return {"told": told, "steps": steps, "well": well}


CASES: dict[str, Callable[[str], Any]] = {
    "fused": lambda url: comes_back(url, partial(train_state, partial(AdamW, fused=True))),
    "lr is a tensor": lambda url: comes_back(
        url, lambda seed: train_state(partial(AdamW, lr=torch.tensor(0.1 * seed), amsgrad=True), seed)
    ),
    "no optimizer state": lambda url: comes_back(url, partial(train_state, partial(SGD, lr=0.1))),
    "tied": lambda url: comes_back(url, tied),
    "mesh of two": lambda url: comes_back(url, on_two_of_four),
    "two boxes of each rank": lambda url: comes_back(url, two_boxes_of_each_rank),
    "full state of rank 0": full_state_of_rank_0,
    "some ranks": lambda url: some_ranks(url, 1, 3),
    "lowest rank": lambda url: some_ranks(url, 1, 2, 3, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True)),
    "one rank": one_rank,
    "another coordinator": another_coordinator,
    "cached plans": cached_plans,
    "a rank elsewhere": a_rank_elsewhere,
}


def main(url: str) -> dict[str, Any]:
    told = {}
    for name, case in CASES.items():
        told[name] = case(f"{url}/{name.replace(' ', '-')}")
        dist.barrier()
    return told


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch warns of its own deprecations here
    sys.stdout.write(json.dumps(run_world(4, lambda _: main(sys.argv[1]))))
