"""Random kills of whole runs: one after the other is struck at random moments, until so many processes were killed.

`BEHEMOTH_KILL_SEED` repeats a failed test: its seed stands in the failure's output. The neighbour is `kill_stage`, one
such run.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from behemoth.testing.leftovers import Role, shared_memory
from fault.kill_stage import KillStage, staged

ROLES: tuple[Role, ...] = ("worker", "worker", "agent", "forkserver", "store", "keeper", "run")
MOMENTS = ("", "", "Restored", "Committed", "Committed")
"""What is waited for before a strike, by the reasons of events: progress, since by the clock alone a busy machine would
be struck while it starts, again and again, and never save or restore. Nothing, sometimes: then the last strike is still
being mended.
"""
MEAN_GAP_S = 0.3
"""From then to the strike."""
KILLS_PER_RUN = 10
AIMED_EVERY = 5
SOURCES = ("memory", "peer", "disk", "several", "store")

Strike = Callable[[KillStage, random.Random, str], None]
"""Kills what there is to kill at this moment; the string says when that is."""


def kill_any(stage: KillStage, dice: random.Random, when: str) -> None:
    """One process."""
    stage.kill_one(dice.choice(ROLES), dice, when)


def kill_the_run_behind_a_commit(stage: KillStage, dice: random.Random, when: str) -> None:
    """With it goes all memory, so that the store is read."""
    stage.until(lambda: stage.events("Committed") or not stage.is_running(), "a commit")
    stage.kill_one("run", dice, f"{when}, with a commit")


def also_aimed(*aims: Strike, otherwise: Strike = kill_any) -> Strike:
    """Every `AIMED_EVERY`-th strike is the next of `aims`, which wait for a moment at which one certain source has to
    serve; strikes at random may never meet it. One that did not hit, since the run ended before, comes again."""
    turns = itertools.cycle(aims)
    aim, num_others = next(turns), 0

    def strike(stage: KillStage, dice: random.Random, when: str) -> None:
        nonlocal aim, num_others
        if num_others < AIMED_EVERY - 1:
            num_others += 1
            otherwise(stage, dice, when)
            return
        num_others, num_before = 0, len(stage.kills)
        aim(stage, dice, when)
        if len(stage.kills) > num_before:
            aim = next(turns)

    return strike


def kill_dice() -> random.Random:
    seed = int(os.environ.get("BEHEMOTH_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"BEHEMOTH_KILL_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    return random.Random(seed)


def attack(
    folder: Path,
    text: str,
    *,
    num_kills: int,
    expect: Callable[[KillStage], None],
    strike: Strike = kill_any,
    stage_of: Callable[[Path, str], AbstractContextManager[KillStage]] = staged,
) -> Counter[str]:
    """Runs of `text` share the kills, `KILLS_PER_RUN` each; one that ends early is followed by another. `expect` holds
    what is left of each against what it must be; `stage_of` gives each its place, by its folder. Returns the restored
    ranks, by where their state came from."""
    dice, shared_before, ranks_from = kill_dice(), shared_memory(), Counter[str]()
    num_left, number = num_kills, 0
    while num_left > 0:
        number += 1
        with stage_of(folder / f"run-{number}", text) as stage:
            _harass(stage, dice, strike, num_kills=min(num_left, KILLS_PER_RUN))
            stage.finish()
            expect(stage)
            for restore in stage.summary()["restores"]:
                ranks_from.update({source: restore[f"num_from_{source}"] for source in SOURCES})
            num_left -= len(stage.kills)
    assert shared_memory() <= shared_before
    print(f"ranks restored from: {dict(ranks_from)}")  # noqa: T201 - a figure, shown by pytest -rP
    return ranks_from


def _harass(stage: KillStage, dice: random.Random, strike: Strike, *, num_kills: int) -> None:
    """Strike again and again, sometimes while the last one is still being mended; stops when the run ends."""
    stage.start()
    began_s = time.monotonic()
    while (num_before := len(stage.kills)) < num_kills:
        _wait_for(stage, dice.choice(MOMENTS))
        time.sleep(dice.expovariate(1 / MEAN_GAP_S))
        if not stage.is_running():
            return
        strike(stage, dice, f"after {time.monotonic() - began_s:.3f} s")
        if any(kill.startswith("run ") for kill in stage.kills[num_before:]):
            stage.resume()


def _wait_for(stage: KillStage, reason: str) -> None:
    """The next event of this reason, or the end of the run."""
    num_before = len(stage.events(reason))
    if reason:
        stage.until(lambda: len(stage.events(reason)) > num_before or not stage.is_running(), f"another {reason}")
