"""`behemoth get runs` over directories in every state: one that is damaged hides nothing but itself."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from behemoth.app.run_directory import RunDirectory
from behemoth_cli import root
from reconcile.player import Player


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs that trained and were left, a copy of one, and a folder that is no run."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs"
    for name in ("a", "b"):
        made(place / name, name).journal.write_bytes(journal())
    made(place / "copy", "a").journal.write_bytes(journal())
    (place / "folder").mkdir()
    return place


def made(path: Path, name: str) -> RunDirectory:
    directory = RunDirectory(path)
    directory.open()
    directory.found(name, None)
    directory.close()
    return directory


def journal() -> bytes:
    player = Player()
    player.begin()
    player.join("abc")
    player.train()
    player.reach(7)
    return player.journal


def rows(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> list[dict[str, Any]]:
    assert root.run(["get", "runs", *options, "-o", "json"]) == code
    items: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["items"]
    return items


def damage_identity(place: Path) -> None:
    (place / "identity.json").write_bytes(b"\x00rubbish")


def damage_a_line(place: Path) -> None:
    lines = (place / "evidence.jsonl").read_bytes().splitlines(keepends=True)
    (place / "evidence.jsonl").write_bytes(b"".join([*lines[:2], b"rubbish\n", *lines[3:]]))


def lose_the_first_line(place: Path) -> None:
    _, *lines = (place / "evidence.jsonl").read_bytes().splitlines(keepends=True)
    (place / "evidence.jsonl").write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_identity, "identity.json: expected Identity"),
        (damage_a_line, "journal line 3: expected a fact"),
        (lose_the_first_line, "expected RunOpened as its first fact"),
    ],
)
def test_a_damaged_directory_is_a_row_with_its_reason_beside_the_others(
    runs: Path, capsys: pytest.CaptureFixture[str], damage: Any, expected: str
) -> None:
    damage(runs / "copy")
    found = rows(capsys, code=3)
    assert [(row["name"], row["state"]) for row in found] == [
        ("a", "interrupted"),
        ("b", "interrupted"),
        ("copy", "damaged"),
    ]
    assert expected in found[2]["message"]
    assert root.run(["get", "runs", "-o", "wide"]) == 3
    wide = capsys.readouterr()
    assert expected in wide.out
    assert wide.err == ""
    assert root.run(["get", "runs"]) == 3
    told = capsys.readouterr()
    assert told.out.splitlines()[3].split()[:2] == ["copy", "damaged"]
    assert told.err.startswith("warning: runs/copy: damaged: ")
    assert told.err.count("\n") == 1


def test_a_damaged_run_that_is_named_is_an_error_with_a_hint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_a_line(runs / "b")
    assert root.run(["get", "runs", "b"]) == 3
    assert "\nhint: restore the journal" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_directory_that_may_not_be_read_is_a_row_too(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "b" / "evidence.jsonl").chmod(0)
    assert [row["state"] for row in rows(capsys, code=3)] == ["interrupted", "unreadable", "interrupted"]


def test_a_journal_that_is_no_file_is_told_as_unreadable(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "b" / "evidence.jsonl").unlink()
    (runs / "b" / "evidence.jsonl").mkdir()
    (row,) = [row for row in rows(capsys, code=3) if row["state"] != "interrupted"]
    assert (row["state"], "Is a directory" in row["message"]) == ("unreadable", True)


@pytest.mark.parametrize("journal", [None, b"", b'{"torn'])
def test_a_run_whose_start_came_to_nothing_was_not_started(
    runs: Path, capsys: pytest.CaptureFixture[str], journal: bytes | None
) -> None:
    """As a dead --address leaves it: claimed, and nothing was ever written of it."""
    directory = made(runs / "later", "later")
    if journal is not None:
        directory.journal.write_bytes(journal)
    (row,) = [row for row in rows(capsys) if row["name"] == "later"]
    assert (row["state"], row["message"]) == ("not started", "nothing was written yet")
    assert root.run(["status", "later"]) == 0
    assert capsys.readouterr().out.startswith("run/later not started\n")
    with (directory.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [row["state"] for row in rows(capsys) if row["name"] == "later"] == ["starting"]
