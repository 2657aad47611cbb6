"""`behemoth ckpt scrub`: rounds, damage, and its end."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.verify import Verification, verify
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth_cli import root
from behemoth_cli.commands import checking, ckpt_scrub
from checkpoint.saved_checkpoint import save, small_layout
from command_line.cli_rig import LIMIT_S, PROGRAM, environment


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with closing(LocalStore(tmp_path / "store")) as store:
        for step in (10, 20):
            save(store, small_layout(), step=step, write_id=f"a1-{step}")
    return tmp_path / "store"


def damage(place: Path) -> None:
    shard = place / "steps/000000010-a1-10/model/w/c/0/0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)


def scrub(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", "scrub", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize("how", [(), ("--once",), ("--rate", "1GiB")])
def test_without_a_schedule_every_checkpoint_is_read_once_the_newest_first(
    place: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    code, text, _ = scrub(capsys, str(place), *how)
    assert code == 0
    assert [line.split(" (")[0] for line in text.splitlines()] == ["checkpoint/20 ok", "checkpoint/10 ok"]
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before


def test_damage_is_named_and_ends_with_code_3(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(place)
    code, text, _ = scrub(capsys, str(place), "-o", "json")
    found = json.loads(text)
    assert (code, found["isIntact"]) == (3, False)
    assert found["checkpoints"][1]["problems"][0]["tensor"] == "model/w"


def test_what_retention_deletes_before_its_turn_is_left_out_with_a_note(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LocalStore(place)) as store:
        save(store, small_layout(), step=30, write_id="a1-30")

    def verify_slowly(store: ObjectStore, commit: CommitRef, **how: Any) -> Verification:
        if commit.step == 30:
            oldest = [one for one in commits(store) if one.step == 10 and isinstance(one, CommitRef)]
            execute(store, plan_gc(store, drop=oldest))
        return verify(store, commit, **how)

    monkeypatch.setattr(checking, "verify", verify_slowly)
    code, text, noted = scrub(capsys, str(place))
    assert code == 0
    assert [line.split(" (")[0] for line in text.splitlines()] == ["checkpoint/30 ok", "checkpoint/20 ok"]
    assert "checkpoint/10 was deleted while it was read: left out" in noted


def test_a_record_that_is_damaged_while_checkpoints_are_read_is_damage(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify_late(store: ObjectStore, commit: CommitRef, **how: Any) -> Verification:
        (place / "commits" / "000000010.json").write_bytes(b"rubbish")
        return verify(store, commit, **how)

    monkeypatch.setattr(checking, "verify", verify_late)
    code, text, _ = scrub(capsys, str(place))
    assert code == 3
    assert "checkpoint/10 damaged: 1 place" in text


def test_on_a_schedule_rounds_follow_until_one_finds_damage(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def pause(_stop: threading.Event, wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 2:
            damage(place)

    monkeypatch.setattr(ckpt_scrub, "_pause", pause)
    code, text, noted = scrub(capsys, str(place), "--every", "6h", "--threads", "1", "--rate", "1GiB")
    assert code == 3
    assert [line.split(" (")[0] for line in text.splitlines()].count("checkpoint/20 ok") == 3
    assert "checkpoint/10 damaged: 1 place" in text
    assert len(waits) == 2
    assert all(6 * 3600 - 60 < wait_s <= 6 * 3600 for wait_s in waits)
    assert noted.count("the next round begins in ") == 2


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (("--rate", "5"), "option --rate: expected a size"),
        (("--rate", "0B"), "option --rate: expected at least 1B"),
        (("--rate", "0"), "hint: for example 500MB; without the option it is 200MiB"),
        (("--every", "soon"), "option --every: expected a duration"),
        (("--every", "1ms"), "option --every: expected at least 1s"),
        (("--every", "6h", "--once"), "option --once: expected it without --every"),
    ],
)
def test_what_makes_no_sense_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...], what: str
) -> None:
    code, _, told = scrub(capsys, str(place), *how)
    assert (code, what in told) == (2, True)


def test_a_store_in_which_nothing_is_left_is_not_called_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be a file system that is not mounted any more."""
    (tmp_path / "commits").mkdir()
    code, text, told = scrub(capsys, str(tmp_path))
    assert (code, text) == (102, "")
    assert "expected a checkpoint, got none" in told


@pytest.mark.parametrize(("how", "awaited"), [(("--rate", "1B"), "store "), (("--every", "6h"), "the next round")])
def test_an_interrupt_ends_it_at_once_and_without_a_trace(place: Path, how: tuple[str, ...], awaited: str) -> None:
    """At one byte a second the threads wait for hours; between two rounds the command does."""
    process = subprocess.Popen(
        [PROGRAM, "ckpt", "scrub", str(place), *how],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    while awaited not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in told
