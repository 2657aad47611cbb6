"""Ctrl-C and its kin at awkward moments: before the gang stands, while it recovers. The same command goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fault.kill_stage import KillStage, spec, staged, undisturbed

INTERRUPTED, NOT_FINISHED = 130, 101
HANGING = str(Path(__file__).parents[1] / "fault" / "hanging")


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec())


SLOW = spec(step_ms=40)
"""In which a busy machine finds the run under way for some seconds. The end is that of the fast one."""


def interrupt(stage: KillStage, number: signal.Signals = signal.SIGINT) -> None:
    assert stage.process is not None
    os.kill(stage.process.pid, number)


def expect_the_same_end(stage: KillStage, digest: object) -> None:
    stage.expect_no_process()
    stage.start()
    stage.finish()
    stage.expect_sound(digest)


@pytest.mark.parametrize("event", ["Placed", pytest.param("RunOpened", marks=pytest.mark.longer)])
def test_an_interrupt_before_the_first_step_ends_soon_and_the_run_goes_on_later(
    tmp_path: Path, digest: object, event: str
) -> None:
    with staged(tmp_path, spec()) as stage:
        stage.start()
        stage.until_event(event)
        interrupt(stage)
        assert stage.wait() == INTERRUPTED, stage.told()
        expect_the_same_end(stage, digest)


def test_an_interrupt_during_a_recovery_ends_resumable(tmp_path: Path, digest: object) -> None:
    with staged(tmp_path, SLOW) as stage:
        stage.start()
        stage.until_event("Committed", 2)
        stage.kill(stage.living("worker")[0])
        stage.until_event("WorkerFailed")
        interrupt(stage)
        assert stage.wait() == INTERRUPTED, stage.told()
        expect_the_same_end(stage, digest)


def test_a_second_interrupt_ends_the_command_though_the_store_hangs_in_a_commit(tmp_path: Path, digest: object) -> None:
    flag = tmp_path / "hang"
    with staged(tmp_path, SLOW, environment={"PYTHONPATH": HANGING, "BEHEMOTH_HANG": str(flag)}) as stage:
        stage.start()
        stage.until_event("Committed")
        flag.touch()
        num_committed = len(stage.events("Committed"))
        interrupt(stage)
        stage.until(lambda: flag.with_name("hanging").exists(), "a commit that hangs")
        interrupt(stage)
        assert stage.wait() == INTERRUPTED, stage.told()
        assert "left without waiting" in stage.told()
        flag.unlink()
        assert len(stage.events("Committed")) <= num_committed + 1
        expect_the_same_end(stage, digest)


@pytest.mark.longer
def test_a_termination_while_the_command_itself_starts_leaves_nothing(tmp_path: Path, digest: object) -> None:
    with staged(tmp_path, SLOW) as stage:
        stage.start()
        stage.until(lambda: (stage.directory / "run.yaml").exists() or stage.living("agent"), "a directory")
        interrupt(stage, signal.SIGTERM)
        assert stage.wait() in (NOT_FINISHED, INTERRUPTED), stage.told()
        expect_the_same_end(stage, digest)


@pytest.mark.longer
def test_an_interrupt_of_the_whole_terminal_saves_like_one_of_the_command(tmp_path: Path, digest: object) -> None:
    """A terminal sends Ctrl-C to its whole foreground group: agents and workers must not be in it."""
    with staged(tmp_path, SLOW) as stage:
        stage.start()
        stage.until_event("Committed")
        assert stage.process is not None
        own = os.getpgid(stage.process.pid)
        assert [found for found in stage.living() if found.role != "run" and os.getpgid(found.pid) == own] == []
        interrupt(stage)
        assert stage.wait() == INTERRUPTED, stage.told()
        assert stage.events("WorkerFailed", "NodeLost") == []
        expect_the_same_end(stage, digest)


def test_a_run_that_was_stopped_and_goes_on_keeps_its_gang(tmp_path: Path, digest: object) -> None:
    """Ctrl-Z for longer than the heartbeat limit: the coordinator heard nobody, since it was not there."""
    with staged(tmp_path, SLOW) as stage:
        stage.start()
        stage.until_event("Committed")
        interrupt(stage, signal.SIGSTOP)
        time.sleep(4)
        interrupt(stage, signal.SIGCONT)
        stage.finish()
        assert stage.events("Evicted", "NodeLost", "Hung") == []
        stage.expect_sound(digest)
