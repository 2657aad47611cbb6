"""Random kills of runs whose nodes keep checkpoints on their own disks, some of all processes with memory at once: each
run ends with the bytes of an undisturbed one. What is left on the disks of agents that died is not looked at."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fault.attack import attack, kill_any
from fault.kill_stage import KillStage, spec, undisturbed

STEPS = 120
POWER_CUTS = 0.15
"""Of all strikes: only then is all memory gone, so that the disks are read."""


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def kill_or_cut_power(stage: KillStage, dice: random.Random, when: str) -> None:
    if dice.random() >= POWER_CUTS:
        kill_any(stage, dice, when)
        return
    for found in stage.living("run", "agent", "store"):
        stage.kill(found, f"{when}, without power")


@pytest.mark.longer
@pytest.mark.parametrize("_part", range(4))
def test_two_hundred_random_kills_with_disks_of_the_nodes_change_no_bit(
    tmp_path: Path, digest: object, _part: int
) -> None:
    disk = tmp_path / "disk"
    text = spec(steps=STEPS, checkpoint=f"local_disk: {{path: {disk}}}")
    ranks_from = attack(
        tmp_path, text, num_kills=50, expect=lambda stage: stage.expect_sound(digest), strike=kill_or_cut_power
    )
    assert ranks_from["disk"] + ranks_from["several"] > 0
