"""Verbs that work in batches: on a real Ray they find what they find here, and killed ones go on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from behemoth_cli import root
from cli.cli_rig import PROGRAM, TRAINED_STEPS, behemoth, environment


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "small" / "checkpoints"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 96 MiB in 24 arrays."""
    folder = tmp_path_factory.mktemp("large")
    arrays = {f"w{number}": np.random.default_rng(number).normal(size=(512, 1024)) for number in range(24)}
    safetensors.numpy.save_file(arrays, folder / "large.safetensors")
    ended = behemoth("ckpt", "import", "large.safetensors", "--to", "store", cwd=folder)
    assert ended.code == 0, ended.err
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_ray_finds_the_damage_that_threads_find(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shard,) = (place / "steps").glob(f"{TRAINED_STEPS:09d}-*/model/table/c/0/0")
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    data[-10] ^= 1
    shard.write_bytes(data)
    here = run(capsys, "verify", "run/small", "-o", "json")
    there = run(capsys, "verify", "run/small", "-o", "json", "--on", "ray", "--threads", "2")
    assert here[0] == there[0] == 3
    assert json.loads(here[1]) == json.loads(there[1])
    assert "starting Ray" in there[2]
    (damaged,) = [one for one in json.loads(there[1])["checkpoints"] if not one["isIntact"]]
    assert [problem["kind"] for problem in damaged["problems"]] == ["chunk", "shard-index"]


def killed_in_the_middle(command: list[str], folder: Path, state: Path) -> int:
    """Batches that were done when the command was killed; it is tried again when it was faster than that."""
    for _ in range(30):
        killed = subprocess.Popen(
            [PROGRAM, *command], cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not recorded_lines(state) > 2 and killed.poll() is None:
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
        if killed.wait() == -signal.SIGKILL:
            return recorded_lines(state) - 1
    raise AssertionError("the command always ended before it was killed")


def recorded_lines(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


def test_a_killed_verification_goes_on_where_it_stopped(large: Path, tmp_path: Path) -> None:
    command = ["ckpt", "verify", "store", "--threads", "1", "--state", str(tmp_path / "state")]
    num_done = killed_in_the_middle(command, large, tmp_path / "state")
    assert 2 <= num_done < 24
    ended = behemoth(*command, cwd=large)
    assert (ended.code, f"going on behind {num_done} batches of an earlier call" in ended.err) == (0, True)
    assert ended.out == behemoth("ckpt", "verify", "store", cwd=large).out
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--on", "rays"), 2, "hint: did you mean ray?"),
        (("--address", "127.0.0.1:6379"), 2, "option --address: expected it only with --on ray"),
        (("--on", "ray", "--address", "127.0.0.1"), 2, "ray address: expected host:port"),
        (("--state", "runs/small/summary.json"), 4, "code: state-folder"),
    ],
)
def test_options_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, text: str
) -> None:
    got, out, err = run(capsys, "verify", "run/small", *options)
    assert (got, out) == (code, "")
    assert text in err
