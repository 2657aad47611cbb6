"""What wrong input gets: one sentence, a hint, a code, and an exit code that scripts can tell apart."""

from __future__ import annotations

import fcntl
import os
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import pytest

from behemoth.base import errors
from behemoth.storage.local import LocalStore
from behemoth_cli import root
from behemoth_cli.context import read_file
from behemoth_cli.errors import failure_of, lines_of
from behemoth_cli.exits import Exit
from checkpoint.saved_checkpoint import save, small_layout
from command_line.cli_rig import small_run


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and stderr; stdout stays empty."""
    code = root.run(list(arguments))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[0].startswith("error: ")
    assert "Traceback" not in told.err
    return code, told.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "hint: did you mean run?"),
        (["get", "ndoes"], "hint: did you mean nodes?"),
        (["version", "-o", "jsno"], "hint: did you mean json?"),
        (["version", "-o", "name"], "hint: formats here: json, yaml"),
        (["status", "-o", "wide"], "hint: formats here: json, yaml"),
        (["get", "runs", "-o", "csv"], "hint: formats here: wide, json, yaml, name"),
        (["run", "f.yaml", "--dirr", "x"], "hint: did you mean --dir?"),
        (["run"], "error: missing argument 'FILE'"),
        (["run", "f.yaml", "--runtime", "rya"], "file-not-found"),
        (["completion", "tcsh"], "expected one of bash, zsh, fish, got 'tcsh'"),
        (["help", "exit-code"], "expected exit-codes, got 'exit-code'"),
        (["--color", "blue", "version"], "expected one of auto, always, never, got 'blue'"),
        (["explain", "spec.mash.ep"], "hint: did you mean spec.mesh.ep?"),
        (["ckpt", "verfy", "x"], "hint: did you mean verify?"),
        (["logs", "--tail", "many"], "--tail"),
        (["ckpt", "rehearse", "x", "--mesh", ""], "option --mesh: expected a value, got an empty one"),
        (["ckpt", "export", "x", "--to", "y", "--dtype="], "option --dtype: expected a value, got an empty one"),
        (["ckpt", "drain", "x", "--to", "y", "-o", ""], "option -o: expected a value, got an empty one"),
        (["ckpt", "verify", "x", "--fast="], "option '--fast' does not take a value"),
        (["ckpt", "gc", "--execute", ""], "run: expected a name or a path, got an empty text"),
        (["logs", "-f", ""], "run: expected a name or a path, got an empty text"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest_right_one(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, told = refused(capsys, *arguments)
    assert expected.lower() in told.lower()
    assert code in (Exit.USAGE, Exit.NOT_FOUND)
    assert "\ncode: " in told


@pytest.mark.parametrize("given", ["--on ray", "--state kept", "--anew"])
def test_options_of_batches_are_refused_where_no_chunk_is_read(capsys: pytest.CaptureFixture[str], given: str) -> None:
    code, told = refused(capsys, "ckpt", "verify", "x", "--fast", *given.split())
    assert code == Exit.USAGE
    assert told.startswith(f"error: option {given.removesuffix(' kept')}: expected it without --fast, got both\n")
    assert "\ncode: option-without-effect\n" in told


@pytest.mark.parametrize(
    "command", [("export", "store"), ("drain", "store"), ("reshard", "store", "--mesh", "dp=2")], ids=lambda one: one[0]
)
@pytest.mark.parametrize("target", ["/proc/behemoth", "/proc/behemoth/made"])
def test_a_target_in_a_file_system_without_place_for_folders_is_told_as_such(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], target: str
) -> None:
    with closing(LocalStore("store")) as store:
        save(store, small_layout(), step=10, write_id="a1-10")
    code, told = refused(capsys, "ckpt", *command, "--to", target)
    assert code == Exit.DENIED
    assert "folder /proc/behemoth: expected to make it, got a file system that takes no new folders in /proc\n" in told
    assert "\nhint: name a folder on a disk\ncode: no-folders\n" in told


def test_malformed_yaml_is_told_with_line_and_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("apiVersion: behemoth.dev/v1alpha1\nkind: [TrainingRun\nspec: {}\n")
    code, told = refused(capsys, "run", "bad.yaml")
    assert code == Exit.USAGE
    assert told.startswith("error: bad.yaml:3:")
    assert "hint: look at that place and the line before" in told
    assert "code: yaml-syntax" in told


def test_every_problem_of_a_run_file_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = small_run(tmp_path)
    file.write_text(file.read_text().replace("spares: 1", "spare: 1").replace("dp: 2", "dp: 3"))
    code, told = refused(capsys, "plan", "-f", str(file))
    assert code == Exit.USAGE
    assert "spec.nodes.spare" in told
    assert "did you mean spec.nodes.spares?" in told


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(tmp_path, name="small")
    code, told = refused(capsys, "run", "smal.yaml")
    assert (code, "hint: did you mean small.yaml?" in told) == (Exit.NOT_FOUND, True)


def test_a_directory_in_place_of_a_file_is_told_with_the_files_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    small_run(tmp_path / "folder", name="small")
    code, told = refused(capsys, "run", "folder")
    assert code == Exit.USAGE
    assert "got a directory" in told
    assert "hint: name a file in it: small.yaml" in told


def test_a_file_that_may_not_be_read_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_: Path, __: str) -> BinaryIO:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(errors.Denied, match="Permission denied") as caught:
        read_file(Path("secret.yaml"))
    assert failure_of(caught.value).exit is Exit.DENIED


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_directory_that_may_not_be_written_is_denied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    code, told = refused(capsys, "run", str(small_run(tmp_path)), "--dir", str(closed / "run"), "--runtime", "process")
    assert (code, "code: path-denied" in told) == (Exit.DENIED, True)


def test_a_file_in_place_of_a_run_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, told = refused(capsys, "run", str(small_run(tmp_path)), "--dir", "file", "--runtime", "process")
    assert code == Exit.USAGE
    assert "--dir" in told


def test_a_run_directory_in_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "runs" / "small"
    place.mkdir(parents=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = root.run(["run", str(small_run(tmp_path)), "--runtime", "process"])
    told = capsys.readouterr().err
    assert code == Exit.FAILED
    assert "another live `behemoth run`" in told
    assert "code: run-locked" in told


@pytest.mark.parametrize("verb", ["drain", "export", "reshard"])
def test_a_path_that_is_too_long_is_told_as_that(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(LocalStore(tmp_path / "store")) as store:
        save(store, small_layout(), step=1, write_id="a1-1")
    to = "x" * 300
    more = ["--mesh", "tp=1"] if verb == "reshard" else []
    code, told = refused(capsys, "ckpt", verb, "store", "--to", to, *more)
    assert code == Exit.USAGE
    assert told.startswith(f"error: {to}")
    assert "got File name too long\n" in told
    assert "hint: choose a shorter path\ncode: path\n" in told


@pytest.mark.parametrize("verb", [["status"], ["logs"], ["get", "nodes"], ["get", "runs"]])
def test_a_folder_that_is_no_run_is_not_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    (tmp_path / "folder").mkdir()
    code, told = refused(capsys, *verb, str(tmp_path / "folder"))
    assert (code, "code: run-not-found" in told) == (Exit.NOT_FOUND, True)


def test_without_any_run_the_verbs_say_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = refused(capsys, "status")
    assert (code, "`behemoth run FILE`" in told) == (Exit.NOT_FOUND, True)


@pytest.mark.parametrize("verb", [["status"], ["logs"], ["ckpt", "list"], ["ckpt", "gc"], ["run", "--dir"]])
def test_the_home_of_somebody_who_is_not_there_holds_nothing(
    capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    more = ["missing.yaml"] if verb[0] == "run" else []
    assert refused(capsys, *verb, "~nobody-of-that-name/x", *more)[0] == Exit.NOT_FOUND


@pytest.mark.parametrize("verb", ["list", "show", "verify"])
def test_a_place_without_checkpoints_is_not_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert refused(capsys, "ckpt", verb, str(tmp_path))[0] == Exit.NOT_FOUND
    assert refused(capsys, "ckpt", verb, "run/nobody")[0] == Exit.NOT_FOUND
    assert refused(capsys, "ckpt", verb, "s3://_/run")[0] == Exit.USAGE


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--drill", "kil rank 1 at step 5"], "hint: did you mean 'kill rank 1 at step 5'?"),
        (["--drill", "make coffee"], "hint: faults are: kill rank 1 at step 40;"),
        (["--drill", "kill rank 9 at step 5"], "expected a rank from 0 to 1, got 9"),
        (["--drill", "lose node 1 at step 40"], "expected a step from 1 to 39, got 40"),
        (["--runtime", "rya"], "hint: did you mean ray?"),
        (["--runtime", "process", "--address", "10.0.0.1:6379"], "expected it only with --runtime ray"),
    ],
)
def test_options_of_run_that_cannot_be_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    code, told = refused(capsys, "run", str(small_run(tmp_path)), *options)
    assert code == Exit.USAGE
    assert expected in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["x", "3-1", "1,,2", "-1", "0-"])
def test_a_list_of_ranks_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    code, told = refused(capsys, "logs", f"--rank={text}")
    assert (code, "write ranks as 0-3,7" in told) == (Exit.USAGE, True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Invalid("x: expected y, got z"), Exit.USAGE),
        (errors.NotFound("x"), Exit.NOT_FOUND),
        (errors.Conflict("x"), Exit.FAILED),
        (errors.Denied("x"), Exit.DENIED),
        (errors.Unavailable("x"), Exit.FAILED),
        (errors.Corrupt("x"), Exit.UNHEALTHY),
        (errors.Timeout("x"), Exit.TIMEOUT),
        (errors.Internal("x"), Exit.FAILED),
        (OSError(28, "No space left on device"), Exit.FAILED),
        (PermissionError(13, "Permission denied"), Exit.DENIED),
        (ZeroDivisionError("division by zero"), Exit.FAILED),
    ],
)
def test_each_error_has_one_exit_code(error: Exception, expected: Exit) -> None:
    assert failure_of(error).exit is expected


def test_an_error_is_told_with_cause_hint_and_code() -> None:
    error = errors.Unavailable("journal: expected to append 9 bytes", hint="free space", code="full")
    error.__cause__ = OSError(28, "No space left on device")
    assert lines_of(failure_of(error)) == [
        "error: journal: expected to append 9 bytes",
        "cause: No space left on device",
        "hint: free space",
        "code: full",
    ]


@pytest.mark.parametrize("told", ["Permission denied", "permission denied"])
def test_a_cause_that_the_message_tells_already_is_not_repeated(told: str) -> None:
    error = errors.Denied(f"x: got {told}")
    error.__cause__ = PermissionError(13, "Permission denied")
    assert failure_of(error).cause == ""


def test_a_bug_says_that_it_is_one() -> None:
    failure = failure_of(KeyError("slot"))
    assert failure.code == "internal"
    assert "bug of behemoth" in failure.hint


def test_a_file_without_an_end_is_read_no_further_than_any_run_file_goes(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = refused(capsys, "plan", "-f", "/dev/zero")
    assert code == 2
    assert "expected at most" in told
