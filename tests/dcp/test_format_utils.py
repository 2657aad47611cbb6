"""What torch's `format_utils` do for its own folders, with the reader and the writer in their place."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from behemoth.dcp import BehemothReader, BehemothWriter
from dcp.saved import loaded, state_of
from dcp.trees import same, save


def built(path: Path, keys: set[str] | None = None) -> dict[str, Any]:
    """A state dict out of what the checkpoint tells, as docs/dcp.md has it made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a single process
        return _load_state_dict_from_keys(keys, storage_reader=BehemothReader(path))


def test_a_checkpoint_becomes_a_file_of_torch_save_and_a_checkpoint_again(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    save(state_of(1), storage_writer=BehemothWriter(tmp_path / "one"))
    torch.save(built(tmp_path / "one"), file)
    again = torch.load(file, weights_only=True)
    assert again.keys() == state_of(1).keys()
    save(again, storage_writer=BehemothWriter(tmp_path / "two"), no_dist=True)
    assert same(loaded(tmp_path / "two", state_of(0)), state_of(1))


def test_a_part_of_a_checkpoint_is_built_from_its_keys(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    got = built(tmp_path, keys={"model.weight", "optim"})
    assert got["model"].keys() == {"weight"}
    assert same(dict(sorted(got["optim"].items())), dict(sorted(state_of(1)["optim"].items())))


def test_torchs_own_converter_refuses_a_folder_of_ours(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path / "step-1"))
    with pytest.raises(CheckpointException, match="invalid load key"):
        dcp_to_torch_save(tmp_path / "step-1", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()
