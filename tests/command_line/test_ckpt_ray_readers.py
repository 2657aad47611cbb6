"""Verifying and exporting by workers, when one of them or the command is killed: what threads find and write, and
nothing is done again that was done. The neighbour `test_ckpt_ray` does the same to what writes checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from behemoth.base.ids import NodeId
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.wiring import batch
from behemoth_cli import root
from command_line.cli_rig import environment, import_large, wait_for
from command_line.counted_command import COUNTED
from command_line.counted_worker import BEGUN_BEFORE_HELD, DIES, FOLDER_ENV, VICTIMS, begun, counted_folder
from command_line.test_ckpt_ray import COMMAND, LIMIT_S, held, python_path, recorded
from rayrt.joined_ray import JoinedRay, joined_ray

EXPORT = ("--max-file-size", "8MB", "--to", "out")
VERB = pytest.mark.parametrize("verb", ["verify", "export"])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 96 MiB in 24 arrays."""
    folder = tmp_path_factory.mktemp("large")
    import_large(folder)
    return folder / "store"


@dataclass(frozen=True, slots=True)
class Place:
    """A working directory with a damaged copy of the store, and where workers leave what they ran."""

    folder: Path
    counted: Path

    def command(self, verb: str) -> list[str]:
        store = str(self.folder / f"{self.folder.name}-store")
        return ["verify", store, "-o", "json"] if verb == "verify" else ["export", store, *EXPORT]

    def ran(self, verb: str) -> Path:
        """Of one that has `verb` done by workers that are counted."""
        return counted_folder(self.counted, self.command(verb)[1] if verb == "verify" else str(self.folder / "out"))


@pytest.fixture
def place(large: Path, counted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    found = Place(tmp_path, counted)
    shutil.copytree(large, found.command("verify")[1])
    shutil.rmtree(found.ran("export"), ignore_errors=True)
    return found


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counted")


@pytest.fixture(scope="module")
def ray(counted: Path) -> Iterator[JoinedRay]:
    with joined_ray(**{FOLDER_ENV: str(counted)}, PYTHONPATH=python_path()) as started:
        yield started


def result_of(verb: str, out: str) -> object:
    """What is compared: the report, or the files."""
    if verb == "verify":
        return json.loads(out)
    return {file.name: file.read_bytes() for file in Path("out").iterdir()}


def by_threads(place: Place, verb: str, capsys: pytest.CaptureFixture[str]) -> object:
    """For `verify` of a store with one damaged chunk."""
    if verb == "verify":
        shard = next(path for path in Path(place.command(verb)[1]).glob("steps/*/w7/c/**/0") if path.is_file())
        data = bytearray(shard.read_bytes())
        data[1000] ^= 1
        shard.write_bytes(data)
    code = root.run(["ckpt", *place.command(verb)])
    out, err = capsys.readouterr()
    assert code == (3 if verb == "verify" else 0), err
    expected = result_of(verb, out)
    shutil.rmtree("out", ignore_errors=True)
    return expected


@VERB
def test_what_a_killed_worker_had_under_way_is_done_by_its_successor(
    place: Place, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processes that stand for the actors of a Ray."""
    expected = by_threads(place, verb, capsys)
    monkeypatch.setattr(batch, "embed_ray", lambda _nodes: SubprocessRuntime([NodeId("n0"), NodeId("n1")]))
    monkeypatch.setattr(batch, "WORKER", COUNTED)
    monkeypatch.setenv(FOLDER_ENV, str(place.counted))
    monkeypatch.setenv("PYTHONPATH", python_path())
    ran = place.ran(verb)
    ran.mkdir()
    (ran / DIES).write_text("program")
    code = root.run(["ckpt", *place.command(verb), "--on", "ray", "--threads", "1"])
    out, err = capsys.readouterr()
    assert code == (3 if verb == "verify" else 0), err
    assert result_of(verb, out) == expected
    expect_one_died(ran)


def expect_one_died(ran: Path) -> None:
    assert not (ran / DIES).exists()
    times = begun(ran)
    assert max(times.values()) <= 2  # that of the dead one, or another that it had or was sent
    assert len(times) >= 8


@pytest.mark.longer
@VERB
@pytest.mark.parametrize("victim", VICTIMS)
def test_what_a_worker_of_a_ray_had_under_way_when_it_or_its_actor_was_killed_is_done_by_others(
    place: Place, verb: str, victim: str, ray: JoinedRay, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = by_threads(place, verb, capsys)
    ran = place.ran(verb)
    ran.mkdir()
    (ran / DIES).write_text(victim)
    with started(place, verb, ray) as command:
        out, err = command.communicate(timeout=LIMIT_S)
    assert command.returncode == (3 if verb == "verify" else 0), err
    assert result_of(verb, out) == expected
    expect_one_died(ran)


@pytest.mark.longer
@VERB
def test_a_command_that_was_killed_while_workers_of_a_ray_worked_for_it_goes_on_behind_what_is_done(
    place: Place, verb: str, ray: JoinedRay, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = by_threads(place, verb, capsys)
    ran, state = place.ran(verb), place.folder / "state"
    more = ("--state", str(state)) if verb == "verify" else ()

    def done() -> int:
        return len(recorded(state)) if verb == "verify" else len(list(Path("out").glob("*.safetensors")))

    with held(ran), started(place, verb, ray, *more) as killed:
        wait_for(lambda: done() >= BEGUN_BEFORE_HELD or killed.poll() is not None, limit_s=LIMIT_S)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    num_done = done()
    with started(place, verb, ray, *more) as command:
        out, err = command.communicate(timeout=LIMIT_S)
    assert command.returncode == (3 if verb == "verify" else 0), err
    assert result_of(verb, out) == expected
    kept = re.search(
        r"going on behind (\d+) batches" if verb == "verify" else r"(\d+) of them there already", err + out
    )
    assert kept is not None, err + out
    assert int(kept[1]) >= num_done  # a worker may have done another before it saw the end of the command
    times = begun(ran)
    assert sum(times[batch_] == 1 for batch_ in times) >= num_done
    assert max(times.values()) <= 2


def started(place: Place, verb: str, ray: JoinedRay, *more: str) -> subprocess.Popen[str]:
    """The command with workers that are counted."""
    on_ray = ("--on", "ray", "--address", ray.address, "--threads", "1")
    return subprocess.Popen(
        [*COMMAND, *place.command(verb), *on_ray, *more],
        cwd=place.folder,
        env=environment(PYTHONPATH=python_path()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
