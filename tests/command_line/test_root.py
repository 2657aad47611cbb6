"""The command line as a whole: help, verbs, options of the whole, streams."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from behemoth_cli import root
from behemoth_cli.exits import MEANINGS, Exit
from command_line.cli_rig import PROGRAM, behemoth, environment, matches_golden, on_terminal

HEAVY = {"ray", "zarr", "kubernetes", "boto3", "botocore", "numpy", "torch", "rich", "yaml", "msgspec", "asyncio"}


def shell(line: str, cwd: Path) -> tuple[int, str]:
    """A line for bash: its exit code and what came on stderr."""
    done = subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_help_loads_no_heavy_package() -> None:
    script = (
        "import sys; from behemoth_cli.root import run; code = run(['--help']); "
        "print(code, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    code, *modules = done.stderr.split()
    assert code == "0"
    assert {name.partition(".")[0] for name in modules} & HEAVY == set()


@pytest.mark.parametrize("arguments", [["rnu"], ["get", "rusn"], ["version", "-o", "xml"]])
def test_refusals_load_no_heavy_package_either(arguments: list[str]) -> None:
    script = f"import sys; from behemoth_cli.root import run; run({arguments!r}); print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("script", ["behemoth", "kubectl-behemoth"])
def test_ctrl_c_while_the_program_is_being_loaded_leaves_no_trace(script: str) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"][script].partition(":")
    interrupted = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"from {module} import {function}\n"
        f"{function}()\n"
    )
    done = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (Exit.INTERRUPTED, "", "")


def test_the_help_of_the_whole_is_as_written(tmp_path: Path) -> None:
    matches_golden(behemoth("--help", cwd=tmp_path, COLUMNS="100").out, "help.txt")


def test_without_a_verb_the_help_is_shown(tmp_path: Path) -> None:
    assert behemoth(cwd=tmp_path) == behemoth("--help", cwd=tmp_path)


@pytest.mark.parametrize("verb", list(root.VERBS))
def test_every_verb_has_a_help_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run([verb, "--help"]) == 0
    assert f"Usage: behemoth {verb}" in capsys.readouterr().out


def test_every_exit_code_has_a_meaning(tmp_path: Path) -> None:
    assert set(MEANINGS) == set(Exit)
    matches_golden(behemoth("help", "exit-codes", cwd=tmp_path).out, "exit-codes.txt")
    matches_golden(behemoth("help", "exit-codes", "-o", "json", cwd=tmp_path).out, "exit-codes.json")
    matches_golden(behemoth("help", "exit-codes", "-o", "yaml", cwd=tmp_path).out, "exit-codes.yaml")


def test_the_page_about_exit_codes_lists_all_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |" in page


def test_on_a_terminal_heads_are_bold_and_lines_are_folded(tmp_path: Path) -> None:
    matches_golden(on_terminal("help", "exit-codes", cwd=tmp_path, columns=60).out, "exit-codes.terminal.txt")


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_is_left_out_where_it_is_not_wanted(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert "\x1b[" not in on_terminal("help", "exit-codes", cwd=tmp_path, **changes).out


def test_the_option_color_overrules_the_stream(tmp_path: Path) -> None:
    assert "\x1b[1m" in behemoth("--color", "always", "help", "exit-codes", cwd=tmp_path).out
    assert "\x1b[" not in on_terminal("help", "exit-codes", "--color=never", cwd=tmp_path).out


def test_piped_lines_are_never_cut(tmp_path: Path) -> None:
    lines = behemoth("help", "exit-codes", cwd=tmp_path, COLUMNS="20").out.splitlines()
    assert max(len(line) for line in lines) > 80


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"'{PROGRAM}' explain -r; echo code $? >&2"
    piped = f"({command}) | head -n 1"
    done = subprocess.run(
        ["bash", "-c", piped], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == "code 0\n"


def test_a_reader_that_was_never_there_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [PROGRAM, "explain", "-r"], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("words", ["--help", "status --help", "help exit-codes --color always"])
def test_a_reader_that_leaves_is_no_error_however_it_is_printed(tmp_path: Path, words: str) -> None:
    assert shell(f"'{PROGRAM}' {words} | true; exit ${{PIPESTATUS[0]}}", tmp_path) == (0, "")


@pytest.mark.parametrize("words", ["version", "version -o json", "--help", "run --help", "version --color always"])
@pytest.mark.parametrize(
    ("where", "got"),
    [(">&-", "a closed one"), ("> /dev/full", "No space left on device"), ("1< /dev/null", "Bad file")],
)
def test_a_standard_output_that_takes_nothing_is_told_in_one_error(
    tmp_path: Path, words: str, where: str, got: str
) -> None:
    code, told = shell(f"'{PROGRAM}' {words} {where}", tmp_path)
    head, *rest = told.splitlines()
    assert (code, head.startswith(f"error: standard output: expected to write to it, got {got}")) == (1, True), told
    assert [line.partition(":")[0] for line in rest] == ["hint", "code"]


def test_a_closed_standard_error_or_input_is_no_error(tmp_path: Path) -> None:
    assert shell(f"'{PROGRAM}' status 2>&-", tmp_path) == (102, "")
    assert shell(f"'{PROGRAM}' version <&- > out", tmp_path) == (0, "")
    script = (
        "import os; from behemoth_cli.root import fill_standard_streams as fill; fill(); print(os.open('/', 0) > 2)"
    )
    assert shell(f'[ "$(\'{sys.executable}\' -c "{script}" <&- 2>&-)" = True ]', tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["run", "f", "-v"], ["-v", "run", "f"]),
        (["run", "--color", "never", "f"], ["--color", "never", "run", "f"]),
        (["run", "f", "--color=always"], ["--color=always", "run", "f"]),
        (["run", "--", "-v"], ["run", "--", "-v"]),
        (["run", "--color"], ["--color", "run"]),
    ],
)
def test_options_of_the_whole_may_stand_anywhere(given: list[str], expected: list[str]) -> None:
    assert root.hoisted(given) == expected


def test_a_trace_is_shown_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    root.run(["explain", "nothing"])
    assert "Traceback" not in capsys.readouterr().err
    root.run(["explain", "nothing", "-v"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.run(["completion", shell]) == 0
    assert f"{root.COMPLETE_VARIABLE}=complete_{shell}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [("behemoth ck", 1, {"ckpt"}), ("behemoth ckpt s", 2, {"show", "scrub"})],
)
def test_the_shell_is_told_what_may_come_next(tmp_path: Path, words: str, position: int, expected: set[str]) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(position), root.COMPLETE_VARIABLE: "complete_bash"}
    assert set(behemoth(cwd=tmp_path, **asked).out.split()) == expected


def test_bash_completes_with_the_printed_script(tmp_path: Path) -> None:
    script = behemoth("completion", "bash", cwd=tmp_path).out
    ask = "COMP_WORDS=(behemoth pl); COMP_CWORD=1; _behemoth_completion; echo ${COMPREPLY[@]}"
    path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"],
        env=environment(PATH=path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "plan"
