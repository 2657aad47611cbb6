"""What a run says when its program, not a machine, is at fault: it stops, and names the reason."""

from __future__ import annotations

import gzip
import re
import signal
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from behemoth.checkpoint.commit_log import commits
from fault.kill_stage import KillStage, spec, staged

TESTS = str(Path(__file__).parents[1])
RUN_FAILED = 100
INTERRUPTED = 130


def unlucky(folder: Path, entrypoint: str, **more: object) -> AbstractContextManager[KillStage]:
    settings = {"steps": 20, "failures": 3, **more}
    text = spec(entrypoint=entrypoint, step_ms=None, every=5, **settings)  # type: ignore[arg-type]
    return staged(folder, text, environment={"PYTHONPATH": TESTS})


def failed(stage: KillStage) -> str:
    """Runs it to its end, which must be a failure without leftovers; the reason that the summary gives."""
    stage.start()
    assert stage.wait() == RUN_FAILED, stage.told()
    stage.expect_no_process()
    stage.expect_journal()
    summary = stage.summary()
    assert summary["outcome"] == "failed"
    return str(summary["reason"])


def test_a_program_that_fails_at_import_is_stopped_with_its_error(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.breaks_at_import:main") as stage:
        assert "no module named nvidia_magic" in failed(stage)


def test_a_program_that_raises_at_the_same_step_thrice_is_stopped_with_its_last_line(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:raises_at_step_three") as stage:
        assert "ValueError: the third batch has a negative length" in failed(stage)
        # An attempt that was seen a step further than those before it counts as progress, and from there on three must
        # fail anew: two steps can be completed, and be seen only in the last attempt that is left.
        assert 3 <= len(stage.events("Starting")) <= 3 + 2 * 2
        assert "ValueError" in (stage.directory / "logs/attempt-0003/rank-00000.log").read_text()
        assert "hint:" in stage.told()


def test_what_libraries_print_at_the_end_of_an_interpreter_is_not_taken_for_the_reason(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:raises_among_chatty_libraries") as stage:
        stage.environment["UNLUCKY_FOLDER"] = str(tmp_path)
        assert "RuntimeError: the dataset is missing" in failed(stage)
        logs = [log.read_text() for log in (stage.directory / "logs").rglob("rank-*.log")]
        assert any("dataset is missing" in log for log in logs)
        assert not any("leaked 1 instance" in log for log in logs)
        assert (tmp_path / "handler-ran").exists()
        assert (tmp_path / "joined").exists()


def test_a_thread_that_never_ends_does_not_hide_why_its_program_failed(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:raises_beside_a_thread_that_never_ends", failures=1) as stage:
        assert "RuntimeError: the tokenizer is missing" in failed(stage)
        assert stage.events("Hung") == []


def test_files_that_a_program_opens_at_import_or_leaves_open_are_whole(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky_files:leaves_files") as stage:
        stage.environment["UNLUCKY_FOLDER"] = str(tmp_path)
        stage.start()
        assert stage.finish()["outcome"] == "succeeded", stage.told()
        at_import = "".join(path.read_text() for path in tmp_path.glob("at-import-*"))
        assert sorted(at_import.splitlines()) == ["rank 0", "rank 1"]
        for rank in range(2):
            assert gzip.decompress((tmp_path / f"packed-{rank}.gz").read_bytes()) == b"the last line\n"
            with zipfile.ZipFile(tmp_path / f"archive-{rank}.zip") as archive:
                assert archive.read("member") == b"the last member\n"
        assert list(tmp_path.glob("temporary-*")) == []


def test_a_program_that_leaves_early_is_not_taken_for_done(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:leaves_early") as stage:
        assert "exit code 0" in failed(stage)


def test_a_worker_that_never_reports_is_stopped_and_its_stack_stands_in_its_log(tmp_path: Path) -> None:
    """That of the first attempt: at the end of a run an agent has less time for it than a busy machine may need."""
    with unlucky(tmp_path, "fault.unlucky:never_reports", failures=2, floors="start: 8s") as stage:
        assert "no step for 8.0 s at step 0 (starting)" in failed(stage)
        log = (stage.directory / "logs/attempt-0001/rank-00000.log").read_text()
        assert "waiting for a licence server" in log
        assert "in sleeps_for_ever" in log


@pytest.mark.parametrize(
    "program", ["gathers_gradients", "gathers_gradients_and_fences_each_step", "declares_that_its_array_is_frozen"]
)
def test_a_program_that_changes_nothing_between_two_saves_and_says_so_is_healthy(tmp_path: Path, program: str) -> None:
    """Its only update, if any, is that of step 12: the last save and others equal the one before."""
    with unlucky(tmp_path, f"fault.unlucky:{program}") as stage:
        stage.start()
        assert stage.finish()["outcome"] == "succeeded", stage.told()
        assert [commit.step for commit in commits(stage.store)][-1] == 20
        assert stage.events("SaveFailed") == []


def test_a_program_that_announces_updates_but_saves_a_stale_copy_is_told_what_it_can_declare(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:never_changes_what_it_saves") as stage:
        reason = failed(stage)
        assert re.search(
            r"all 1 array \(.*\) equal those of step \d+, although rank 0 announced an update in step 20", reason
        )
        assert "frozen=True" in reason
        assert "run.fence(updates=False)" in reason


def test_an_evaluation_after_the_last_step_may_take_the_time_of_an_evaluation(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:evaluates_at_the_end", floors="save: 3s, eval: 10m") as stage:
        stage.environment["UNLUCKY_FOLDER"] = str(tmp_path)
        stage.start()
        assert stage.finish()["reason"] == "all 20 steps are done and committed", stage.told()
        assert stage.events("Stopping") == []
        assert len(list(tmp_path.glob("score-*"))) == 2


def test_an_evaluation_that_no_phase_declares_is_cut_off_after_the_last_step_and_told(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:evaluates_at_the_end_without_a_word", floors="save: 1s") as stage:
        stage.environment["UNLUCKY_FOLDER"] = str(tmp_path)
        stage.start()
        assert "what the workers still did after step 20 was cut off" in str(stage.finish()["reason"])
        (stopping,) = stage.events("Stopping")
        assert "no sign of an end for 1 s in phase save" in str(stopping["message"])
        assert list(tmp_path.glob("score-*")) == []


def test_a_worker_that_prints_a_gigabyte_fills_no_disk_and_holds_up_nobody(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:prints_a_gigabyte") as stage:
        stage.start()
        assert stage.finish()["outcome"] == "succeeded"
        assert stage.events("WorkerFailed", "NodeLost") == []
        logs = list((stage.directory / "logs").rglob("rank-*"))
        assert sum(path.stat().st_size for path in logs) <= 64 << 20
        assert any(b"that was all" in path.read_bytes() for path in logs)


def test_ranks_of_two_nodes_that_declare_different_arrays_are_stopped_before_they_train(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:declares_by_rank") as stage:
        reason = failed(stage)
        assert "declare other arrays than those on node node-" in reason
        assert "same shapes and dtypes" in reason
        assert len(stage.events("Starting")) == 1
        assert stage.events("Training") == []


@pytest.mark.parametrize(
    ("entrypoint", "told"),
    [("saves_ahead", "save: expected step 1, where steps() is now, got 2"), ("joins_twice", "join: expected one call")],
)
def test_a_program_that_misuses_the_sdk_is_told_how(tmp_path: Path, entrypoint: str, told: str) -> None:
    with unlucky(tmp_path, f"fault.unlucky:{entrypoint}", failures=1) as stage:
        assert told in failed(stage)


def test_a_program_with_a_loop_of_its_own_open_files_and_idle_pools_ends_as_any_python_program(tmp_path: Path) -> None:
    with unlucky(tmp_path, "fault.unlucky:left_open", steps=100) as stage:
        stage.environment["UNLUCKY_FOLDER"] = str(tmp_path)
        stage.start()
        assert stage.finish()["outcome"] == "succeeded"
        assert stage.events("WorkerFailed", "Hung") == []
        assert len(stage.events("Committed")) >= 2
        assert [path.read_text() for path in tmp_path.glob("left-open-*")] == ["the last line\n"] * 2


@pytest.mark.parametrize("program", ["stops_its_own_loop", "never_stops_its_own_loop"])
def test_an_interrupted_program_with_a_loop_of_its_own_ends_with_the_save(tmp_path: Path, program: str) -> None:
    """Not when its time for ending is over, which is longer than this test waits."""
    with unlucky(tmp_path, f"fault.unlucky:{program}", steps=10_000, floors="save: 10m") as stage:
        stage.start()
        stage.until_event("Committed")
        assert stage.process is not None
        stage.process.send_signal(signal.SIGINT)
        assert stage.wait() == INTERRUPTED, stage.told()
        assert stage.summary()["outcome"] == "suspended"
        assert stage.events("WorkerFailed", "Hung") == []
        logs = [log.read_text() for log in (stage.directory / "logs").rglob("rank-*.log")]
        assert any("comes after the run's last save" in log for log in logs) == (program == "never_stops_its_own_loop")
