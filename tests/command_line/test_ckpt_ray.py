"""Resharding and importing on a real Ray of three machines: what threads write, whoever of it is killed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from behemoth.app.batches.writing import Writing
from behemoth.checkpoint.framing import unframed
from behemoth.checkpoint.interop.ingest import import_units
from behemoth.ports import Runtime
from behemoth.storage.open import open_store
from behemoth.testing.store import MemoryStore, read
from behemoth_cli import root
from checkpoint.saved_checkpoint import small_layout
from command_line.cli_rig import behemoth, environment, wait_for
from command_line.counted_worker import (
    BEGUN_BEFORE_HELD,
    DIES,
    FOLDER_ENV,
    HELD,
    VICTIMS,
    begun,
    counted_folder,
    first_unit,
)
from rayrt.borrowed import Borrowed
from rayrt.joined_ray import JoinedRay, joined_ray
from servers.s3_server import S3Server
from storage.s3_stores import let_in, new_place, opened

TESTS = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "command_line.counted_command", "ckpt")
LIMIT_S = 900.0
JOBS = {
    "reshard": ("reshard", "store", "--mesh", "dp=2"),
    "safetensors": ("import", "large.safetensors"),
    "dcp": ("import", "dcp"),
}
JOB = pytest.mark.parametrize("job", JOBS)
KIND = pytest.mark.parametrize("kind", ["folder", "bucket"])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 96 MiB in 24 arrays, as safetensors, as torch's DCP writes them, and in a store."""
    import torch
    from torch.distributed.checkpoint import FileSystemWriter

    from dcp.trees import save

    folder = tmp_path_factory.mktemp("large")
    arrays = {f"w{number}": np.random.default_rng(number).normal(size=(512, 1024)) for number in range(24)}
    safetensors.numpy.save_file(arrays, folder / "large.safetensors")
    save(
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        storage_writer=FileSystemWriter(folder / "dcp"),
    )
    ended = behemoth("ckpt", "import", "large.safetensors", "--to", "store", cwd=folder)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers leave what they ran."""
    return tmp_path_factory.mktemp("counted")


@pytest.fixture(scope="module")
def ray(s3: S3Server, counted: Path) -> Iterator[JoinedRay]:
    """Its machines reach the bucket, and have these tests' modules."""
    with joined_ray(**s3.environment, **{FOLDER_ENV: str(counted)}, PYTHONPATH=python_path()) as started:
        yield started


def python_path() -> str:
    return os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What threads have written, where the Ray is to write the same, and how the command for that begins."""

    expected: dict[str, str]
    url: str
    command: Sequence[str]
    folder: Path

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The command, with workers that are counted."""
        return subprocess.Popen(
            [*COMMAND, *self.command, "--threads", "1", *more],
            cwd=self.folder,
            env=environment(PYTHONPATH=python_path()),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *more: str) -> str:
        """What the command told on its way to a result that is that of threads."""
        with self.start(*more) as started:
            out, err = started.communicate(timeout=LIMIT_S)
        assert started.returncode == 0, err
        assert out
        assert written(self.url) == self.expected
        return err


def written(url: str) -> dict[str, str]:
    """Digests of all that the one write of a store left, without the name of the write."""
    store = open_store(url)
    try:
        infos = list(store.list("steps"))
        assert len({info.key.split("/")[1] for info in infos}) == 1
        assert [info.key for info in store.list("commits")]
        return {
            info.key.split("/", 2)[2]: hashlib.sha256(read(store, info.key, info.size_bytes)).hexdigest()
            for info in infos
        }
    finally:
        store.close()


@pytest.fixture
def targets(
    job: str,
    kind: str,
    ray: JoinedRay,
    s3: S3Server,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Targets]:
    let_in(monkeypatch, s3)
    verb, source, *options = JOBS[job]
    with opened(new_place()) as bucket:
        above = bucket.root if kind == "bucket" else str(tmp_path)
        here, there = f"{above}/threads", f"{above}/{tmp_path.name}"
        command = [verb, str(large / source), *options, "--to"]
        assert root.run(["ckpt", *command, here]) == 0
        on_ray = [*command, there, "--on", "ray", "--address", ray.address]
        yield Targets(expected=written(here), url=there, command=on_ray, folder=tmp_path)


