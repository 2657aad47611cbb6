"""Verbs that work in batches: on a real Ray they find what they find here, and killed ones go on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
import safetensors.numpy

from app.batches.full_disk import full_disk
from behemoth.base.ids import NodeId
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.storage.local import LocalStore
from behemoth_cli import root
from command_line.cli_rig import PROGRAM, TRAINED_STEPS, behemoth, environment, import_large


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "small" / "checkpoints"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 96 MiB in 24 arrays."""
    folder = tmp_path_factory.mktemp("large")
    import_large(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def _processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as with a Ray of two nodes, without Ray, which takes its time to start."""
    nodes = [NodeId("n0"), NodeId("n1")]
    monkeypatch.setattr("behemoth.wiring.batch.embed_ray", lambda _nodes: SubprocessRuntime(nodes))


@pytest.mark.usefixtures("_processes")
def test_workers_find_the_damage_that_threads_find(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finds_the_same_damage(place, capsys)


@pytest.mark.longer
def test_a_ray_finds_the_damage_that_threads_find(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finds_the_same_damage(place, capsys)


def finds_the_same_damage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.usefixtures("_processes")
def test_workers_export_what_threads_export_and_import_it(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(large)
    exports_and_imports_the_same(tmp_path, capsys)


@pytest.mark.longer
def test_a_ray_exports_what_threads_export_and_imports_it(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(large)
    exports_and_imports_the_same(tmp_path, capsys)


def exports_and_imports_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "store", "--max-file-size", "16MB", "--to"]
    here = run(capsys, *command, str(folder / "here"))
    there = run(capsys, *command, str(folder / "there"), "--on", "ray")
    assert (here[0], there[0]) == (0, 0), there[2]
    assert there[1] == here[1].replace("/here", "/there")
    files = {file.name: file.read_bytes() for file in (folder / "here").iterdir()}
    assert len(files) == 9
    assert {file.name: file.read_bytes() for file in (folder / "there").iterdir()} == files
    (folder / "there" / "model-00003-of-00008.safetensors").unlink()
    again = run(capsys, *command, str(folder / "there"), "--on", "ray")
    assert (again[0], "7 of them there already" in again[1]) == (0, True)
    assert {file.name: file.read_bytes() for file in (folder / "there").iterdir()} == files
    assert run(capsys, "import", str(folder / "there"), "--to", str(folder / "st"), "--on", "ray")[0] == 0
    assert run(capsys, "verify", str(folder / "st"))[0] == 0
    digests = [run(capsys, "show", str(store), "--digest")[1].splitlines()[-1] for store in (folder / "st", "store")]
    assert digests[0] == digests[1]


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
        shutil.rmtree(folder / "st", ignore_errors=True)
    raise AssertionError("the command always ended before it was killed")


def recorded_lines(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


def killed_import(large: Path, folder: Path) -> tuple[list[str], int]:
    """The command, and how many batches it had done when it was killed."""
    command = ["ckpt", "import", str(large / "large.safetensors"), "--to", "st", "--threads", "1", "--state", "state"]
    return command, killed_in_the_middle(command, folder, folder / "state")


def test_a_killed_import_goes_on_under_its_own_name_and_leaves_nothing(large: Path, tmp_path: Path) -> None:
    command, num_done = killed_import(large, tmp_path)
    (write,) = (tmp_path / "st" / "steps").iterdir()
    before = {file: file.stat().st_mtime_ns for file in write.rglob("*") if file.is_file()}
    ended = behemoth(*command, cwd=tmp_path)
    assert (ended.code, f"going on behind {num_done} batches" in ended.err) == (0, True)
    assert [path.name for path in (tmp_path / "st" / "steps").iterdir()] == [write.name]
    untouched = [file for file, changed_ns in before.items() if file.stat().st_mtime_ns == changed_ns]
    assert len(untouched) >= 2 * num_done  # an array and its metadata, at least, of each batch
    assert behemoth("ckpt", "verify", "st", cwd=tmp_path).code == 0
    arrays = safetensors.numpy.load_file(large / "large.safetensors")
    with closing(LocalStore(tmp_path / "st")) as store:
        newest = latest(store)
        assert newest is not None
        commit = open_commit(store, newest)
        assert all(read_array(store, commit, name).tobytes() == array.tobytes() for name, array in arrays.items())


def test_an_import_whose_beginning_was_cleared_away_starts_over(large: Path, tmp_path: Path) -> None:
    command, _ = killed_import(large, tmp_path)
    (write,) = (tmp_path / "st" / "steps").iterdir()
    cleared = behemoth("ckpt", "gc", "st", "--keep-last", "2", "--unfinished", "--execute", cwd=tmp_path)
    assert cleared.code == 0, cleared.err
    assert behemoth(*command, cwd=tmp_path).code == 0
    (made,) = (tmp_path / "st" / "steps").iterdir()
    assert made.name != write.name
    assert behemoth("ckpt", "verify", "st", cwd=tmp_path).code == 0


def test_a_killed_verification_goes_on_where_it_stopped(large: Path, tmp_path: Path) -> None:
    command = ["ckpt", "verify", "store", "--threads", "1", "--state", str(tmp_path / "state")]
    num_done = killed_in_the_middle(command, large, tmp_path / "state")
    assert 2 <= num_done < 24
    ended = behemoth(*command, cwd=large)
    assert (ended.code, f"going on behind {num_done} batches of an earlier call" in ended.err) == (0, True)
    assert ended.out == behemoth("ckpt", "verify", "store", cwd=large).out
    assert list((tmp_path / "state").iterdir()) == []


def test_a_verification_whose_record_nobody_asked_for_does_not_need_a_place_for_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_entry(_uid: int) -> None:
        raise KeyError("no such user")

    monkeypatch.setattr("behemoth_cli.commands.batching.RECORDED_BYTES", 1)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    code, _, err = run(capsys, "verify", str(place))
    assert (code, err.count("expected a home folder, got none; --state DIR keeps it in another")) == (0, 1), err
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    code, _, err = run(capsys, "verify", str(place))
    assert (code, f"state folder {tmp_path}/file/.local/state/behemoth: expected to write" in err) == (0, True), err
    monkeypatch.setenv("HOME", str(tmp_path))
    with full_disk():
        asked = run(capsys, "verify", str(place), "--state", "state")
        unasked = run(capsys, "verify", str(place))
    assert (asked[0], "hint: free space on its disk, or name another folder with --state" in asked[2]) == (1, True)
    assert (unasked[0], "going on without a record of what is done: journal" in unasked[2]) == (0, True), unasked[2]


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
