"""`behemoth ckpt reshard` on the checkpoint of a real run, between folders and buckets, here and on workers."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

from behemoth.base.errors import Unavailable
from behemoth.base.ids import NodeId
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.storage.local import LocalStore
from behemoth.storage.s3 import S3Store
from behemoth_cli import root
from behemoth_cli.exits import Exit
from checkpoint import independent_reader
from checkpoint.independent_reader import read_checkpoint, record_of
from checkpoint.plain_scales import scaled
from command_line.cli_rig import PROGRAM, TRAINED_STEPS, behemoth, environment, small_run
from servers.s3_server import S3Server
from storage.s3_stores import let_in, new_place, opened


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own; the run is only read."""
    (tmp_path / "runs").symlink_to(trained / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def digest(capsys: pytest.CaptureFixture[str], where: str) -> str:
    return run(capsys, "show", where, "--digest")[1].splitlines()[-1]


def newest(folder: Path) -> tuple[Commit, dict[str, np.ndarray]]:
    with closing(LocalStore(folder)) as store:
        ref = latest(store)
        assert ref is not None
        commit = open_commit(store, ref)
        return commit, {array.name: read_array(store, commit, array.name) for array in commit.layout.arrays}


def test_a_reshard_that_finds_damage_leaves_no_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (shard,) = (tmp_path / "runs/small/checkpoints/steps").glob(f"{TRAINED_STEPS:09d}-*/model/table/c/0/0")
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    code, _, err = run(capsys, "reshard", "run/small", "--to", "deep/st", "--mesh", "dp=3")
    assert (code, "array 'model/table', chunk 0, file steps/" in err) == (3, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_run_goes_on_from_its_checkpoint_that_was_resharded_for_more_ranks(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "reshard", "run/small", "--to", "st/next", "--mesh", "dp=3")
    assert (code, err) == (0, "")
    assert out.startswith(f"checkpoint/{TRAINED_STEPS} resharded into {place}/st/next from ")
    assert run(capsys, "verify", "st/next")[0] == 0
    assert digest(capsys, "st/next") == digest(capsys, "run/small")
    shown = json.loads(run(capsys, "show", "st/next", "-o", "json")[1])
    assert (shown["run"], shown["mesh"]["dp"], shown["attempt"]) == ("small", 3, 1)
    file = small_run(place, steps=TRAINED_STEPS + 10)
    text = file.read_text().replace("name: small", "name: next").replace("count: 2", "count: 3")
    file.write_text(text.replace("dp: 2", "dp: 3").replace("  checkpoint:", "  checkpoint:\n    store: st"))
    ended = behemoth("run", file.name, "--runtime", "process", cwd=place)
    assert ended.code == 0, ended.err
    steps = [int(row.split()[0]) for row in run(capsys, "list", "st/next")[1].splitlines()[1:]]
    assert (steps[0], steps[-1]) == (TRAINED_STEPS, TRAINED_STEPS + 10)
    rows = [row.split() for row in ended.out.splitlines()]
    at = next(number for number, row in enumerate(rows) if row[:1] == ["ATTEMPT"])
    restored = dict(zip(rows[at][:7], rows[at + 1], strict=False))
    assert (restored["ATTEMPT"], restored["STEP"]) == ("1", str(TRAINED_STEPS))
    tiers = {tier: int(restored[tier]) for tier in ("MEMORY", "PEER", "DISK", "SEVERAL", "STORE")}
    assert tiers["MEMORY"] == tiers["DISK"] == 0
    assert tiers["STORE"] > 0
    assert sum(tiers.values()) == 3  # who comes later may find at a peer what that has read


def test_a_reader_that_knows_the_document_alone_reads_what_was_resharded(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(independent_reader, "crc32c", crc32c)  # its own goes bit by bit
    assert run(capsys, "reshard", "run/small", "--to", "other", "--mesh", "tp=2,dp=3,pp=2")[0] == 0
    _, before = newest(place / "runs/small/checkpoints")
    found = read_checkpoint(place / "other", TRAINED_STEPS)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in before.items()
    }
    assert record_of(found["state/run"]) == record_of(before["state/run"])


def test_what_is_asked_for_is_taken_and_converted_and_nothing_else(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, before = newest(place / "runs/small/checkpoints")
    wanted = ("--only", "model/*", "--only", "stats/trigrams", "--dtype", "fp16")
    assert run(capsys, "reshard", "run/small", "--to", "some", "--mesh", "tp=2,dp=2", *wanted)[0] == 0
    commit, after = newest(place / "some")
    assert after.keys() == {"model/table", "stats/trigrams"}
    for name, array in after.items():
        assert array.tobytes() == before[name].astype(np.float16).tobytes()
    assert commit.record.mesh.num_ranks == 4
    code, _, err = run(capsys, "reshard", "run/small", "--to", "none", "--mesh", "dp=2", "--only", "modle/*")
    assert (code, "got ['modle/*']" in err, (place / "none").exists()) == (Exit.USAGE, True, False)


def test_experts_by_number_are_taken_of_all_arrays_that_match(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stacks = {
        name: np.random.default_rng(1).normal(size=(16, 4, 6)) for name in ("model/0.experts.w", "optim/0.experts.w")
    }
    safetensors.numpy.save_file({**stacks, "model/0.norm": np.arange(4.0)}, "x.safetensors")
    assert run(capsys, "import", "x.safetensors", "--to", "all")[0] == 0
    command = ("reshard", "all", "--mesh", "dp=2", "--rows", "*.experts.*=3-5")
    assert run(capsys, *command, "--only", "model/*", "--to", "some")[0] == 0
    assert run(capsys, "verify", "some")[0] == 0
    _, after = newest(place / "some")
    assert after.keys() == {"model/0.experts.w", "model/0.norm"}
    assert after["model/0.experts.w"].tobytes() == stacks["model/0.experts.w"][3:6].tobytes()
    assert run(capsys, *command[:-1], "*.experts.*=3", "--dtype", "fp16", "--to", "one")[0] == 0
    _, after = newest(place / "one")
    for name, stack in stacks.items():
        assert after[name].tobytes() == stack[3:4].astype(np.float16).tobytes()
    code, _, err = run(capsys, *command[:-1], "*.experts.*=3-16", "--to", "none")
    assert (code, "expected arrays of 17 rows or more, got 'model/0.experts.w' with 16" in err) == (Exit.USAGE, True)
    assert not (place / "none").exists()


RUN_FILE = """
apiVersion: behemoth.dev/v1alpha1
kind: TrainingRun
metadata: {name: big}
spec:
  nodes: {count: 1, gpus_per_node: 4}
  mesh: {tp: 4}
  model: {inventory: model.json}
  recipe: {weights: bfloat16, master: float32, exp_avg: float32, exp_avg_sq: float32}
  workload: {command: [train], steps: 10}
"""
INVENTORY = {"format": 1, "experts": 1, "tensors": [{"name": "w", "shape": [8, 64], "shard": "tp1"}]}


@pytest.mark.usefixtures("place")
def test_a_run_file_gives_its_mesh_the_cuts_of_its_model_and_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(RUN_FILE)
    Path("model.json").write_text(json.dumps(INVENTORY))
    master = np.random.default_rng(2).normal(size=(8, 64)).astype(np.float32)
    halves: dict[str, npt.NDArray[Any]] = {"model/w": master.astype(np.float16), "optim/master/w": master}
    moments = {f"optim/{slot}/w": master * 2 for slot in ("exp_avg", "exp_avg_sq")}
    safetensors.numpy.save_file({**halves, **moments, "state/run": np.arange(9, dtype=np.uint8)}, "x.safetensors")
    assert run(capsys, "import", "x.safetensors", "--to", "all", "--step", "4")[0] == 0
    assert run(capsys, "reshard", "all", "--to", "cut", "-f", "run.yaml")[0] == 0
    commit, _ = newest(Path("cut"))
    assert commit.record.step == 4
    assert {array.name: array.dims for array in commit.layout.arrays} == {
        "model/w": ((1, "tp"),),
        "state/run": (),
        **{f"optim/{slot}/w": ((1, "tp"),) for slot in ("master", "exp_avg", "exp_avg_sq")},
    }
    fields = "weights=float32,master=none,exp_avg=none,exp_avg_sq=none"
    assert run(capsys, "reshard", "all", "--to", "weights", "-f", "run.yaml", "--recipe", fields)[0] == 0
    commit, arrays = newest(Path("weights"))
    assert arrays.keys() == {"model/w", "state/run"}
    assert arrays["model/w"].tobytes() == master.tobytes()
    fields = "weights=float8_e4m3fn,scale_block=1024,master=none,exp_avg=none,exp_avg_sq=none"
    code, out, _ = run(capsys, "reshard", "all", "--to", "low", "-f", "run.yaml", "--recipe", fields, "-o", "json")
    assert (code, json.loads(out)["readAgainBytes"]) == (0, 0)
    _, arrays = newest(Path("low"))
    weights, scales = scaled(master, (8, 64), "float8_e4m3fn")
    assert arrays["model/w"].tobytes() == weights.tobytes()
    assert arrays["scale/w"].tobytes() == scales.tobytes()
    Path("run.yaml").write_text(RUN_FILE.replace("master: float32", "master: none"))
    code, _, err = run(capsys, "reshard", "all", "--to", "made", "-f", "run.yaml", "--recipe", "master=float32")
    assert (code, "option --recipe: arrays optim/master/*: expected them to be saved" in err) == (Exit.USAGE, True), err


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--to", "x"), Exit.USAGE, "options --mesh and -f: expected one of them, got none"),
        (("--to", "x", "--mesh", "dp=2", "--recipe", "master=none"), Exit.USAGE, "option --recipe: expected it with"),
        (("--to", "runs/small/checkpoints", "--mesh", "dp=2"), Exit.USAGE, "code: reshard-same"),
        (("--to", "runs/small/checkpoints/next", "--mesh", "dp=2"), Exit.USAGE, "code: reshard-same"),
        (("--to", "run/small", "--mesh", "dp=2"), Exit.FAILED, "code: reshard-folder"),
        (("--to", "small", "--mesh", "dp=2"), Exit.USAGE, "got run/small and the folder ./small\nhint: write"),
        (("--to", "runs", "--mesh", "dp=2"), Exit.USAGE, "code: reshard-same"),
        (("--to", ".", "--mesh", "dp=2"), Exit.FAILED, "code: reshard-folder"),
        (("--to", "x", "--mesh", "dp=2", "--step", "1"), Exit.NOT_FOUND, "expected a checkpoint of step 1, got none"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, text: str
) -> None:
    got, out, err = run(capsys, "reshard", "run/small", *options)
    assert (got, out, text in err) == (code, "", True), err
    assert not Path("x").exists()


@pytest.mark.usefixtures("place")
def test_a_dry_run_says_what_would_be_and_makes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "reshard", "run/small", "--to", "x", "--mesh", "tp=2", "--dry-run", "-o", "json")
    told = json.loads(out)
    assert (code, told["writeId"], told["mesh"]["tp"], told["step"]) == (0, None, 2, TRAINED_STEPS)
    assert not Path("x").exists()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 96 MiB in 4 arrays, one of which is larger than what is read at a time."""
    folder = tmp_path_factory.mktemp("large")
    rows = (9216, 1024, 1024, 1024)
    arrays = {f"w{number}": np.random.default_rng(number).normal(size=(num, 1024)) for number, num in enumerate(rows)}
    safetensors.numpy.save_file(arrays, folder / "large.safetensors")
    ended = behemoth("ckpt", "import", "large.safetensors", "--to", "store", cwd=folder)
    assert ended.code == 0, ended.err
    return folder


def test_workers_of_several_nodes_write_what_threads_write(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [NodeId("n0"), NodeId("n1")]
    monkeypatch.setattr("behemoth.wiring.batch.embed_ray", lambda _nodes: SubprocessRuntime(nodes))
    command = ("reshard", str(large / "store"), "--mesh", "dp=2", "--to")
    assert run(capsys, *command, str(tmp_path / "there"), "--on", "ray")[0] == 0
    assert run(capsys, "verify", str(tmp_path / "there"))[0] == 0
    assert digest(capsys, str(tmp_path / "there")) == digest(capsys, str(large / "store"))


@pytest.mark.usefixtures("place")
def test_what_was_recorded_and_is_gone_from_the_target_is_written_again_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("reshard", "run/small", "--to", "again", "--mesh", "dp=3", "--state", "state")

    def no_commit(*_given: object, **_more: object) -> None:
        raise Unavailable("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr("behemoth.checkpoint.interop.ingest.commit", no_commit)
        assert run(capsys, *command)[0] == Exit.FAILED
    assert num_lines(Path("state")) > 1
    shutil.rmtree("again/steps")
    code, _, err = run(capsys, *command)
    assert (code, "what that call wrote is gone from the target" in err) == (0, True)
    assert run(capsys, "verify", "again")[0] == 0
    assert digest(capsys, "again") == digest(capsys, "run/small")


def killed_in_the_middle(command: list[str], folder: Path, store: S3Store) -> int:
    """Batches that were done when it was killed, one at least; tried again while the command was faster than that."""
    state = folder / "state"
    for _ in range(20):
        killed = subprocess.Popen(
            [PROGRAM, *command],
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while num_lines(state) <= 1 and killed.poll() is None:
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
        if killed.wait() == -signal.SIGKILL:
            return num_lines(state) - 1
        store.delete([info.key for info in store.list("")])
    raise AssertionError("the command always ended before it was killed")


def num_lines(state: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in state.glob("*.jsonl"))


@pytest.mark.parametrize("verb", ["reshard", "import"])
def test_a_killed_write_into_a_bucket_goes_on_in_the_same_uploads_and_comes_back_bit_for_bit(
    s3: S3Server,
    large: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    let_in(monkeypatch, s3)
    with opened(new_place()) as store:
        given = ("large.safetensors",) if verb == "import" else ("store", "--mesh", "dp=2")
        source = str(large / given[0])
        command = ["ckpt", verb, source, *given[1:], "--to", store.root, "--threads", "1", "--state", "state"]
        num_done = killed_in_the_middle(command, tmp_path, store)
        assert not list(store.list("commits"))
        begun = {upload.upload_id for upload in store.list_uploads("")}
        assert begun
        ended = behemoth(*command, cwd=tmp_path)
        assert (ended.code, f"going on behind {num_done} batches" in ended.err) == (0, True), ended.err
        assert not list(store.list_uploads(""))
        assert run(capsys, "verify", store.root)[0] == 0
        assert digest(capsys, store.root) == digest(capsys, str(large / "store"))
        assert run(capsys, "reshard", store.root, "--to", str(tmp_path / "back"), "--mesh", "tp=1")[0] == 0
        assert digest(capsys, str(tmp_path / "back")) == digest(capsys, str(large / "store"))


def test_safetensors_in_a_bucket_are_imported_from_there(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_in(monkeypatch, s3)
    with opened(new_place()) as store:
        for name in ("a", "b"):
            file = safetensors.numpy.save({name: np.arange(40, dtype=np.float32)})
            store.create(f"hub/{name}.safetensors", file)
        one = f"{store.root}/hub/a.safetensors"
        assert run(capsys, "import", one, "--to", str(tmp_path / "one"))[0] == 0
        assert newest(tmp_path / "one")[1].keys() == {"a"}
        code, _, err = run(capsys, "import", f"{store.root}/hub", "--to", str(tmp_path / "two"))
        assert (code, "code: safetensors-index" in err) == (Exit.USAGE, True)
        index = {"weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}}
        store.create("hub/model.safetensors.index.json", json.dumps(index).encode())
        assert run(capsys, "import", f"{store.root}/hub", "--to", f"{store.root}/two")[0] == 0
        assert run(capsys, "export", f"{store.root}/two", "--to", str(tmp_path / "back"))[0] == 0
        back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
        assert {name: array.sum() for name, array in back.items()} == {"a": 780, "b": 780}