@pytest.mark.longer
@JOB
@KIND
def test_a_ray_writes_what_threads_write(targets: Targets, capsys: pytest.CaptureFixture[str]) -> None:
    code = root.run(["ckpt", *targets.command])
    err = capsys.readouterr().err
    assert (code, "joining Ray" in err) == (0, True), err
    assert written(targets.url) == targets.expected


@pytest.mark.parametrize("verb", ["reshard", "import"])
def test_the_workers_of_an_own_ray_write_what_threads_write(
    embedded_ray: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    monkeypatch.setattr("behemoth.wiring.batch.embed_ray", lambda _nodes: Borrowed(embedded_ray))
    monkeypatch.chdir(tmp_path)
    arrays = {f"w{number}": np.random.default_rng(number).normal(size=(512, 1024)) for number in range(6)}
    safetensors.numpy.save_file(arrays, "small.safetensors")
    given = ["import", "small.safetensors", "--to"]
    if verb == "reshard":
        assert root.run(["ckpt", *given, "source"]) == 0
        given = ["reshard", "source", "--mesh", "tp=2,dp=2", "--to"]
    for place in ("threads", "ray"):
        code = root.run(["ckpt", *given, place, "--on", place])
        assert code == 0, capsys.readouterr().err
    assert written(str(tmp_path / "ray")) == written(str(tmp_path / "threads"))


@pytest.mark.longer
@JOB
@KIND
@pytest.mark.parametrize("victim", VICTIMS)
def test_what_a_killed_worker_had_under_way_is_done_by_others(targets: Targets, counted: Path, victim: str) -> None:
    ran = counted_folder(counted, targets.url)
    ran.mkdir()
    (ran / DIES).write_text(victim)
    err = targets.finish()
    assert not (ran / DIES).exists()
    times = begun(ran)
    assert max(times.values()) == 2  # that of the dead one, or another that it had on a thread or was sent
    assert len(times) >= 8
    told = [line for line in err.splitlines() if "ing checkpoint/" in line]
    assert told, err
    assert all(" MiB of 96.0 MiB (" in line and "/s, ETA " in line for line in told), err


def test_counted_workers_know_batches_by_their_first_units() -> None:
    """In the order of their numbers, on which the tests of killed workers and commands rely."""
    layout = small_layout()
    writing = Writing(layout=layout, units=import_units(layout, MemoryStore()), batch_bytes=1)
    first_units = [first_unit(one.batch.data) for one in writing.batches()]
    assert first_units == list(range(len(writing.units)))
    assert len(first_units) > 1


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Meanwhile workers wait with most of their batches."""
    folder.mkdir()
    with (folder / HELD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recorded(state: Path) -> list[int]:
    """Numbers of the batches that are done."""
    lines = [line for file in state.glob("*.jsonl") for line in file.read_bytes().splitlines(keepends=True)]
    return [json.loads(unframed(line, name="line"))["number"] for line in lines[1:] if line.endswith(b"\n")]


@pytest.mark.longer
@JOB
@KIND
def test_the_command_that_was_killed_goes_on_without_doing_again_what_is_done(targets: Targets, counted: Path) -> None:
    ran, state = counted_folder(counted, targets.url), targets.folder / "state"
    with held(ran), targets.start("--state", str(state)) as killed:
        wait_for(lambda: len(recorded(state)) >= BEGUN_BEFORE_HELD or killed.poll() is not None, limit_s=LIMIT_S)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    done = recorded(state)
    err = targets.finish("--state", str(state))
    assert f"going on behind {len(done)} batches of an earlier call" in err
    times = begun(ran)
    in_order = sorted(times)
    assert len(in_order) >= len(done) + 4
    assert {times[in_order[number]] for number in done} == {1}
    assert not list(state.iterdir())
