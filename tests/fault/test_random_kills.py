"""Random kills: whatever dies whenever, the run ends with the bytes of an undisturbed one and leaves nothing behind."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from behemoth.testing.leftovers import Found
from fault.attack import also_aimed, attack, kill_the_run_behind_a_commit
from fault.held_steps import holders_of_newest
from fault.kill_stage import KillStage, spec, undisturbed

STEPS = 120
NUM_NODES = 2
HANG_S = 900
"""Ends a hang only: on a busy machine each start of a run that was killed takes half a minute."""


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def lose_a_copied_node(stage: KillStage, dice: random.Random, when: str) -> None:
    """At the moment at which every node that has ranks has a copy of the other's newest checkpoint: the spare then gets
    all of the lost rank's state from one peer."""
    holders: list[Found] = []

    def is_copied() -> bool:
        holders[:] = holders_of_newest(stage)
        return len(holders) >= NUM_NODES or not stage.is_running()

    stage.until(is_copied, "a copy of every rank")
    if holders:
        stage.kill(dice.choice(holders), f"{when}, with a copy")


@pytest.mark.timeout(HANG_S)
def test_ten_random_kills_change_no_bit_and_leave_nothing(tmp_path: Path, digest: object) -> None:
    ranks_from = attack(tmp_path, spec(steps=STEPS), num_kills=10, expect=lambda stage: stage.expect_sound(digest))
    assert ranks_from.total() > 0


@pytest.mark.longer
@pytest.mark.parametrize("_part", range(4))
def test_two_hundred_random_kills_change_no_bit_and_leave_nothing(tmp_path: Path, digest: object, _part: int) -> None:
    """No node has copies here: what a lost one alone had comes from the store."""
    ranks_from = attack(
        tmp_path,
        spec(steps=STEPS),
        num_kills=50,
        expect=lambda stage: stage.expect_sound(digest),
        strike=also_aimed(kill_the_run_behind_a_commit),
    )
    assert ranks_from["memory"] > 0
    assert ranks_from["store"] > 0


@pytest.mark.longer
@pytest.mark.parametrize("_part", range(2))
def test_a_hundred_random_kills_of_nodes_with_copies_of_each_other_change_no_bit(
    tmp_path: Path, digest: object, _part: int
) -> None:
    """Commits are far enough apart for copies of the newest to stand for a while."""
    text = spec(steps=STEPS, step_ms=30, every=20, checkpoint="peer_copies: 1")
    ranks_from = attack(
        tmp_path,
        text,
        num_kills=50,
        expect=lambda stage: stage.expect_sound(digest),
        strike=also_aimed(lose_a_copied_node, kill_the_run_behind_a_commit),
    )
    assert ranks_from["memory"] > 0
    assert ranks_from["peer"] > 0
    assert ranks_from["store"] > 0
