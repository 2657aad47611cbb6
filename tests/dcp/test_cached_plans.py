"""Planners that cache their plans tell a writer only what has changed; it writes whole checkpoints all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlanner

from behemoth.dcp import BehemothWriter
from dcp.saved import loaded, refusal, state_of
from dcp.trees import same, save


@pytest.fixture(autouse=True)
def _no_plan_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps plans on the class, for the whole process."""
    for name in [name for name in vars(SavePlanner) if name.startswith("_cached_")]:
        monkeypatch.setattr(SavePlanner, name, {})


class Other(DefaultSavePlanner):
    """Caches under a name of its own."""


def save_cached(seed: int, writer: BehemothWriter, kind: type[DefaultSavePlanner] = DefaultSavePlanner) -> None:
    save(state_of(seed), storage_writer=writer, planner=kind(enable_plan_caching=True))


@pytest.mark.parametrize("is_one_writer", [True, False])
def test_cached_plans_are_written_whole_into_every_new_checkpoint(tmp_path: Path, is_one_writer: bool) -> None:
    kept = BehemothWriter(tmp_path)
    for seed in (1, 2, 3):
        save_cached(seed, kept if is_one_writer else BehemothWriter(tmp_path))
    for step, seed in enumerate((1, 2, 3)):
        assert same(loaded(tmp_path, state_of(0), step=step), state_of(seed))


def test_of_two_planners_each_needs_a_writer_that_is_kept(tmp_path: Path) -> None:
    one, other = BehemothWriter(tmp_path / "one"), BehemothWriter(tmp_path / "other")
    for seed in (1, 2):
        save_cached(seed, one)
        save_cached(seed + 10, other, Other)
    assert same(loaded(tmp_path / "one", state_of(0)), state_of(2))
    assert same(loaded(tmp_path / "other", state_of(0)), state_of(12))
    with pytest.raises(CheckpointException) as caught:
        save_cached(3, BehemothWriter(tmp_path / "one"))
    assert refusal(caught.value).code == "dcp-cached-plan"
