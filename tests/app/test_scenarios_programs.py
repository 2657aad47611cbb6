"""What users bring, under `behemoth run`: the example of a command, the programs printed in docs/integrate.md."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from fault.kill_stage import staged, undisturbed

ROOT = Path(__file__).parents[2]
COMMAND_FILE = (ROOT / "manifests" / "examples" / "command.yaml").read_text()
PRINTED = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "integrate.md").read_text(), re.DOTALL)
PROGRAMS = dict(zip(("torch", "numpy"), PRINTED, strict=True))
PROCESSES = ("--runtime", "process")
KILL = ("--drill", "kill rank 1 at step 50")

STEPS = {"torch": 400, "numpy": 200_000}
"""The numpy program takes microseconds a step, and a fault must find it at work."""

SCRIPT = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {{name: script}}
spec:
  nodes: {{count: 1, gpus_per_node: 2}}
  mesh: {{dp: 2}}
  workload:
    command: [python, {script}]
    environment: {{OMP_NUM_THREADS: "1"}}
    steps: {steps}
  checkpoint: {{every: {{steps: 20}}}}
"""


def not_activated() -> str:
    """PATH of a shell in which nobody activated this virtual environment."""
    folder = str(Path(sys.executable).parent)
    return os.pathsep.join(entry for entry in os.environ["PATH"].split(os.pathsep) if entry != folder)


def expect_a_cold_recovery_to_the_same_end(folder: Path, *engine: str) -> None:
    digest = undisturbed(folder / "undisturbed", COMMAND_FILE, *PROCESSES)
    stage_of_kill = staged(folder / "killed", COMMAND_FILE, arguments=(*engine, *KILL))
    with stage_of_kill as stage:
        stage.start(PATH=not_activated())
        summary = stage.finish()
        assert [event["rank"] for event in stage.events("WorkerFailed")] == [1], stage.told()
        assert summary["faults"]
        stage.expect_sound(digest)


def test_the_example_of_a_command_recovers_cold_with_the_same_end(tmp_path: Path) -> None:
    expect_a_cold_recovery_to_the_same_end(tmp_path, *PROCESSES)


@pytest.mark.longer
def test_the_example_of_a_command_recovers_cold_under_ray(tmp_path: Path) -> None:
    expect_a_cold_recovery_to_the_same_end(tmp_path, "--runtime", "ray")


@pytest.mark.longer
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_printed_program_is_a_command_that_recovers_with_the_same_end(name: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(PROGRAMS[name])
    text = SCRIPT.format(script=script, steps=STEPS[name])
    digest = undisturbed(tmp_path / "undisturbed", text)
    with staged(tmp_path / "killed", text, arguments=(*PROCESSES, *KILL)) as stage:
        stage.start()
        stage.finish()
        assert stage.events("WorkerFailed"), stage.told()
        stage.expect_sound(digest)
