"""Random kills: whatever dies whenever, the run ends with the bytes of an undisturbed one and leaves nothing behind.

`BEHEMOTH_KILL_SEED` repeats a failed test: its seed stands in the failure's output.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from behemoth.testing.leftovers import Role, shared_memory
from fault.kill_stage import KillStage, spec, staged, undisturbed

ROLES: tuple[Role, ...] = ("worker", "worker", "agent", "forkserver", "store", "keeper", "run")
MEAN_GAP_S = 0.7
KILLS_PER_RUN = 10
STEPS = 120


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def test_twenty_random_kills_change_no_bit_and_leave_nothing(tmp_path: Path, digest: object) -> None:
    attack(tmp_path, digest, num_kills=20)


@pytest.mark.longer
def test_two_hundred_random_kills_change_no_bit_and_leave_nothing(tmp_path: Path, digest: object) -> None:
    attack(tmp_path, digest, num_kills=200)


def attack(folder: Path, digest: object, *, num_kills: int) -> None:
    """Runs are shared by `KILLS_PER_RUN` kills each; one that ends early is followed by another."""
    seed = int(os.environ.get("BEHEMOTH_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"BEHEMOTH_KILL_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    dice, shared_before = random.Random(seed), shared_memory()
    num_left, number = num_kills, 0
    while num_left > 0:
        number += 1
        with staged(folder / f"run-{number}", spec(steps=STEPS)) as stage:
            harass(stage, dice, num_kills=min(num_left, KILLS_PER_RUN))
            stage.finish()
            stage.expect_sound(digest)
            num_left -= len(stage.kills)
    assert shared_memory() <= shared_before


def harass(stage: KillStage, dice: random.Random, *, num_kills: int) -> None:
    """Kill something again and again, sometimes while the last one is still being mended; stops when the run ends."""
    stage.start()
    began_s = time.monotonic()
    while len(stage.kills) < num_kills:
        time.sleep(dice.expovariate(1 / MEAN_GAP_S))
        if not stage.is_running():
            return
        why = f"after {time.monotonic() - began_s:.3f} s"
        stage.kill_one(dice.choice(ROLES), dice, why)
        if stage.kills and stage.kills[-1] == f"run {why}":
            stage.resume()
