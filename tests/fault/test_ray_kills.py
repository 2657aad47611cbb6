"""Kills under an embedded Ray: the end is that of an undisturbed run, and of Ray nothing is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from behemoth.rayrt.tempdir import PREFIX, temp_root
from behemoth.testing.leftovers import Role, shared_memory
from fault.attack import kill_dice
from fault.kill_stage import KillStage, spec, staged, undisturbed

STEPS = 120
ROLES: tuple[Role, ...] = ("worker", "agent", "forkserver", "store", "run")
"""Not Ray's own: a run whose embedded Ray dies waits for nodes, then fails; the same command resumes it."""


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def on_ray(folder: Path) -> AbstractContextManager[KillStage]:
    text = spec(steps=STEPS, step_ms=30)
    return staged(folder, text, arguments=())


def folders() -> set[Path]:
    """Folders of Rays that nobody uses any more: whoever uses one holds its lock."""
    return {path for path in temp_root().glob(f"{PREFIX}*") if _is_unlocked(path)}


def _is_unlocked(path: Path) -> bool:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True
    return False


def test_a_run_on_ray_survives_a_worker_and_its_own_process_and_leaves_nothing(tmp_path: Path, digest: object) -> None:
    memory_before, folders_before = shared_memory(), folders()
    with on_ray(tmp_path) as stage:
        stage.start()
        stage.until_event("Committed")
        stage.kill_one("worker", random.Random(1))
        stage.until_event("Starting", 2)
        stage.kill_one("run", random.Random(2))
        stage.finish()
        stage.expect_sound(digest)
    assert shared_memory() <= memory_before
    assert folders() <= folders_before


@pytest.mark.longer
def test_random_kills_on_ray_change_no_bit_and_leave_nothing(tmp_path: Path, digest: object) -> None:
    dice, memory_before, folders_before = kill_dice(), shared_memory(), folders()
    with on_ray(tmp_path) as stage:
        stage.start()
        for _ in range(12):
            stage.until_event("Starting", len(stage.events("Starting")) or 1)
            time.sleep(dice.expovariate(1 / 1.5))
            if not stage.is_running():
                break
            stage.kill_one(dice.choice(ROLES), dice)
            if stage.kills and stage.kills[-1] == "run":
                stage.resume()
        stage.finish()
        stage.expect_sound(digest)
    assert shared_memory() <= memory_before
    assert folders() <= folders_before
