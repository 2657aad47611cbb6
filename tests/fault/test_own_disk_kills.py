"""Random kills of runs whose nodes keep checkpoints on their own disks, some of all processes with memory at once: each
run ends with the bytes of an undisturbed one, and nothing is left on the disks of nodes that are there."""

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
    """Nothing in the last save: whoever dies then does not come back to remove its files."""
    if stage.events("LastSave"):
        return
    if dice.random() >= POWER_CUTS:
        kill_any(stage, dice, when)
        return
    for found in stage.living("run", "agent", "store"):
        stage.kill(found, f"{when}, without power")


def lost(stage: KillStage) -> set[object]:
    """Nodes that were not there at the end: nobody else removes their files."""
    last = {event["node"]: event["reason"] for event in stage.events("NodeJoined", "NodeLost")}
    return {node for node, reason in last.items() if reason == "NodeLost"}


@pytest.mark.longer
@pytest.mark.parametrize("_part", range(4))
def test_two_hundred_random_kills_with_disks_of_the_nodes_change_no_bit_and_leave_nothing_there(
    tmp_path: Path, digest: object, _part: int
) -> None:
    disk = tmp_path / "disk"

    def expect(stage: KillStage) -> None:
        stage.expect_sound(digest)
        assert {path.parent.name for path in disk.rglob("rank-*")} <= lost(stage), stage.told()

    text = spec(steps=STEPS, checkpoint=f"local_disk: {{path: {disk}}}")
    ranks_from = attack(tmp_path, text, num_kills=50, expect=expect, strike=kill_or_cut_power)
    assert ranks_from["disk"] + ranks_from["several"] > 0
