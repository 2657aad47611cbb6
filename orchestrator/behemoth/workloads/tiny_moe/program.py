"""The training loop: the few lines that make the trainer a program of a run. docs/integrate.md explains each of them.

It must not decide anything about faults, saves or restarts; the neighbour `trainer` computes.
"""

from __future__ import annotations

import os

import torch
import torch._dynamo  # imported here so that a fork server has it: otherwise the first backward after a fork loads it
import torch.utils._device
import torch.utils.deterministic

from behemoth.sdk import Run, State, join
from behemoth.workloads.corpus import standard_library
from behemoth.workloads.placement import placement_of
from behemoth.workloads.tiny_moe.config import config_from
from behemoth.workloads.tiny_moe.groups import close_groups, open_groups
from behemoth.workloads.tiny_moe.trainer import Trainer

STEPS_ALONE = 120
"""Steps outside a run; in one, the run says how many."""


def main() -> None:
    """Join, train to the last step, leave. Raises ValueError for arguments or a mesh that the program cannot use."""
    run = join()
    _be_deterministic()
    config, placement = config_from(run.args), placement_of(run)
    groups = open_groups(placement)
    try:
        train(run, Trainer(config, placement, groups, standard_library()))
    finally:
        close_groups()


def train(run: Run, trainer: Trainer) -> None:
    """Restore what there is, then step until the run says stop."""
    state = State()
    _declare(state, trainer)
    first = run.restore(state)
    trainer.refresh()
    for step in run.steps(first, STEPS_ALONE):
        loss_sum = trainer.gradients(step)
        run.fence()
        loss = trainer.update(step, loss_sum)
        run.report(step, loss=loss, tokens=trainer.tokens_per_step // run.world_size)
        run.save(step, state)


def _declare(state: State, trainer: Trainer) -> None:
    for shard in trainer.shards():
        state.array(
            shard.name,
            shard.local,
            shape=shard.shape,
            dims=shard.dims,
            flat_over=shard.flat_over,
            mutable_in_forward=shard.is_mutable_in_forward,
        )
    state.record(get=lambda: {**trainer.cursor.record()}, set=trainer.cursor.resume)
    state.rank_record(get=trainer.noise_state, set=trainer.set_noise_state)


def _be_deterministic() -> None:
    """One thread per rank, and only algorithms whose result does not depend on timing."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # moments of rarely seen bytes decay into numbers that a CPU handles slowly
    torch.use_deterministic_algorithms(True)
    # Every buffer here is written before it is read, so filling new memory would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
