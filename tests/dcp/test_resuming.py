"""Programs that find their checkpoints by folders go on from the last one, and keep as many as they meant to."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dcp.folder_managers import DOCUMENT, KEPT
from dcp.programs import told_by
from servers.s3_server import BUCKET, S3Server
from storage.s3_stores import let_in

MODES = ("disabled", "async", pytest.param("async_with_pinned_mem", marks=pytest.mark.longer))
HAS_TORCHTITAN = importlib.util.find_spec("torchtitan") is not None
REAL = pytest.param(
    "torchtitan",
    marks=[
        pytest.mark.longer,
        pytest.mark.skipif(not HAS_TORCHTITAN, reason="torchtitan is not installed"),
    ],
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("manager", ["folders", REAL])
def test_a_program_goes_on_from_its_last_folder_and_old_ones_go_with_their_data(
    tmp_path: Path, manager: str, mode: str
) -> None:
    if manager == "torchtitan" and mode == "async_with_pinned_mem" and not torch.cuda.is_available():
        pytest.skip("torchtitan's stager needs an accelerator")
    expect_resumed(*told_by("resume_program", manager, mode, str(tmp_path / "checkpoint")))


@pytest.mark.longer
@pytest.mark.skipif(not HAS_TORCHTITAN or importlib.util.find_spec("s3fs") is None, reason="needs torchtitan and s3fs")
@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_torchtitan_does_so_in_a_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """With the setting that docs/dcp.md tells its users."""
    (setting,) = re.findall(r"export FSSPEC_S3='(.*)'`", DOCUMENT.read_text())
    let_in(monkeypatch, s3)
    monkeypatch.setenv("FSSPEC_S3", setting)
    expect_resumed(*told_by("resume_program", "torchtitan", mode, f"s3://{BUCKET}/titan-{mode}/checkpoint"))


def expect_resumed(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """What each rank told of its two lives."""
    for rank in range(2):
        assert not first[rank]["was_found"]
        assert second[rank]["was_found"]
        assert second[rank]["found"] == first[rank]["ended"]
        assert second[rank]["ended"]["step"] == 7
        assert len(second[rank]["ended"]["losses"]) == 7
    assert first[0]["found"]["sums"] != first[0]["ended"]["sums"]
    for life, last in ((first, 5), (second, 7)):
        assert life[0]["folders"][-1] == last
        # What goes last has lost its folder, and goes with the next save; the one under way counts for no folder yet.
        assert len(life[0]["folders"]) <= KEPT + 1
        assert set(life[0]["folders"]) <= set(life[0]["store"])
        assert len(life[0]["store"]) <= KEPT + 3
