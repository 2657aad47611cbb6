"""Folders of killed runs are recognised by their free lock, and nobody else's are touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from behemoth.base.errors import Unavailable
from behemoth.rayrt.tempdir import PREFIX, make_temp_dir, remove_left_behind, temp_root


def test_a_folder_in_use_is_left_alone_and_removed_once_unlocked(tmp_path: Path) -> None:
    path, lock_fd = make_temp_dir(tmp_path)
    (path / "session").mkdir()
    assert remove_left_behind(tmp_path) == []
    os.close(lock_fd)
    assert remove_left_behind(tmp_path) == [path]
    assert not path.exists()


def test_other_names_files_and_links_are_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{PREFIX}file").write_text("mine")
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    assert remove_left_behind(tmp_path) == []
    assert elsewhere.is_dir()
    assert (tmp_path / f"{PREFIX}file").read_text() == "mine"


def test_a_folder_is_private_and_its_lock_is_not_inherited(tmp_path: Path) -> None:
    path, lock_fd = make_temp_dir(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert not os.get_inheritable(lock_fd)
    os.close(lock_fd)


def test_a_missing_root_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="missing"):
        make_temp_dir(tmp_path / "missing")


def test_a_long_temporary_folder_gives_way_to_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/a/folder/too/long/for/sockets")
    assert temp_root() == Path("/tmp")
