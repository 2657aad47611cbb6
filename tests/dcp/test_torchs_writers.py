"""Checkpoints of torch's writers in their several settings: imported, or refused with what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.storage import StorageWriter
from torch.testing._internal.two_tensor import TwoTensor

from behemoth.dcp import BehemothWriter
from behemoth_cli import root
from dcp.saved import loaded
from dcp.trees import blank, load, same, save

torch.manual_seed(5)
TENSORS = {"w": torch.randn(33, 7), "b": torch.randn(5).bfloat16(), "lr": torch.tensor(0.5)}
FILES = {"w": 1, "b": 2, "lr": 2}
TREE = {
    "model": TENSORS,
    "t": torch.randn(4, 3).t(),
    "none": torch.empty(0, 3),
    "step": 3,
    "more": [torch.tensor(1), ("a", 2)],
}

Write = Callable[[Path], StorageWriter]


def imported(old: Path, to: Path) -> int:
    """The exit code."""
    return root.run(["ckpt", "import", str(old), "--to", str(to), "--step", "1"])


@pytest.mark.parametrize(
    ("write", "state"),
    [
        (lambda path: FileSystemWriter(path, thread_count=3), TREE),
        (lambda path: FileSystemWriter(path, single_file_per_rank=False, sync_files=False), TREE),
        (lambda path: HuggingFaceStorageWriter(str(path)), TENSORS),
        (lambda path: HuggingFaceStorageWriter(str(path), fqn_to_index_mapping=FILES), TENSORS),
    ],
    ids=["threads", "a file for each item", "safetensors", "several safetensors"],
)
def test_a_checkpoint_of_torchs_is_imported_whatever_its_writer_was_set_to(
    tmp_path: Path, write: Write, state: Mapping[str, Any]
) -> None:
    save(dict(state), storage_writer=write(tmp_path / "old"))
    assert imported(tmp_path / "old", tmp_path / "out") == 0
    assert same(loaded(tmp_path / "out", dict(state)), state)


def refusal_of(capsys: pytest.CaptureFixture[str], old: Path, to: Path) -> str:
    assert imported(old, to) != 0
    return capsys.readouterr().err


def test_safetensors_under_the_name_of_torchs_archives_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(
        dict(TENSORS),
        storage_writer=FileSystemWriter(tmp_path / "old", serialization_format=SerializationFormat.SAFETENSORS),
    )
    told = refusal_of(capsys, tmp_path / "old", tmp_path / "out")
    assert "file __0_0.distcp: expected an archive of torch.save, got safetensors" in told
    assert "code: dcp-safetensors" in told


def test_a_subclass_of_a_tensor_is_told_without_advice_to_run_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save({"q": TwoTensor(torch.ones(2), torch.ones(2))}, storage_writer=FileSystemWriter(tmp_path / "old"))
    told = refusal_of(capsys, tmp_path / "old", tmp_path / "out")
    assert "tensor 'q'" in told
    assert "got what only code could load" in told


@pytest.mark.parametrize("named", ["folder", "file", "file beside its index"])
def test_the_one_file_of_a_rank_that_had_all_tensors_is_whole_with_and_without_its_index(
    tmp_path: Path, named: str
) -> None:
    old = tmp_path / "old"
    save(dict(TENSORS), storage_writer=HuggingFaceStorageWriter(str(old)))
    if named != "file beside its index":
        (old / "model.safetensors.index.json").unlink()
    given = old if named == "folder" else old / "model-00001-of-00001.safetensors"
    assert imported(given, tmp_path / "out") == 0
    assert same(loaded(tmp_path / "out", dict(TENSORS)), TENSORS)


@pytest.mark.parametrize("has_index", [True, False])
def test_a_file_that_several_ranks_wrote_over_each_other_is_no_whole_one_whatever_its_index_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], has_index: bool
) -> None:
    """So torch does for sharded tensors without `save_distributed`; here with the words of the second rank."""
    old = tmp_path / "old"
    save(dict(TENSORS), storage_writer=HuggingFaceStorageWriter(str(old)))
    file = old / "model-00001-of-00001.safetensors"
    first, second = (f'\\"w\\": {{\\"saved_offsets\\": [{row}, 0]}}'.encode() for row in (0, 9))
    assert file.read_bytes().count(first) == 1
    file.write_bytes(file.read_bytes().replace(first, second))
    if not has_index:
        (old / "model.safetensors.index.json").unlink()
    told = refusal_of(capsys, old, tmp_path / "out")
    assert "got the part of one of several ranks, which all wrote a file of this name" in told


def test_a_ranks_file_under_another_name_is_no_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old"
    save(dict(TENSORS), storage_writer=HuggingFaceStorageWriter(str(old), save_distributed=True))
    (first,) = old.iterdir()
    first.rename(old / "model.safetensors")
    assert "got one rank's part of them" in refusal_of(capsys, old, tmp_path / "out")


@pytest.mark.parametrize("num_files", [1, 2])
def test_files_of_single_ranks_are_no_whole_tensors_and_go_by_way_of_torchs_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_files: int
) -> None:
    """One file alone looks whole: only rows of other ranks are missing in it."""
    old = tmp_path / "old"
    save(dict(TENSORS), storage_writer=HuggingFaceStorageWriter(str(old), save_distributed=True))
    (first,) = old.iterdir()
    for number in range(1, num_files):
        first.with_name(f"shard-{number + 1:05d}-model-00001-of-00001.safetensors").write_bytes(first.read_bytes())
    told = refusal_of(capsys, old, tmp_path / "out")
    assert "expected whole tensors, got one rank's part of them" in told
    assert "HuggingFaceStorageReader" in told
    if num_files == 1:
        through = load(blank(dict(TENSORS)), storage_reader=HuggingFaceStorageReader(str(old)))
        save(through, storage_writer=BehemothWriter(tmp_path / "out"))
        assert same(loaded(tmp_path / "out", dict(TENSORS)), TENSORS)
