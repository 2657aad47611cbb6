"""Imports and reshards whose process is killed once the checkpoint is committed, or that are started twice at once: the
same command says that it is done.

Another request for the same step of the same store is refused as ever.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from behemoth_cli import root
from behemoth_cli.exits import Exit
from command_line.cli_rig import environment

KILLED = """
import os, signal, sys
from operator import attrgetter
from importlib import import_module
from behemoth_cli import root
module, _, path = sys.argv[1].partition(":")
where, _, name = path.rpartition(".")
owner = attrgetter(where)(import_module(module)) if where else import_module(module)
setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(root.run(sys.argv[2:]))
"""
"""Runs a command, and kills its process where the named function is called first."""

COMMANDS = {
    "import": ("import", "model.safetensors", "--to", "made", "--step", "4"),
    "reshard": ("reshard", "store", "--to", "made", "--mesh", "dp=2"),
}
BEHIND_THE_COMMIT = {
    "before a look for an owner": "behemoth.checkpoint.interop.ingest:_take_back_if_owned",
    "before the record goes": "behemoth.app.batches.record:RecordFile.close",
    "before a word is said": "behemoth_cli.out.console:Console.show",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A working directory with a file of tensors, and a store with these as checkpoint/4."""
    monkeypatch.chdir(tmp_path)
    save_tensors(seed=1)
    assert run(capsys, "import", "model.safetensors", "--to", "store", "--step", "4")[0] == 0
    return tmp_path


def save_tensors(*, seed: int) -> None:
    random = np.random.default_rng(seed)
    safetensors.numpy.save_file({"w": random.random((6, 5)), "b": random.random(7)}, "model.safetensors")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def killed(place: Path, point: str, *command: str) -> None:
    argv = [sys.executable, "-c", KILLED, point, "ckpt", *command]
    ended = subprocess.run(argv, cwd=place, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("point", BEHIND_THE_COMMIT.values(), ids=BEHIND_THE_COMMIT)
@pytest.mark.parametrize("verb", COMMANDS)
def test_killed_behind_its_commit_the_same_command_says_that_it_is_done_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], verb: str, point: str
) -> None:
    command = (*COMMANDS[verb], "--state", "state")
    killed(place, point, *command)
    before = {path: path.stat().st_mtime_ns for path in (place / "made").rglob("*")}
    code, out, err = run(capsys, *command, "--dry-run", "-o", "json")
    assert (code, json.loads(out)["isKept"], err) == (0, True, "")
    code, out, err = run(capsys, *command)
    assert (code, err) == (0, "")
    assert out.startswith(f"checkpoint/4 was {verb}ed before into {place}/made from ")
    assert {path: path.stat().st_mtime_ns for path in (place / "made").rglob("*")} == before
    assert list((place / "state").iterdir()) == []
    assert run(capsys, "verify", "made")[0] == 0


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("verb", "more"),
    [
        ("import", ("--dtype", "fp32")),
        ("import", ("--select", "w")),
        ("import", ("--anew",)),
        ("reshard", ("--mesh", "dp=3")),
        ("reshard", ("--only", "w")),
        ("reshard", ("--anew",)),
    ],
)
def test_another_request_for_that_step_is_refused(
    capsys: pytest.CaptureFixture[str], verb: str, more: tuple[str, ...]
) -> None:
    assert run(capsys, *COMMANDS[verb])[0] == 0
    code, out, err = run(capsys, *COMMANDS[verb], *more)
    assert (code, out, "code: import-taken" in err) == (Exit.FAILED, "", True)
    assert run(capsys, *COMMANDS[verb])[1].startswith("checkpoint/4 was ")


@pytest.mark.usefixtures("place")
def test_another_source_for_that_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *COMMANDS["import"])[0] == 0
    assert run(capsys, *COMMANDS["reshard"][:3], "other", *COMMANDS["reshard"][4:])[0] == 0
    save_tensors(seed=2)
    code, _, err = run(capsys, *COMMANDS["import"])
    assert (code, "code: import-taken" in err) == (Exit.FAILED, True)
    Path("store").rename("elsewhere")
    assert run(capsys, "import", "model.safetensors", "--to", "store", "--step", "4")[0] == 0
    code, _, err = run(capsys, *COMMANDS["reshard"][:3], "other", *COMMANDS["reshard"][4:])
    assert (code, "code: import-taken" in err) == (Exit.FAILED, True)


OVERTAKEN = {
    "before it writes": "behemoth.checkpoint.interop.ingest.ObjectUploads",
    "before it commits": "behemoth.checkpoint.commit.publish",
}
"""Where another call of the same command overtakes one."""


def overtaken(monkeypatch: pytest.MonkeyPatch, point: str, *command: str) -> None:
    """Where the named function is called first, the command runs from begin to end."""
    where, _, name = point.rpartition(".")
    passed = getattr(import_module(where), name)

    def overtake(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(point, passed)
        assert root.run(["ckpt", *command]) == 0
        return passed(*args, **kwargs)

    monkeypatch.setattr(point, overtake)


@pytest.mark.parametrize("states", [(), ("--state", "state")], ids=["unrecorded", "recorded"])
@pytest.mark.parametrize("point", OVERTAKEN.values(), ids=OVERTAKEN)
@pytest.mark.parametrize("verb", COMMANDS)
def test_of_two_equal_calls_at_once_both_end_well_and_one_checkpoint_stays(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    point: str,
    states: tuple[str, ...],
) -> None:
    overtaken(monkeypatch, point, *COMMANDS[verb], "-o", "json")
    code, out, err = run(capsys, *COMMANDS[verb], *states)
    first, end = json.JSONDecoder().raw_decode(out)
    made, second = first["writeId"], out[end:].lstrip()
    assert (code, second.startswith(f"checkpoint/4 was {verb}ed before into {place}/made from ")) == (0, True), err
    assert f"another call of the same command has {verb}ed checkpoint/4 meanwhile" in err
    assert [path.name for path in (place / "made/steps").iterdir()] == [f"000000004-{made}"]
    assert not states or list((place / "state").iterdir()) == []
    assert run(capsys, "verify", "made")[0] == 0


@pytest.mark.parametrize("point", OVERTAKEN.values(), ids=OVERTAKEN)
@pytest.mark.parametrize(
    ("verb", "more"), [("import", ("--dtype", "fp32")), ("import", ("--anew",)), ("reshard", ("--only", "w"))]
)
def test_who_is_overtaken_by_another_request_is_told_what_has_the_step(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    more: tuple[str, ...],
    point: str,
) -> None:
    overtaken(monkeypatch, point, *COMMANDS[verb], "-o", "json")
    code, out, err = run(capsys, *COMMANDS[verb], *more)
    made = json.loads(out)["writeId"]
    assert code == Exit.FAILED
    assert f"error: target store: expected no checkpoint of step 4, got write {made}, which something else has" in err
    assert "hint: name another store" in err
    assert [path.name for path in (place / "made/steps").iterdir()] == [f"000000004-{made}"]


def test_a_finished_result_of_which_an_object_is_gone_is_not_called_done(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *COMMANDS["import"])[0] == 0
    next(path for path in (place / "made/steps").glob("*/w/c/**/0") if path.is_file()).unlink()
    code, out, err = run(capsys, *COMMANDS["import"])
    assert (code, out, "got none" in err) == (Exit.UNHEALTHY, "", True), err
