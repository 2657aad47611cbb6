"""`behemoth ckpt` on the checkpoints of a real run, whole and damaged."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from behemoth.base.ids import Step
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.paths import commit_key, step_prefix
from behemoth.checkpoint.verify import Verification
from behemoth.checkpoint.verify import verify as verified
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth_cli import root
from behemoth_cli.commands import checking
from behemoth_cli.exits import Exit
from command_line.cli_rig import TRAINED_STEPS as NEWEST
from command_line.cli_rig import on_terminal


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's checkpoints, which a test may damage."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "small" / "checkpoints"


@pytest.fixture
def older(place: Path) -> int:
    """The other checkpoint that retention left."""
    steps = sorted(int(file.stem) for file in (place / "commits").iterdir())
    assert len(steps) == 2
    assert steps[1] == NEWEST
    return steps[0]


def flip(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x10
    file.write_bytes(data)


def verify(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = root.run(["ckpt", "verify", *arguments])
    return code, capsys.readouterr().out


def test_checkpoints_are_named_by_run_directory_path_and_url(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for where in ("run/small", "small", "runs/small", str(place), f"file://{place}"):
        assert root.run(["ckpt", "list", where, "-o", "name"]) == 0
        assert capsys.readouterr().out == f"checkpoint/{older}\ncheckpoint/{NEWEST}\n"


@pytest.mark.parametrize(
    ("below", "told"),
    [
        ("commits", "got one without\nhint: name the store, which is the folder above: {place}\n"),
        ("owner/run.json", "expected a run or a folder with checkpoints, got another file\n"),
        ("owner/nothing", "expected a run or a folder with checkpoints, got nothing of that name\n"),
    ],
)
def test_what_is_no_store_is_told_for_what_it_is(
    place: Path, capsys: pytest.CaptureFixture[str], below: str, told: str
) -> None:
    assert root.run(["ckpt", "list", str(place / below)]) == Exit.NOT_FOUND
    assert told.format(place=place) in capsys.readouterr().err


def test_a_name_of_both_a_run_and_a_store_is_refused_until_it_says_which(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place, "small")
    Path("small", commit_key(Step(older))).unlink()
    assert root.run(["ckpt", "list", "small"]) == Exit.USAGE
    assert "hint: write run/small or ./small\ncode: checkpoints-ambiguous" in capsys.readouterr().err
    for where, steps in (("run/small", [older, NEWEST]), ("./small", [NEWEST])):
        assert root.run(["ckpt", "list", where, "-o", "name"]) == 0
        assert capsys.readouterr().out.split() == [f"checkpoint/{step}" for step in steps]


def test_intact_checkpoints_verify(place: Path, older: int, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = verify(capsys, str(place))
    assert code == 0
    assert told.startswith(f"checkpoint/{older} ok (")
    assert f"\ncheckpoint/{NEWEST} ok (" in told


def test_every_file_of_a_checkpoint_is_covered_and_named(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the older checkpoint are of the same kinds."""
    files = [file for file in sorted(place.rglob("*")) if file.is_file() and f"{older:09d}" not in str(file)]
    assert len(files) > 10
    for file in files:
        whole = file.read_bytes()
        flip(file, len(whole) // 2)
        code, told = verify(capsys, "run/small")
        assert (code, file.relative_to(place).as_posix() in told) == (3, True), file
        file.write_bytes(whole)
    assert verify(capsys, "run/small")[0] == 0


@pytest.mark.parametrize("how", [(), ("--fast",), ("--step", str(NEWEST))])
def test_a_flipped_bit_of_whose_the_store_is_is_told_by_every_check(
    place: Path, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    flip(place / "owner" / "run.json", 40)
    code, told = verify(capsys, str(place), *how)
    assert code == 3
    assert told.startswith("store damaged: 1 place\n")
    assert "owner/run.json" in told
    code, told = verify(capsys, str(place), *how, "-o", "json")
    found = json.loads(told)
    assert (code, found["isIntact"], found["store"]["isIntact"]) == (3, False, False)
    assert all(checkpoint["isIntact"] for checkpoint in found["checkpoints"])


def test_damage_is_told_where_nothing_was_committed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (place / "commits").iterdir():
        file.unlink()
    assert verify(capsys, str(place))[0] == 102
    flip(place / "owner" / "run.json", 40)
    assert verify(capsys, str(place))[0] == 3


def test_a_flipped_bit_of_an_array_is_told_with_tensor_chunk_and_file(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard,) = (place / "steps").glob(f"{NEWEST:09d}-*/model/table/c/0/0")
    flip(shard, 1000)
    code, told = verify(capsys, "run/small", "--step", str(NEWEST))
    row = told.splitlines()[-1].split()
    assert code == 3
    assert row[:5] == [str(NEWEST), "chunk", "model/table", "0", shard.relative_to(place).as_posix()]
    code, told = verify(capsys, "run/small", "-o", "json")
    (problem,) = json.loads(told)["checkpoints"][1]["problems"]
    assert (problem["tensor"], problem["chunk"]) == ("model/table", 0)
    assert verify(capsys, "run/small", "--step", str(older))[0] == 0
    assert verify(capsys, "run/small", "--fast")[0] == 0


def test_a_missing_and_a_truncated_file_are_told_by_the_fast_check_too(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard,) = (place / "steps").glob(f"{NEWEST:09d}-*/model/table/c/0/0")
    (other,) = (place / "steps").glob(f"{older:09d}-*/optim/momentum/c/0/0")
    shard.unlink()
    other.write_bytes(other.read_bytes()[:100])
    code, told = verify(capsys, "run/small", "--fast")
    assert code == 3
    assert "missing  model/table" in told
    assert "size     optim/momentum" in told


def test_a_truncated_commit_is_listed_as_damaged_and_not_shown(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    record = place / "commits" / f"{NEWEST:09d}.json"
    record.write_bytes(record.read_bytes()[:50])
    assert root.run(["ckpt", "list", "run/small"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[-1]) for row in rows[1:]] == [(str(older), "ok"), (str(NEWEST), "damaged")]
    assert verify(capsys, "run/small")[0] == 3
    assert root.run(["ckpt", "show", "run/small", "--step", str(NEWEST)]) == 3
    assert f"commits/{NEWEST:09d}.json" in capsys.readouterr().err
    assert root.run(["ckpt", "show", "run/small", "-o", "json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["step"] == older
    assert told.err.startswith(
        f"warning: checkpoint/{older} is taken, and a newer one passed over: commits/{NEWEST:09d}"
    )


@pytest.mark.parametrize("name", ["notes.txt", ".000000320.json.tmp", "320.json", "folder/000000320.json"])
def test_a_foreign_file_is_called_that_and_not_a_damaged_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = place / "commits" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("remember the milk")
    assert root.run(["ckpt", "verify", "run/small"]) == 3
    told = capsys.readouterr()
    assert f"\ncommits/{name} foreign: no part of a checkpoint\n" in f"\n{told.out}"
    assert f"\ncheckpoint/{NEWEST} ok (" in f"\n{told.out}"
    assert told.out.splitlines()[-3] == "Foreign files"
    assert "damage" not in told.out.lower()
    assert f"hint: remove {place}/commits/{name}, " in told.err
    code, text = verify(capsys, "run/small", "-o", "json")
    document = json.loads(text)
    (one,) = [one for one in document["checkpoints"] if not one["isIntact"]]
    assert (code, document["isIntact"], one["problems"][0]["kind"]) == (3, False, "foreign")
    assert one["problems"][0]["file"] == f"commits/{name}"
    file.unlink()
    assert verify(capsys, "run/small")[0] == 0


def test_a_foreign_file_is_listed_as_one_and_is_no_checkpoint(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "commits" / "notes.txt").write_text("remember the milk")
    assert root.run(["ckpt", "list", "run/small", "-o", "json"]) == 0
    first = json.loads(capsys.readouterr().out)["items"][0]
    assert (first["step"], first["state"], first["file"]) == (None, "foreign", "commits/notes.txt")
    assert root.run(["ckpt", "list", "run/small", "-o", "name"]) == 0
    assert capsys.readouterr().out == f"checkpoint/{older}\ncheckpoint/{NEWEST}\n"
    assert root.run(["ckpt", "show", "run/small", "--step", "9999"]) == 102
    assert f"checkpoints of step {older}, {NEWEST}" in capsys.readouterr().err


def test_of_a_damaged_record_no_bytes_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(place / "commits" / f"{NEWEST:09d}.json", 40)
    row = verify(capsys, "run/small")[1].splitlines()[-1].split()
    assert row[:6] == [str(NEWEST), "commit-record", "-", "-", f"commits/{NEWEST:09d}.json", "-"]


def test_a_rejected_checkpoint_is_listed_with_the_reason(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(LocalStore(place)) as store:
        (newest,) = [one for one in commits(store) if one.step == NEWEST]
        reject(store, newest, "a chunk was damaged")
    assert root.run(["ckpt", "list", "run/small", "-o", "json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert [(item["step"], item["state"], item["reason"]) for item in items] == [
        (older, "ok", None),
        (NEWEST, "rejected", "a chunk was damaged"),
    ]


def test_one_checkpoint_is_shown_with_its_arrays_and_the_digest_of_the_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert root.run(["ckpt", "show", "run/small", "--digest", "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["digest"] == json.loads((place.parent / "summary.json").read_text())["digest"]
    table = next(array for array in shown["arrays"] if array["name"] == "model/table")
    assert table["sizeBytes"] == 4 * table["numElements"]
    assert [(place / file).is_file() for file in table["files"]] == [True]
    assert (shown["run"], shown["mesh"]["dp"]) == ("small", 2)


def test_a_step_that_was_not_saved_is_answered_with_those_that_were(
    place: Path, older: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert root.run(["ckpt", "show", str(place), "--step", "9999"]) == 102
    assert f"hint: there are checkpoints of step {older}, {NEWEST}" in capsys.readouterr().err


def test_a_terminal_gets_the_same_rows(trained: Path) -> None:
    ended = on_terminal("ckpt", "list", "run/small", cwd=trained, NO_COLOR="1")
    rows = [line.split() for line in ended.out.splitlines()]
    assert [row[0] for row in rows][0::2] == ["STEP", str(NEWEST)]


def test_a_checkpoint_that_retention_deletes_while_it_is_read_is_left_out(
    place: Path, older: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = verified

    def verify_late(store: ObjectStore, commit: CommitRef, **how: Any) -> Verification:
        if commit.step == older:
            store.delete([commit_key(commit.step)])
            store.delete([info.key for info in store.list(step_prefix(commit.step, commit.write_id))])
        return whole(store, commit, **how)

    monkeypatch.setattr(checking, "verify", verify_late)
    code, told = verify(capsys, str(place))
    assert code == 0
    assert f"checkpoint/{older}" not in told
    assert f"checkpoint/{NEWEST} ok (" in told
