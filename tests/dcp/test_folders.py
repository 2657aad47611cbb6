"""Programs that know their checkpoints by folders: they find them, give them up by removing them, and lose none."""

from __future__ import annotations

import shutil
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from behemoth.checkpoint.pins import pin
from behemoth.checkpoint.signposts import signposts
from behemoth.dcp import BehemothReader, BehemothWriter
from behemoth.storage.local import LocalStore
from behemoth.storage.open import open_store
from behemoth.testing.faults import every_death
from behemoth.testing.store import MemoryStore
from behemoth_cli import root
from dcp.saved import loaded, refs, refusal, state_of, writes
from dcp.test_crash_points import loaded as loaded_from_memory
from dcp.test_crash_points import opened, save_step
from dcp.trees import blank, load, save
from servers.s3_server import BUCKET, S3Server
from storage.s3_stores import let_in


def save_steps(store: Path, *steps: int, **options: Any) -> None:
    for step in steps:
        save(state_of(step), storage_writer=BehemothWriter(store / f"step-{step}", **options))


def steps_of(store: Path) -> list[int]:
    return [int(ref.step) for ref in refs(store)]


def found_steps(store: Path) -> list[int]:
    """What a program finds that knows nothing of stores."""
    return sorted(int(file.parent.name.removeprefix("step-")) for file in store.glob("step-*/.metadata"))


def test_a_save_leaves_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    save_steps(tmp_path, 3)
    save(state_of(1), storage_writer=BehemothWriter(tmp_path), checkpoint_id=tmp_path / "iter_0000004")
    save(state_of(1), storage_writer=BehemothWriter(tmp_path))
    assert found_steps(tmp_path) == [3]
    assert (tmp_path / "iter_0000004" / ".metadata").is_file()
    assert steps_of(tmp_path) == [3, 4, 5]
    assert len(signposts_of(tmp_path)) == 2, "a save into the store itself has no folder"


def signposts_of(store: Path) -> list[str]:
    with closing(LocalStore(store)) as opened_store:
        return [one.folder for one in signposts(opened_store)]


def test_the_reader_of_torch_refuses_the_folder_at_its_first_byte(tmp_path: Path) -> None:
    save_steps(tmp_path, 3)
    with pytest.raises(CheckpointException, match=r"invalid load key, '\{'"):
        load(blank(state_of(3)), storage_reader=FileSystemReader(tmp_path / "step-3"))


def test_a_checkpoint_whose_folder_was_removed_goes_with_a_later_save(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    shutil.rmtree(tmp_path / "step-1")
    assert steps_of(tmp_path) == [1, 2, 3]
    save_steps(tmp_path, 4)
    assert (steps_of(tmp_path), found_steps(tmp_path)) == ([2, 3, 4], [2, 3, 4])
    assert {write[0] for write in writes(tmp_path)} == {2, 3, 4}
    assert signposts_of(tmp_path) == ["step-2", "step-3", "step-4"]


def test_the_newest_two_stay_and_their_folders_do_not_come_back(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20, 30)
    shutil.rmtree(tmp_path / "step-30")  # as one does to go on from step 20
    save_steps(tmp_path, 25)
    assert (steps_of(tmp_path), found_steps(tmp_path)) == ([10, 20, 25, 30], [10, 20, 25])
    save_steps(tmp_path, 30)
    assert found_steps(tmp_path) == [10, 20, 25, 30]
    assert loaded(tmp_path / "step-30", state_of(0))["optim"]["name"] == "adam30"


def test_a_pinned_checkpoint_stays_without_its_folder(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    with closing(LocalStore(tmp_path)) as store:
        pin(store, refs(tmp_path)[0], reason="mine", at_us=0)
    shutil.rmtree(tmp_path / "step-1")
    save_steps(tmp_path, 4)
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_a_store_that_was_copied_without_its_folders_loses_nothing(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3, 4)
    for folder in tmp_path.glob("step-*"):
        shutil.rmtree(folder)
    save_steps(tmp_path, 5)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


def test_a_folder_that_lost_its_checkpoint_goes_with_a_later_save(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    (tmp_path / "commits" / "000000001.json").unlink()
    save_steps(tmp_path, 4)
    assert found_steps(tmp_path) == [2, 3, 4]


def test_gc_of_the_command_line_takes_the_folders_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_steps(tmp_path, 1, 2, 3, 4)
    assert root.run(["ckpt", "gc", str(tmp_path), "--keep-last", "2", "--execute"]) == 0
    assert root.run(["ckpt", "verify", str(tmp_path)]) == 0
    capsys.readouterr()
    assert (steps_of(tmp_path), found_steps(tmp_path)) == ([3, 4], [3, 4])


def test_a_checkpoint_of_torchs_own_is_not_mixed_with_ours(tmp_path: Path) -> None:
    save(state_of(1), storage_writer=FileSystemWriter(tmp_path / "step-1"))
    before = (tmp_path / "step-1" / ".metadata").read_bytes()
    with pytest.raises(CheckpointException) as caught:
        save_steps(tmp_path, 1)
    assert refusal(caught.value).code == "signpost-taken"
    assert (tmp_path / "step-1" / ".metadata").read_bytes() == before
    assert steps_of(tmp_path) == []


def test_a_bucket_has_the_folder_as_an_object(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    url = f"s3://{BUCKET}/dcp/folders"
    for step in (1, 2, 3):
        save(state_of(step), storage_writer=BehemothWriter(f"{url}/step-{step}"))
    with closing(open_store(url)) as store:
        assert [info.key for info in store.list("") if info.key.startswith("step-")] == [
            f"step-{step}/.metadata" for step in (1, 2, 3)
        ]
        store.delete(["step-1/.metadata"])
    save(state_of(4), storage_writer=BehemothWriter(f"{url}/step-4"))
    with pytest.raises(CheckpointException, match="expected a checkpoint of step 1, got none"):
        load(blank(state_of(1)), storage_reader=BehemothReader(f"{url}/step-1"))


def folders_in(inner: MemoryStore) -> set[int]:
    files = (info.key for info in inner.list("") if info.key.endswith("/.metadata"))
    return {int(key.removeprefix("step-").removesuffix("/.metadata")) for key in files}


@pytest.mark.parametrize("step", [2, 4])
def test_wherever_a_save_dies_no_folder_lacks_its_checkpoint_and_the_next_save_completes_them(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Of step 4, with the folder of step 1 given up; of step 2, which is replaced."""

    def before() -> MemoryStore:
        inner = MemoryStore()
        with opened(monkeypatch, inner):
            for earlier in (1, 2, 3):
                save_step(earlier, earlier)
        inner.delete(["step-1/.metadata"])
        return inner

    with opened(monkeypatch, before()) as shared:
        save_step(step, 9)
        num_writes = shared.num_writes
    healed = 0
    for death in every_death(num_writes):
        inner = before()
        with opened(monkeypatch, inner, death), suppress(CheckpointException):
            save_step(step, 9)
        with opened(monkeypatch, inner):
            standing = {one for one in (1, 2, 3, 4) if loaded_from_memory(one) is not None}
            lacking = standing - {1} - folders_in(inner)
            assert folders_in(inner) <= standing
            healed += bool(lacking)
            save_step(5, 5)
            standing = {one for one in (1, 2, 3, 4, 5) if loaded_from_memory(one) is not None}
        assert 1 not in standing
        assert folders_in(inner) == standing
    assert (healed > 0) == (step == 4), "a step that is replaced has its folder all the time"
