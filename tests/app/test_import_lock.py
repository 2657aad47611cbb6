"""The lock of imports, and the folder that one makes: gone when it fails, unless somebody else is there."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from behemoth.app.import_lock import clearing, importing
from behemoth.base.errors import Conflict


class Refused(Exception):
    """What ends an import in these tests."""


def fail(folder: Path, after: Callable[[], object] = lambda: None) -> None:
    def work() -> None:
        with importing(folder):
            assert folder.is_dir()
            after()
            raise Refused

    with pytest.raises(Refused):
        work()


def test_an_import_that_fails_removes_the_folders_that_it_made_and_no_others(tmp_path: Path) -> None:
    fail(tmp_path / "made" / "store")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    fail(tmp_path / "mine" / "store")
    fail(tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_folders_in_which_nothing_was_written_yet_go_too_and_what_was_written_stays(tmp_path: Path) -> None:
    store = tmp_path / "store"
    fail(store, (store / "steps").mkdir)
    assert not store.exists()

    def write() -> None:
        (store / "empty" / "folder").mkdir(parents=True)
        (store / "steps").mkdir()
        (store / "steps" / "kept").touch()

    fail(store, write)
    assert [path.name for path in store.rglob("*")] == ["steps", "kept"]


def test_a_folder_in_which_another_import_has_begun_stays(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with ExitStack() as other:
        fail(store, lambda: other.enter_context(importing(store)))
        assert store.is_dir()
        with pytest.raises(Conflict), clearing(store):
            pass


def test_the_lock_of_a_folder_that_was_removed_meanwhile_is_not_taken_for_that_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, flock = tmp_path / "store", fcntl.flock

    def late(fd: int, how: int) -> None:
        """Between open(2) and flock(2) of one import another one fails, and a third makes the folder anew."""
        monkeypatch.setattr(fcntl, "flock", flock)
        store.rmdir()
        store.mkdir()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(Conflict) as caught, importing(store):
        pass
    assert caught.value.code == "store-busy"
