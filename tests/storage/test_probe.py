"""The probe passes a good directory, and finds what an unfit mount would do."""

import os
from pathlib import Path

import pytest

from behemoth.base.errors import Denied, Invalid, Unavailable
from behemoth.storage.probe import probe


def test_a_local_directory_passes_and_nothing_is_left(tmp_path: Path) -> None:
    probe(tmp_path / "made" / "by-it")
    probe(tmp_path / "made" / "by-it")
    assert os.listdir(tmp_path / "made" / "by-it") == []


def test_a_root_that_the_probe_makes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that is opened next finds it there, and syncs what is in it alone."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    probe(tmp_path / "made" / "by-it")
    assert {str(tmp_path), str(tmp_path / "made")} <= set(synced)


@pytest.mark.parametrize("below", [".", "store"])
def test_a_file_in_the_way_of_the_folder_is_told(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Invalid, match="Not a directory") as caught:
        probe(tmp_path / "file" / below)
    assert caught.value.code == "store-folder"


def test_a_mount_that_loses_one_of_two_writers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    first: list[int] = []

    def only_the_first_writer(fd: int, data: bytes, at: int) -> int:
        first[:] = first or [fd]
        return pwrite(fd, data, at) if fd == first[0] else len(data)

    monkeypatch.setattr(os, "pwrite", only_the_first_writer)
    with pytest.raises(Invalid, match="bytes of one of two writers of the same pages lost") as caught:
        probe(tmp_path)
    assert caught.value.code == "incoherent-store"
    assert "FUSE" in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_a_mount_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(Invalid, match="got no hard links"):
        probe(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_mount_whose_link_replaces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_, **__: None)
    with pytest.raises(Invalid, match="a link that replaced an existing name"):
        probe(tmp_path)


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Unavailable, match="no space left") as caught:
        probe(tmp_path)
    assert caught.value.code == "no-space"
    assert os.listdir(tmp_path) == []


def test_a_folder_in_which_nothing_can_be_made_is_found_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("commits", "lost+found"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(Denied, match="folder commits"):
        probe(tmp_path)
