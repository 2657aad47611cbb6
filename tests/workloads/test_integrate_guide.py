"""The programs printed in docs/integrate.md run as they stand, and come back after a restart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "integrate.md"
PROGRAMS = dict(zip(("torch", "numpy"), re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL), strict=True))
ON_THE_STAND_IN = """
import sys
sys.path.insert(0, {folder!r})
import fake_sdk
for spec in {specs!r}:
    run = fake_sdk.FakeRun(spec)
    fake_sdk.replace_sdk(run)
    exec(compile({program!r}, "integrate.md", "exec"), {{"__name__": "__main__"}})
    print(run.losses[-1] / run.losses[0])
"""


def execute(code: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_printed_program_runs_by_hand_as_a_world_of_one(name: str) -> None:
    execute(PROGRAMS[name])
    assert "torch" in PROGRAMS["torch"]
    assert "torch" not in PROGRAMS["numpy"]


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_printed_program_learns_and_a_restart_changes_no_bit(name: str, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    specs = []
    for folder, steps in ((straight, 60), (broken, 30), (broken, 60)):
        folder.mkdir(exist_ok=True)
        spec = {"rank": 0, "world_size": 1, "mesh": {}, "steps": steps, "save_at": [steps], "folder": str(folder)}
        specs.append(spec)
    folder_of_stand_in = str(Path(__file__).parent)
    printed = execute(ON_THE_STAND_IN.format(folder=folder_of_stand_in, specs=specs, program=PROGRAMS[name]))
    assert float(printed.split()[0]) < 0.5
    assert (broken / "rank0.npz").read_bytes() == (straight / "rank0.npz").read_bytes()
