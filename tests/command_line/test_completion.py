"""What shells offer at a TAB: asked as their scripts ask, and through the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from behemoth_cli import root
from behemoth_cli.commands.completion import straightened
from command_line.cli_rig import PROGRAM, behemoth, environment

PATH = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
CASES: list[tuple[str, set[str]]] = [
    ("status ", {"large", "small"}),
    ("status s", {"small"}),
    ("status run/", {"run/large", "run/small"}),
    ("logs run/s", {"run/small"}),
    ("get runs ", {"large", "small"}),
    ("ckpt verify l", {"large"}),
    ("get ", {"runs", "checkpoints", "nodes"}),
    ("get n", {"nodes"}),
    ("get ck", {"ckpt"}),
    ("get runs -o ", {"wide", "json", "yaml", "name"}),
    ("status -o j", {"json"}),
    ("run --runtime ", {"ray", "process"}),
    ("--color ", {"auto", "always", "never"}),
    ("get runs --color n", {"never"}),
    ("-v status --color always s", {"small"}),
    ("explain spec.me", {"spec.mesh", *(f"spec.mesh.{axis}" for axis in ("tp", "cp", "dp", "pp", "etp", "ep", "edp"))}),
    ("completion ", {"bash", "zsh", "fish"}),
    ("help ", {"exit-codes"}),
    ("pl", {"plan"}),
    (
        "ckpt ",
        {"list", "show", "verify", "diff", "pin", "unpin", "gc", "scrub", "drain", "rehearse", "reshard"}
        | {"export", "import"},
    ),
    ("ckpt drain sm", {"small"}),
    ("ckpt drain small --to l", {"large"}),
    ("ckpt export large --map l", {"llama4-hf", "llama4-meta", "llama4-megatron"}),
    ("ckpt export large --dtype bf", {"bf16"}),
    ("ckpt s", {"show", "scrub"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of them damaged, a folder that is none, and one whose name a shell would run."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("small", "large", "$(touch oops)", "-v"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "identity.json").write_text("rubbish")
    (folder / "runs" / "other").mkdir()
    return folder


@pytest.fixture(scope="module")
def bash_script(folder: Path) -> str:
    """For both programs."""
    return behemoth("completion", "bash", cwd=folder).out


def through_shell(shell: str, script: str, cwd: Path) -> list[str]:
    done = subprocess.run(
        [shell, *(["-f"] if shell == "zsh" else []), "-c", script],
        cwd=cwd,
        env=environment(PATH=PATH),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_every_shell_is_told_the_words_that_fit(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    expected: set[str],
) -> None:
    monkeypatch.chdir(folder)
    asked = f"behemoth {line}"
    for shell in ("bash", "fish"):
        with monkeypatch.context() as patch:
            patch.setenv(root.COMPLETE_VARIABLE, f"complete_{shell}")
            if shell == "bash":
                patch.setenv("COMP_WORDS", asked.replace(" ", "\n"))
                patch.setenv("COMP_CWORD", str(asked.count(" ")))
            patch.setenv("_TYPER_COMPLETE_ARGS", asked)
            patch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
            with pytest.raises(SystemExit) as ended:
                root.run([])
        told = capsys.readouterr()
        assert (ended.value.code, told.err) == (0, "")
        assert {row.partition("\t")[0] for row in told.out.splitlines()} == expected, shell


@pytest.mark.parametrize("program", ["behemoth", "kubectl-behemoth"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("status", ""), ["large", "small"]),
        (("run", "--runtime", "=", "p"), ["process"]),
        (("run", "--runtime", "="), ["ray", "process"]),
        (("explain", "spec.mesh.t"), ["spec.mesh.tp"]),
    ],
)
def test_bash_offers_them(
    folder: Path, bash_script: str, program: str, words: tuple[str, ...], expected: list[str]
) -> None:
    line = " ".join(f"'{word}'" for word in (program, *words))
    called = f"f=($(complete -p {program})); ${{f[-2]}}"
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; {called}; echo ${{COMPREPLY[@]}}"
    assert through_shell("bash", f"{bash_script}\n{ask}", folder) == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize("program", ["behemoth", "kubectl-behemoth"])
def test_fish_offers_them(folder: Path, program: str) -> None:
    script = behemoth("completion", "fish", cwd=folder).out
    assert through_shell("fish", f"{script}\ncomplete -C '{program} status run/s'", folder) == ["run/small"]
    assert through_shell("fish", f"{script}\ncomplete -C '{program} run --runtime p'", folder) == ["process"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.parametrize("program", ["behemoth", "kubectl-behemoth"])
def test_zsh_offers_them_from_the_first_tab_on(folder: Path, program: str, tmp_path: Path) -> None:
    """The script lies in fpath, as its hint says, and is loaded by the first question."""
    (tmp_path / "_behemoth").write_text(behemoth("completion", "zsh", cwd=folder).out)
    setup = f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -d {tmp_path}/dump"
    ask = f"_arguments() {{ echo ${{@[-1]}} }}; words=({program} status s); CURRENT=3; eval $_comps[{program}]"
    assert through_shell("zsh", f"{setup}\n{ask}", folder) == ["*:", ':(("small"))']


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"COMP_WORDS": "behemoth\nstatus\n"},
        {"COMP_WORDS": "behemoth\nstatus\n", "COMP_CWORD": "x"},
        {"COMP_WORDS": "behemoth 'status", "COMP_CWORD": "7"},
        {"COMP_WORDS": "", "COMP_CWORD": "0"},
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_a_question_that_makes_no_sense_gets_no_trace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shell: str,
    asked: dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {root.COMPLETE_VARIABLE: f"complete_{shell}", **asked}.items():
        monkeypatch.setenv(name, value)
    with suppress(SystemExit):
        root.run([])
    told = capsys.readouterr()
    assert told.err == ""
    assert "Traceback" not in told.out


def test_a_broken_place_for_runs_offers_none_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    asked = {"COMP_WORDS": "behemoth\nstatus\n", "COMP_CWORD": "2", root.COMPLETE_VARIABLE: "complete_bash"}
    ended = behemoth(cwd=tmp_path, **asked)
    assert (ended.out.strip(), ended.err) == ("", "")


def test_names_of_verbs_and_runs_are_offered_without_heavy_packages(folder: Path) -> None:
    script = (
        "import sys, os; from behemoth_cli.root import run\ntry: run([])\n"
        "except SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    )
    for words in ("behemoth\n", "behemoth\nstatus\n"):
        asked = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count("\n")),
            root.COMPLETE_VARIABLE: "complete_bash",
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env=environment(**asked),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        heavy = {"ray", "zarr", "numpy", "torch", "rich", "yaml", "msgspec", "asyncio"}
        assert {name.partition(".")[0] for name in done.stderr.split()} & heavy == set()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("behemoth get -v ru", "behemoth get ru"),
        ("behemoth get --color never ru", "behemoth get ru"),
        ("behemoth get --color=never ru", "behemoth get ru"),
        ("behemoth get --color = never ru", "behemoth get ru"),
        ("behemoth get --color ", "behemoth --color "),
        ("behemoth get --color = n", "behemoth --color n"),
        ("behemoth get --color=n", "behemoth --color=n"),
        ("behemoth", "behemoth "),
    ],
)
def test_options_of_the_whole_may_stand_anywhere_here_too(words: str, expected: str) -> None:
    assert straightened(words.split(" "), flags=("-v",)) == expected.split(" ")
