"""The same toy model under torchrun, saved and restored by torch's distributed checkpoint: what one uses without us.

    torchrun --nproc-per-node 4 --max-restarts 99 torchrun_dcp.py DIRECTORY TOTAL_STEPS SAVE_EVERY

It trains the very `Trainer` of the reference workload, with the same arrays in its checkpoint: what a rank alone holds
under its own key, what all hold alike under one key, which DCP then writes once. Saves are synchronous; the newest one
is named by a file that rank 0 replaces. Rank 0 writes a line per completed step, every rank its process id.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from behemoth.workloads.corpus import standard_library
from behemoth.workloads.placement import Placement
from behemoth.workloads.tiny_moe.config import Config
from behemoth.workloads.tiny_moe.groups import close_groups, open_groups
from behemoth.workloads.tiny_moe.trainer import Trainer

EXPERT_AXIS = 2
"""ep and edp of the example run."""


def main() -> None:
    """Restore the newest checkpoint, if any, and train to the end."""
    directory, total, every = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    placement = placement_from(os.environ)
    (directory / f"rank-{placement.rank}.pid").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(True)
    groups = open_groups(placement)
    trainer = Trainer(Config(), placement, groups, standard_library())
    try:
        train(trainer, placement.rank, directory, total=total, every=every)
    finally:
        close_groups()


def train(trainer: Trainer, rank: int, directory: Path, *, total: int, every: int) -> None:
    """Step by step, with a save after each `every`th."""
    first = restore(trainer, rank, directory)
    with (directory / "steps").open("a", buffering=1) as log:
        for step in range(first + 1, total + 1):
            loss_sum = trainer.gradients(step)
            trainer.update(step, loss_sum)
            if rank == 0:
                log.write(f"{step} {time.monotonic()}\n")
            if step % every == 0:
                save(trainer, rank, directory, step)


def save(trainer: Trainer, rank: int, directory: Path, step: int) -> None:
    """Blocks until every rank's part is durable, then moves the name of the newest."""
    dcp.save(state_of(trainer, rank), checkpoint_id=directory / f"step-{step}")
    if rank == 0:
        temporary = directory / "newest.tmp"
        temporary.write_text(str(step))
        temporary.replace(directory / "newest")


def restore(trainer: Trainer, rank: int, directory: Path) -> int:
    """The number of completed steps; 0 without a checkpoint."""
    newest = directory / "newest"
    if not newest.exists():
        return 0
    step = int(newest.read_text())
    state = state_of(trainer, rank)
    dcp.load(state, checkpoint_id=directory / f"step-{step}")
    trainer.set_noise_state(state[f"rank-{rank}/noise"].numpy().tobytes())
    trainer.cursor.resume(state["cursor"])
    trainer.refresh()
    return step


def state_of(trainer: Trainer, rank: int) -> dict[str, Any]:
    """Tensors are the trainer's own, so that a load fills them in place."""
    noise = torch.frombuffer(bytearray(trainer.noise_state()), dtype=torch.uint8)
    state: dict[str, Any] = {f"rank-{rank}/noise": noise, "cursor": trainer.cursor.record()}
    state.update(_arrays(trainer, rank))
    return state


def _arrays(trainer: Trainer, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    for shard in trainer.shards():
        if shard.flat_over is not None:
            yield f"rank-{rank}/{shard.name}", shard.local
        elif shard.dims:
            yield f"experts-{rank % EXPERT_AXIS}/{shard.name}", shard.local
        else:
            yield shard.name, shard.local


def placement_from(environment: os._Environ[str]) -> Placement:
    """From torchrun's variables."""
    world = int(environment["WORLD_SIZE"])
    return Placement(
        rank=int(environment["RANK"]),
        world_size=world,
        local_rank=int(environment["LOCAL_RANK"]),
        ep=EXPERT_AXIS,
        edp=world // EXPERT_AXIS,
    )


if __name__ == "__main__":
    main()
