"""Folders of a directory that is a store: made beside other processes, and synced without passing over any."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from behemoth.base.errors import NotFound
from behemoth.storage.folders import make_folders, make_root, sync_folder, sync_folders


def somebody_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder is made by another process just before this one makes it."""
    mkdir = os.mkdir

    def late(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", late)


def test_a_folder_that_another_process_makes_meanwhile_is_as_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody_is_first(monkeypatch)
    make_root(str(tmp_path / "store" / "run"))
    make_folders(str(tmp_path / "store" / "run" / "steps" / "1"), mode=0o700)
    made = tmp_path / "store" / "run" / "steps"
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE((made / "1").stat().st_mode) == 0o700


def test_a_folder_above_that_goes_meanwhile_is_no_fault_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, above = os.mkdir, tmp_path / "store"

    def cleared_away(path: str, mode: int = 0o777) -> None:
        if path != str(above):
            above.rmdir()
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", cleared_away)
    with pytest.raises(FileNotFoundError):
        make_root(str(above / "run"))


def test_no_folder_is_made_where_a_file_stands(tmp_path: Path) -> None:
    (tmp_path / "steps").write_bytes(b"")
    with pytest.raises(FileExistsError):
        make_folders(str(tmp_path / "steps"), mode=0o777)
    with pytest.raises(FileExistsError):
        make_folders(str(tmp_path / "steps" / "1"), mode=0o777)


def test_a_folder_that_is_gone_or_none_is_not_taken_for_durable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        sync_folder(str(tmp_path / "file"))
    with pytest.raises(NotFound, match="fsync directory"):
        sync_folders([str(tmp_path), str(tmp_path / "gone")])
    sync_folders([str(tmp_path / "gone"), str(tmp_path / "file")], missing_ok=True)
