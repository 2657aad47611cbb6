"""Random kills of runs whose nodes keep checkpoints on their own disks, some of all processes with memory at once: each
run ends with the bytes of an undisturbed one. What is left on the disks of agents that died is not looked at."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fault.attack import also_aimed, attack, kill_any
from fault.held_steps import newest_step, ranks_on_disk
from fault.kill_stage import KillStage, spec, undisturbed

STEPS = 120
NUM_RANKS = 2
POWER_CUTS = 0.15
"""Of all strikes: only then is all memory gone, so that the disks are read."""


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def kill_or_cut_power(stage: KillStage, dice: random.Random, when: str) -> None:
    if dice.random() >= POWER_CUTS:
        kill_any(stage, dice, when)
        return
    cut_power(stage, when)


def cut_power(stage: KillStage, when: str) -> None:
    for found in stage.living("run", "agent", "store"):
        stage.kill(found, f"{when}, without power")


@pytest.mark.longer
@pytest.mark.parametrize("_part", range(4))
def test_two_hundred_random_kills_with_disks_of_the_nodes_change_no_bit(
    tmp_path: Path, digest: object, _part: int
) -> None:
    disk = tmp_path / "disk"

    def cut_power_behind_a_copy(stage: KillStage, _dice: random.Random, when: str) -> None:
        """Once the disks have the newest checkpoint of every rank."""

        def is_on_disk() -> bool:
            newest = newest_step(stage)
            return newest is not None and len(ranks_on_disk(stage, disk).get(newest, ())) == NUM_RANKS

        stage.until(lambda: is_on_disk() or not stage.is_running(), "a file of every rank")
        cut_power(stage, f"{when}, with files")

    ranks_from = attack(
        tmp_path,
        spec(steps=STEPS, step_ms=30, every=20, checkpoint=f"local_disk: {{path: {disk}}}"),
        num_kills=50,
        expect=lambda stage: stage.expect_sound(digest),
        strike=also_aimed(cut_power_behind_a_copy, otherwise=kill_or_cut_power),
    )
    assert ranks_from["disk"] > 0
