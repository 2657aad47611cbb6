"""A run that was trained once for all tests that look at its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line.cli_rig import TRAINED_STEPS, behemoth, small_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of run/small, which has ended: to be read only."""
    folder = tmp_path_factory.mktemp("trained")
    ended = behemoth("run", small_run(folder, steps=TRAINED_STEPS).name, "--runtime", "process", cwd=folder)
    assert ended.code == 0, ended.err
    return folder
