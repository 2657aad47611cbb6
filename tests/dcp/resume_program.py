"""`dcp.resume_program MANAGER MODE STORE`: two ranks train and save each step, are ended, and go on.

MANAGER and MODE as in `folder_managers`. Prints one JSON document: of each life, what rank 0 found to go on from, the
steps whose folders stood at its end and those that the store has, and whether parameters and counters came back.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import IterableDataset

from behemoth.checkpoint.commit_log import commits
from behemoth.storage.open import open_store
from dcp.folder_managers import manager_of
from dcp.world import run_world

STEPS = 5


class Words(IterableDataset[torch.Tensor]):
    """Batches that follow from how many came before."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            self.count += 1
            yield torch.full((6,), float(self.count))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Progress:
    """What a trainer keeps beside the model: numbers of Python and of numpy."""

    def __init__(self) -> None:
        self.step, self.losses = 0, np.zeros(0, dtype=np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "losses": self.losses, "best": np.float64(self.step) / 2}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert type(state["best"]) is np.float64
        self.step, self.losses = state["step"], state["losses"]


def parts_of(manager: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 13), nn.Linear(13, 6))
    fully_shard(model)
    parts = {"model": model, "progress": Progress()}
    if manager == "folders":
        return {**parts, "dataloader": Words()}
    from torchtitan.components.dataloader import ParallelAwareDataloader
    from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig

    group = ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs={"lr": 0.1})
    optimizers = OptimizersContainer.Config(implementation="for-loop", param_groups=[group]).build(model_parts=[model])
    return {
        **parts,
        "optimizer": optimizers,
        "lr_scheduler": LRSchedulersContainer(optimizers, lambda step: 1 / (1 + step)),
        "dataloader": ParallelAwareDataloader(Words(), dist.get_rank(), dist.get_world_size(), batch_size=None),
    }


def train_step(parts: dict[str, Any], batches: Iterator[torch.Tensor]) -> None:
    loss = parts["model"](next(batches)).square().mean()
    loss.backward()
    if "optimizer" in parts:
        parts["optimizer"].step()
        parts["optimizer"].zero_grad()
        parts["lr_scheduler"].step()
    else:
        for parameter in parts["model"].parameters():
            parameter.data -= 0.01 * parameter.grad
            parameter.grad = None
    progress = parts["progress"]
    progress.step += 1
    progress.losses = np.append(progress.losses, np.float32(loss.item()))


def look(parts: dict[str, Any]) -> dict[str, Any]:
    """What must come back, as far as this rank has it."""
    sums = [float(value.full_tensor().double().sum()) for value in parts["model"].state_dict().values()]
    progress = parts["progress"]
    return {"step": progress.step, "losses": [float(loss) for loss in progress.losses], "sums": sums}


def live(manager: str, mode: str, store: str, last: int, _rank: int) -> dict[str, Any]:
    """Go on from what is found, up to step `last`."""
    parts = parts_of(manager)
    saving = manager_of(manager, store, mode, parts)
    was_found = saving.load()
    found = look(parts)
    batches = iter(parts["dataloader"])
    while parts["progress"].step < last:
        train_step(parts, batches)
        saving.save(parts["progress"].step)
        saving.maybe_wait_for_staging()
    saving.maybe_wait_for_saving()
    saving.close()
    dist.barrier()
    with closing(open_store(store)) as opened:
        committed = [one.step for one in commits(opened)]
        posts = (re.fullmatch(r"step-(\d+)/\.metadata", info.key) for info in opened.list(""))
        steps = sorted(int(post[1]) for post in posts if post)
    return {"was_found": was_found, "found": found, "ended": look(parts), "folders": steps, "store": committed}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    manager, mode, store = sys.argv[1:]
    lives = [run_world(2, partial(live, manager, mode, store, last)) for last in (STEPS, STEPS + 2)]
    sys.stdout.write(json.dumps(lives))
