"""A folder that is only read, in which links to files are files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from behemoth.base.errors import Denied, NotFound
from behemoth.ports import ObjectInfo, ObjectStore
from behemoth.storage.linked import LinkedFolder
from behemoth.testing.store import read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b").write_bytes(b"somewhere else")
    (tmp_path / "top" / "below").mkdir(parents=True)
    (tmp_path / "top" / "plain").write_bytes(b"here")
    (tmp_path / "top" / "link").symlink_to("../blobs/b")
    (tmp_path / "top" / "below" / "chain").symlink_to("../link")
    (tmp_path / "top" / "folder").symlink_to("below")
    return tmp_path / "top"


def test_a_link_is_listed_and_read_as_the_file_that_it_leads_to(folder: Path) -> None:
    store: ObjectStore = LinkedFolder(folder)
    assert list(store.list("")) == [
        ObjectInfo(key="below/chain", size_bytes=14),
        ObjectInfo(key="link", size_bytes=14),
        ObjectInfo(key="plain", size_bytes=4),
    ]
    assert (read(store, "link", 14), read(store, "below/chain", 14)) == (b"somewhere else", b"somewhere else")
    part = bytearray(4)
    store.read_into("link", offset_bytes=10, into=part)
    assert (bytes(part), read(store, "plain", 4)) == (b"else", b"here")


def test_a_link_that_leads_nowhere_is_named(folder: Path) -> None:
    (folder.parent / "blobs" / "b").unlink()
    store = LinkedFolder(folder)
    assert [info.key for info in store.list("")] == ["below/chain", "link", "plain"]
    for key in ("link", "below/chain"):
        with pytest.raises(NotFound, match=rf"{key}: expected a file where it leads, got none") as caught:
            store.read_into(key, offset_bytes=0, into=bytearray(1))
        assert (caught.value.code, caught.value.hint[:12]) == ("link-dangling", "the download")


def test_a_file_whose_name_is_no_text_hinders_nobody(folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    store = LinkedFolder(folder)
    assert os.fsdecode(b"caf\xe9") in [info.key for info in store.list("")]
    assert read(store, "plain", 4) == b"here"


def test_nothing_is_written_there(folder: Path) -> None:
    store = LinkedFolder(folder)
    with pytest.raises(Denied, match="create new of 1 bytes: expected only reads"):
        store.create("new", b"x")
    with pytest.raises(Denied, match="replace new of 1 bytes by 2 bytes: expected only reads"):
        store.replace("new", old=b"x", new=b"xy")
    with pytest.raises(Denied, match="delete plain"):
        store.delete(["plain"])
    assert (folder / "plain").exists()
    assert not (folder / "new").exists()


def test_a_file_that_is_not_there_is_not_taken_for_a_link_that_leads_nowhere(folder: Path) -> None:
    with pytest.raises(NotFound, match="read gone") as caught:
        read(LinkedFolder(folder), "gone", 1)
    assert caught.value.code == "not-found"
