"""What the run file's limits do in a real run: cadence by time, retention, saves that are given up, frozen nodes, and
stores elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from behemoth.checkpoint.commit_log import BadCommit, commits
from behemoth.storage.local import LocalStore
from fault.kill_stage import KillStage, staged

PROCESSES = ("--runtime", "process")
SPEC = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {{name: {name}}}
spec:
  nodes: {{count: 2, gpus_per_node: 1, spares: 1}}
  mesh: {{dp: 2}}
  workload:
    entrypoint: behemoth.workloads.counter:main
    preload: [numpy]
    steps: {steps}
    args: {{step_ms: {step_ms}}}
  checkpoint: {{{checkpoint}}}
  recovery: {{{recovery}}}
"""


def spec(
    *,
    name: str = "limits",
    steps: int = 60,
    step_ms: int = 10,
    checkpoint: str = "every: {steps: 10}",
    recovery: str = "",
) -> str:
    return SPEC.format(name=name, steps=steps, step_ms=step_ms, checkpoint=checkpoint, recovery=recovery)


def steps_in(root: Path) -> list[int]:
    found = commits(LocalStore(root))
    assert not [one for one in found if isinstance(one, BadCommit)]
    return sorted(one.step for one in found if not isinstance(one, BadCommit))


def succeeded(folder: Path, text: str, *drills: str) -> KillStage:
    arguments = [*PROCESSES, *(word for drill in drills for word in ("--drill", drill))]
    with staged(folder, text, arguments=arguments) as stage:
        stage.start()
        assert stage.finish()["outcome"] == "succeeded"
        stage.expect_no_process()
    return stage


@pytest.mark.longer
def test_a_cadence_by_time_saves_about_as_often(tmp_path: Path) -> None:
    stage = succeeded(tmp_path, spec(steps=250, step_ms=20, checkpoint="every: {interval: 1s}"))
    times = [float(str(event["at_us"])) / 1e6 for event in stage.events("Committed")[:-1]]
    num_gaps = len(times) - 1
    assert num_gaps >= 2, stage.told()
    assert (times[-1] - times[0]) / num_gaps > 0.8  # a single commit may come late, and the next one on time


@pytest.mark.longer
def test_retention_keeps_the_newest_and_multiples_for_ever(tmp_path: Path) -> None:
    retention = "every: {steps: 10}, retention: {keep_last: 2, every_steps: 40}"
    stage = succeeded(tmp_path, spec(steps=110, step_ms=40, checkpoint=retention))
    kept = set(steps_in(stage.directory / "checkpoints"))
    told = [re.search(r"step (\d+)", str(event["message"])) for event in stage.events("Committed")]
    committed = sorted(int(found[1]) for found in told if found is not None)
    assert kept == {*committed[-2:], *(step for step in committed if step % 40 == 0)}


def test_a_frozen_node_is_told_by_its_silence_alone(tmp_path: Path) -> None:
    text = spec(steps=300, recovery="heartbeat_limit: 2200ms")
    stage = succeeded(tmp_path, text, "freeze node 1 at step 30")
    drill = stage.events("Drill")[0]
    frozen = [event for event in stage.events("Evicted") if event["node"] == drill["node"]]
    assert any(seconds_between(drill, event) > 1.5 for event in frozen)


def seconds_between(first: dict[str, object], second: dict[str, object]) -> float:
    return (int(str(second["at_us"])) - int(str(first["at_us"]))) / 1e6


def test_storage_that_hangs_costs_saves_but_never_training(tmp_path: Path) -> None:
    text = spec(steps=500, checkpoint="every: {steps: 20}, save_limit: 1s", recovery="hang_floor: {save: 1s}")
    with staged(tmp_path, text, arguments=PROCESSES) as stage:
        stage.start()
        stage.until_event("Committed", 2)
        for store in stage.living("store"):
            os.kill(store.pid, signal.SIGSTOP)
        stage.until_event("SaveFailed", 2)
        assert "no half of the staging memory is free" in str(stage.events("SaveFailed")[-1]["message"])
        for store in stage.living("store"):
            os.kill(store.pid, signal.SIGCONT)
        stage.until_event("Committed", len(stage.events("Committed")) + 1)
        assert stage.finish()["faults"] == []
        assert stage.events("Hung") == []
        stage.expect_no_process()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="behemoth-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.longer
def test_a_store_may_lie_in_memory_and_be_shared_by_runs_of_two_names(tmp_path: Path, in_memory: Path) -> None:
    digests = [
        undisturbed_elsewhere(
            tmp_path / name, spec(name=name, checkpoint=f"store: 'file://{in_memory}', every: {{steps: 20}}")
        )
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
    assert steps_in(in_memory / "one")[-1] == steps_in(in_memory / "two")[-1] == 60
    assert sorted(os.listdir(in_memory)) == ["one", "two"]


def undisturbed_elsewhere(folder: Path, text: str) -> object:
    return succeeded(folder, text).summary()["digest"]


def test_a_relative_store_lies_below_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = succeeded(tmp_path / "stage", spec(checkpoint="store: shared/store, every: {steps: 20}"))
    assert steps_in(tmp_path / "shared" / "store" / "limits")[-1] == 60
    assert not (stage.directory / "checkpoints").exists() or not any((stage.directory / "checkpoints").iterdir())
