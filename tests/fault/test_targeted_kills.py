"""Kills at the moments that matter: while a commit is made, a state restored, a journal line written, a run saved for
the last time. Each run must end with the bytes of an undisturbed one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from behemoth.testing.leftovers import Role
from fault.kill_stage import DYING, KillStage, spec, staged, undisturbed

STEPS = 60


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def dies_at(folder: Path, digest: object, role: Role, call: str, number: int, mode: str, *, step_ms: int = 10) -> None:
    """A run in which one process of `role` kills itself at its `number`-th call of `os.call`."""
    marker = folder / "died"
    with staged(folder, spec(steps=STEPS, step_ms=step_ms)) as stage:
        stage.start(PYTHONPATH=DYING, BEHEMOTH_DIE=f"{role} {call} {number} {mode} {marker}")
        stage.finish()
        assert marker.exists(), f"{role} never made call {number} of os.{call}"
        stage.expect_sound(digest)


def longer(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.longer)


@pytest.mark.parametrize(
    ("call", "number", "mode"),
    [
        longer("replace", 1, "before"),  # run.yaml
        longer("replace", 2, "before"),  # identity.json
        longer("replace", 2, "after"),
        longer("replace", 4, "before"),  # coordinator.json or the secret
        longer("link", 3, "before"),  # whose the store is, after the store's probe of links
        longer("link", 3, "after"),
        longer("link", 4, "before"),  # the first commit
        ("link", 4, "after"),
        longer("link", 5, "before"),
        longer("fsync", 15, "before"),
        longer("fdatasync", 1, "before"),  # the first decision
        longer("fdatasync", 4, "after"),
        longer("write", 8, "half"),  # a line of the journal
        ("write", 20, "half"),
        longer("unlink", 9, "after"),
    ],
)
def test_a_run_process_that_dies_at_a_write_is_resumed(
    tmp_path: Path, digest: object, call: str, number: int, mode: str
) -> None:
    dies_at(tmp_path, digest, "run", call, number, mode)


@pytest.mark.longer
def test_a_run_process_that_dies_when_retention_removes_a_folder_is_resumed(tmp_path: Path, digest: object) -> None:
    """Nothing is removed before the third commit, and a busy machine passes saves by whose steps are fast."""
    dies_at(tmp_path, digest, "run", "rmdir", 1, "before", step_ms=60)


@pytest.mark.parametrize(
    ("call", "number", "mode"),
    [
        longer("pwritev", 1, "before"),
        ("pwritev", 3, "half"),
        longer("pwritev", 9, "after"),
        longer("fsync", 1, "before"),
        longer("fsync", 9, "after"),
    ],
)
def test_a_store_process_that_dies_while_writing_costs_one_save(
    tmp_path: Path, digest: object, call: str, number: int, mode: str
) -> None:
    dies_at(tmp_path, digest, "store", call, number, mode)


def strike(
    folder: Path, digest: object, attack: Callable[[KillStage], None], *, step_ms: int = 10, num_kills: int = 1
) -> None:
    with staged(folder, spec(steps=STEPS, step_ms=step_ms)) as stage:
        stage.start()
        attack(stage)
        assert len(stage.kills) >= num_kills
        stage.finish()
        stage.expect_sound(digest)


@pytest.mark.parametrize("role", [longer("worker"), "forkserver", longer("agent"), longer("run")])
def test_a_kill_while_the_gang_starts_costs_nothing_but_time(tmp_path: Path, digest: object, role: Role) -> None:
    def attack(stage: KillStage) -> None:
        stage.until_event("Starting")
        stage.until(lambda: stage.kill_one(role, random.Random(1)), f"a {role}")

    strike(tmp_path, digest, attack)


@pytest.mark.parametrize("role", ["worker", longer("store"), longer("agent"), longer("run")])
def test_a_second_kill_while_the_first_is_mended_is_survived(tmp_path: Path, digest: object, role: Role) -> None:
    def attack(stage: KillStage) -> None:
        stage.until_event("Committed")
        first = set(stage.living("worker"))
        stage.kill_one("worker", random.Random(2))
        stage.until_event("Starting", 2)
        stage.until(lambda: role != "worker" or set(stage.living("worker")) - first, "a worker of the next attempt")
        stage.kill_one(role, random.Random(3))

    strike(tmp_path, digest, attack, step_ms=60, num_kills=2)


@pytest.mark.parametrize("role", [longer("worker"), longer("store"), "agent", longer("keeper"), longer("run")])
def test_a_kill_during_the_last_save_loses_nothing(tmp_path: Path, digest: object, role: Role) -> None:
    def attack(stage: KillStage) -> None:
        stage.until_event("LastSave")
        stage.kill_one(role, random.Random(4))

    strike(tmp_path, digest, attack)


def test_a_kill_while_state_is_read_back_from_disk_is_survived(tmp_path: Path, digest: object) -> None:
    """The run process dies, so memory is gone; then the store process that reads for the next attempt dies too."""
    marker = tmp_path / "died"
    with staged(tmp_path, spec(steps=STEPS, step_ms=60)) as stage:
        stage.start()
        stage.until_event("Committed")
        stage.kill_one("run", random.Random(5))
        stage.wait()
        stage.expect_no_process()
        stage.start(PYTHONPATH=DYING, BEHEMOTH_DIE=f"store preadv 2 before {marker}")
        stage.finish()
        assert marker.exists()
        stage.expect_sound(digest)
