"""`behemoth ckpt export` and `import` on the checkpoint of a real run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.interop.export import Exported, export
from behemoth.checkpoint.interop.export_plan import ExportPlan
from behemoth.checkpoint.interop.unit_writer import UnitWriter, Written
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.ports import SavesTo
from behemoth.storage.local import LocalStore
from behemoth_cli import root
from behemoth_cli.commands import ckpt_export
from command_line.cli_rig import PROGRAM, behemoth, environment
from command_line.cli_rig import TRAINED_STEPS as NEWEST


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own; the run is only read."""
    (tmp_path / "runs").symlink_to(trained / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arrays_of(store_path: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint by our own reader."""
    with closing(LocalStore(store_path)) as store:
        newest = latest(store)
        assert newest is not None
        commit = open_commit(store, newest)
        return {array.name: read_array(store, commit, array.name) for array in commit.layout.arrays}


def loaded(folder: Path) -> dict[str, np.ndarray]:
    """All files by the safetensors library."""
    found: dict[str, np.ndarray] = {}
    for file in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(file)
    return found


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_checkpoint_of_a_run_is_exported_and_the_library_reads_every_tensor(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "export", "run/small", "--to", "out", "--max-file-size", "100KB")
    assert (code, err) == (0, "")
    assert out.startswith(f"checkpoint/{NEWEST} exported to {place}/out: 5 tensors, 3 files of ")
    assert same(loaded(place / "out"), arrays_of(place / "runs/small/checkpoints"))
    assert json.loads((place / "out/model.safetensors.index.json").read_text())["weight_map"]["model/table"]


def test_select_map_and_precision_are_applied(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = arrays_of(place / "runs/small/checkpoints")
    wanted = ("--select", "model/*", "--select", "stats/row_loss")
    assert run(capsys, "export", "run/small", "--to", "some", "--dtype", "fp16", *wanted)[0] == 0
    assert same(
        loaded(place / "some"), {name: arrays[name].astype(np.float16) for name in ("model/table", "stats/row_loss")}
    )
    Path("my.yaml").write_text(
        "format: 1\nrules: [{ours: 'model/{x}', theirs: 'm.{x}.T', steps: [permute: [1, 0]]}]\n"
        "drop: {ours: ['optim/{x*}', 'stats/{x*}', 'state/{x*}']}\n"
    )
    assert run(capsys, "export", "run/small", "--to", "turned", "--map", "my.yaml")[0] == 0
    assert same(loaded(place / "turned"), {"m.table.T": np.ascontiguousarray(arrays["model/table"].T)})


def test_rows_of_arrays_are_taken_before_the_map(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = arrays_of(place / "runs/small/checkpoints")
    wanted = ("--select", "model/*", "--select", "stats/row_loss", "--rows", "model/*=3-5")
    assert run(capsys, "export", "run/small", "--to", "some", *wanted)[0] == 0
    expected = {"model/table": arrays["model/table"][3:6], "stats/row_loss": arrays["stats/row_loss"]}
    assert same(loaded(place / "some"), expected)
    Path("my.yaml").write_text(
        "format: 1\nothers: drop\nrules: [{ours: 'model/{x}', theirs: 'm.{x}.T', steps: [permute: [1, 0]]}]\n"
    )
    assert run(capsys, "export", "run/small", "--to", "turned", *wanted, "--map", "my.yaml")[0] == 0
    assert same(loaded(place / "turned"), {"m.table.T": np.ascontiguousarray(arrays["model/table"][3:6].T)})


@pytest.mark.usefixtures("place")
def test_the_same_number_of_other_rows_is_another_export(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("export", "run/small", "--to", "out", "--select", "model/*", "--rows")
    assert run(capsys, *command, "model/*=3-5")[0] == 0
    assert run(capsys, *command, "model/*=3-5")[0] == 0
    code, _, err = run(capsys, *command, "model/*=4-6")
    assert (code, "code: export-folder" in err) == (1, True)


def test_a_size_of_a_map_is_given_on_the_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = arrays_of(place / "runs/small/checkpoints")["model/table"]
    Path("my.yaml").write_text(
        "format: 1\nothers: drop\nsizes: {parts: 2}\n"
        "rules: [{ours: 'model/{x}', theirs: '{x}', steps: [unflatten: {dim: 0, sizes: [parts, rest]}]}]\n"
    )
    code, _, err = run(capsys, "export", "run/small", "--to", "out", "--map", "my.yaml")
    assert (code, "got [parts (2), rest]" in err) == (2, True)
    assert run(capsys, "export", "run/small", "--to", "out", "--map", "my.yaml", "--size", "parts=257")[0] == 0
    assert same(loaded(place / "out"), {"table": table.reshape(257, 1, 257)})


def test_what_was_exported_is_imported_as_a_checkpoint_that_verifies(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "export", "run/small", "--to", "out", "--max-file-size", "100KB")[0] == 0
    code, out, _ = run(capsys, "import", "out", "--to", "store", "--step", "7")
    assert (code, out.split(":")[0]) == (0, f"checkpoint/7 imported into {place}/store from out")
    assert same(arrays_of(place / "store"), arrays_of(place / "runs/small/checkpoints"))
    assert run(capsys, "verify", "store")[0] == 0
    assert "checkpoint/7 was imported before" in run(capsys, "import", "out", "--to", "store", "--step", "7")[1]
    assert run(capsys, "import", "out", "--to", "store", "--step", "7", "--select", "stats/*")[0] == 1
    assert run(capsys, "import", "out", "--to", "store", "--step", "8", "--select", "stats/*")[0] == 0
    assert arrays_of(place / "store").keys() == {"stats/row_loss", "stats/trigrams"}


def test_files_that_are_written_anew_while_they_are_read_make_no_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "in").mkdir()
    file = place / "in" / "model.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(5)}, file)
    write = UnitWriter.write

    def write_and_change(writer: UnitWriter, *units: Any, threads: int) -> list[Written]:
        found = write(writer, *units, threads=threads)
        safetensors.numpy.save_file({"w": np.ones(5)}, file)
        os.utime(file, ns=(1, 1))  # whatever the clock of this file system can tell apart
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnitWriter, "write", write_and_change)
        code, _, err = run(capsys, "import", "in", "--to", "store")
    assert (code, "code: import-source" in err) == (1, True)
    assert "got 'model.safetensors' changed while it was read" in err
    assert not [path for path in (place / "store").rglob("*") if path.is_file()]
    assert run(capsys, "import", "in", "--to", "store")[0] == 0
    assert same(arrays_of(place / "store"), {"w": np.ones(5)})


def test_float8_with_scales_comes_back_through_the_map(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = arrays_of(place / "runs/small/checkpoints")["model/table"]
    assert run(capsys, "export", "run/small", "--to", "out", "--map", "weights", "--dtype", "fp8")[0] == 0
    code, _, err = run(capsys, "import", "out", "--to", "exact", "--map", "weights")
    assert (code, err) == (0, "")
    assert arrays_of(place / "exact").keys() == {"model/table", "model/table_scale"}
    assert run(capsys, "import", "out", "--to", "store", "--map", "weights", "--dtype", "fp32")[0] == 0
    (back,) = arrays_of(place / "store").values()
    assert back.dtype == np.float32
    scale = np.abs(table).max() / 448
    assert (np.abs(back - table) <= np.maximum(np.abs(table) / 16, scale * 2.0**-10)).all()


def test_float8_with_a_scale_a_channel_comes_back_nearer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = arrays_of(place / "runs/small/checkpoints")["model/table"]
    out = ("--map", "weights", "--dtype", "fp8", "--fp8-scale")
    assert run(capsys, "export", "run/small", "--to", "channel", *out, "channel")[0] == 0
    assert run(capsys, "export", "run/small", "--to", "block", *out, "block")[0] == 0
    assert loaded_shapes(place / "channel")["table_scale"] == (257, 1)
    assert loaded_shapes(place / "block")["table_scale_inv"] == (3, 3)
    assert run(capsys, "import", "channel", "--to", "store", "--map", "weights", "--dtype", "fp32")[0] == 0
    (back,) = arrays_of(place / "store").values()
    scales = np.abs(table).max(axis=1, keepdims=True) / 448
    assert (np.abs(back - table) <= np.maximum(np.abs(table) / 16, scales * 2.0**-10)).all()


def loaded_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)


def test_a_single_file_is_imported_by_its_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors.numpy.save_file({"a": np.arange(5)}, "one.safetensors")
    safetensors.numpy.save_file({"b": np.arange(5)}, "two.safetensors")
    assert run(capsys, "import", "one.safetensors", "--to", "store")[0] == 0
    assert arrays_of(place / "store").keys() == {"a"}
    code, _, err = run(capsys, "import", ".", "--to", "other")
    assert (code, "code: safetensors-index" in err) == (2, True)


def test_a_snapshot_in_the_cache_of_hugging_face_is_imported_through_its_links(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = Path("hub/models--a--b/snapshots/5d0f2e8")
    for folder in (snapshot, snapshot.parent.parent / "blobs"):
        folder.mkdir(parents=True)
    for number in (1, 2):
        blob = snapshot.parent.parent / "blobs" / f"blob{number}"
        safetensors.numpy.save_file({f"w{number}": np.full(5, number)}, blob)
        (snapshot / f"model-{number:05d}-of-00002.safetensors").symlink_to(f"../../blobs/blob{number}")
    index = {"weight_map": {f"w{number}": f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run(capsys, "import", str(snapshot), "--to", "store")[0] == 0
    assert same(arrays_of(place / "store"), {"w1": np.full(5, 1), "w2": np.full(5, 2)})
    one = snapshot / "model-00001-of-00002.safetensors"
    assert run(capsys, "import", str(one), "--to", "one")[0] == 0
    assert arrays_of(place / "one").keys() == {"w1"}
    (snapshot.parent.parent / "blobs" / "blob1").unlink()
    code, _, err = run(capsys, "import", str(snapshot), "--to", "again")
    assert (code, "code: link-dangling" in err, "hint: the download may not have ended" in err) == (102, True, True)


def test_a_folder_whose_name_is_no_text_is_imported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.fsdecode(b"caf\xe9")
    os.mkdir(folder)
    safetensors.numpy.save_file({"a": np.arange(5)}, f"{folder}/model.safetensors")
    assert run(capsys, "import", folder, "--to", "store")[0] == 0
    assert json.loads(run(capsys, "list", "store", "-o", "json")[1])["items"][0]["run"] == "import:caf\\udce9"
    assert arrays_of(place / "store").keys() == {"a"}


_WITHOUT_UNUSED = """
format: 1
rules:
  - {ours: "{name*}", theirs: "{name*}"}
drop:
  theirs: [model.unused]
"""


def test_a_tensor_without_elements_stops_an_import_until_a_map_leaves_it_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {"model.unused": np.zeros((0,), np.float32), "model.w": np.ones((2, 3), np.float32)}
    safetensors.numpy.save_file(tensors, place / "some.safetensors")
    code, _, err = run(capsys, "import", "some.safetensors", "--to", "store")
    hint = "leave it out by a map that has its name in SOURCE under drop: theirs"
    assert (code, "array 'model.unused'" in err, hint in err) == (2, True, True), err
    (place / "map.yaml").write_text(_WITHOUT_UNUSED)
    assert run(capsys, "import", "some.safetensors", "--to", "store", "--map", "map.yaml")[0] == 0
    found = arrays_of(place / "store")
    assert list(found) == ["model.w"]
    assert found["model.w"].tobytes() == tensors["model.w"].tobytes()


def test_names_that_are_no_good_as_paths_are_imported_under_their_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("..", "/", "a/../b", "a", "a/b", "index", "c/0", "zarr.json", ".behemoth-tmp-x", "é" * 40)
    safetensors.numpy.save_file({name: np.full(3, number) for number, name in enumerate(names)}, "odd.safetensors")
    assert run(capsys, "import", "odd.safetensors", "--to", "store")[0] == 0
    assert same(arrays_of(place / "store"), {name: np.full(3, number) for number, name in enumerate(names)})
    assert run(capsys, "verify", "store")[0] == 0
    assert {file.name for file in place.iterdir()} == {"runs", "store", "odd.safetensors"}


def test_a_dry_run_tells_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "export", "run/small", "--to", "out", "--map", "weights", "--dry-run")
    assert code == 0
    assert "table   float32  257x257" in out
    assert f"checkpoint/{NEWEST} would be exported to {place}/out: 1 tensors, 1 file of " in out
    code, out, _ = run(capsys, "export", "run/small", "--to", "out", "--dry-run", "-o", "json")
    told = json.loads(out)
    assert (told["kind"], told["isDone"], told["numTensors"]) == ("CheckpointExport", False, 5)
    safetensors.numpy.save_file({"a": np.arange(5)}, "one.safetensors")
    code, out, _ = run(capsys, "import", "one.safetensors", "--to", "store", "--dry-run", "-o", "json")
    told = json.loads(out)
    assert (code, told["kind"], told["writeId"]) == (0, "CheckpointImport", None)
    assert told["arrays"] == [{"name": "a", "dtype": "int64", "shape": [5], "sizeBytes": 40}]
    assert sorted(file.name for file in place.iterdir()) == ["one.safetensors", "runs"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("export", "run/small", "--to", "full"), 1, "code: export-folder"),
        (("export", "run/small", "--to", "run/small"), 1, "expected a folder, got a run"),
        (("export", "run/small", "--to", "runs/small/checkpoints/out"), 2, "within the other"),
        (("export", "run/small", "--to", "a.file"), 1, "option --to a.file: expected a folder, got a file"),
        (("export", "run/small", "--to", "a.file/out", "--dry-run"), 1, "got a path below the file "),
        (("export", "run/small", "--to", "out", "--select", "modle/*"), 102, "hint: did you mean model/table?"),
        (
            ("export", "run/small", "--to", "out", "--rows", "modle/*=0"),
            2,
            "rows of 'modle/*': expected to match one of",
        ),
        (
            ("export", "run/small", "--to", "out", "--rows", "model/*=5-3"),
            2,
            "hint: for example 'model/*.experts.*=3-5'",
        ),
        (
            ("export", "run/small", "--to", "out", "--rows", "model/*"),
            2,
            "option --rows: expected a pattern of names and",
        ),
        (("export", "run/small", "--to", "out", "--map", "lama4-hf"), 102, "hint: did you mean llama4-hf?"),
        (("export", "run/small", "--to", "out", "--map", "llama4-hf"), 2, "code: map-no-rule"),
        (
            ("export", "run/small", "--to", "out", "--map", "llama4-meta", "--size", "head=x"),
            2,
            "option --size: expected",
        ),
        (
            ("export", "run/small", "--to", "out", "--map", "weights", "--size", "head=2"),
            2,
            "since the map names none, and",
        ),
        (("export", "run/small", "--to", "out", "--size", "head=2"), 2, "code: option-without-effect"),
        (("export", "run/small", "--to", "out", "--dtype", "bf61"), 2, "hint: did you mean bf16?"),
        (("export", "run/small", "--to", "out", "--fp8-scale", "block"), 2, "expected it with --dtype fp8"),
        (("export", "run/small", "--to", "out", "--dtype", "fp8", "--fp8-scale", "row"), 2, "option --fp8-scale: "),
        (("export", "run/small", "--to", "out", "--max-file-size", "0B"), 2, "expected at least 1B, got '0B'"),
        (
            ("export", "run/small", "--to", "out", "--max-file-size", "0"),
            2,
            "expected at least 1B, got '0'\nhint: for example 5GB, which it is without the option\ncode: file-size",
        ),
        (("export", "run/small", "--to", "out", "--max-file-size", "5"), 2, "option --max-file-size: expected a size"),
        (("export", "run/small", "--to", "out", "--step", "3"), 102, "code: checkpoint-not-found"),
        (("import", "nothing", "--to", "store"), 102, "code: safetensors-not-found"),
        (("import", "full", "--to", "store"), 102, "code: safetensors-not-found"),
        (("import", "one.safetensors", "--to", "full"), 1, "got a folder with other files"),
        (("import", "one.safetensors", "--to", "a.file"), 1, "code: import-folder"),
        (("import", "one.safetensors", "--to", "store", "--step", "1000000000"), 2, "less than or equal to 999999999"),
        (("import", "odd.safetensors", "--to", "store", "--dry-run"), 2, "hint: rename it by a map"),
        (("import", "one.safetensors", "--to", "run/small"), 1, "code: import-folder"),
        (("import", "one.safetensors", "--to", "small"), 2, "folder ./small\nhint: write ./small for the folder"),
        (("import", "one.safetensors", "--to", "runs/small"), 1, "empty or not there, got a run\nhint: name a folder"),
        (("import", "one.safetensors", "--to", "runs/small/checkpoints"), 1, "code: import-owned"),
        (("import", "one.safetensors", "--to", "store", "--dtype", "fp8"), 2, "hint: did you mean fp"),
        (("import", "bad.safetensors", "--to", "store"), 3, "code: safetensors-header"),
    ],
)
def test_what_is_wrong_is_told_with_its_code_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, text: str
) -> None:
    (place / "full").mkdir()
    (place / "full/notes.txt").write_text("mine")
    (place / "a.file").touch()
    safetensors.numpy.save_file({"a\nb": np.arange(5)}, "odd.safetensors")
    safetensors.numpy.save_file({"a": np.arange(5)}, "one.safetensors")
    Path("bad.safetensors").write_bytes(Path("one.safetensors").read_bytes()[:-1])
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert text in err
    assert not (place / "out").exists()
    assert not (place / "store").exists()


def test_a_damaged_checkpoint_is_not_exported_and_leaves_no_folder(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "runs").unlink()
    shutil.copytree(trained / "runs", place / "runs")
    (shard,) = (place / "runs/small/checkpoints/steps").glob(f"{NEWEST:09d}-*/model/table/c/0/0")
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    (place / "mine").mkdir()
    for to in ("deep/out", "mine/out", "mine"):
        code, _, err = run(capsys, "export", "run/small", "--to", to)
        assert code == 3
        assert "array 'model/table', chunk 0, file steps/" in err
    assert sorted(path.name for path in place.iterdir()) == ["mine", "runs"]
    assert not list((place / "mine").iterdir())


def test_an_import_of_damaged_data_leaves_no_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors.numpy.save_file({"a": np.array([True])}, "one.safetensors")
    Path("one.safetensors").write_bytes(Path("one.safetensors").read_bytes()[:-1] + b"\2")
    code, _, err = run(capsys, "import", "one.safetensors", "--to", "deep/store")
    assert (code, "code: safetensors-bool" in err) == (3, True)
    assert sorted(path.name for path in place.iterdir()) == ["one.safetensors", "runs"]


def test_a_checkpoint_that_retention_deletes_while_it_is_read_is_not_called_damaged(
    trained: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "runs").unlink()
    shutil.copytree(trained / "runs", place / "runs")
    checkpoints = place / "runs/small/checkpoints"

    def export_late(folder: SavesTo, plan: ExportPlan, **how: Any) -> Exported:
        (checkpoints / f"commits/{NEWEST:09d}.json").unlink()
        (newest,) = (checkpoints / "steps").glob(f"{NEWEST:09d}-*")
        shutil.rmtree(newest)
        return export(folder, plan, **how)

    monkeypatch.setattr(ckpt_export, "export", export_late)
    code, out, err = run(capsys, "export", "run/small", "--to", "out")
    assert (code, out) == (102, "")
    assert f"checkpoint/{NEWEST}: expected it to stay while it was read, got it deleted" in err
    assert not (place / "out").exists()


def test_a_killed_export_leaves_no_half_file_and_goes_on(tmp_path: Path) -> None:
    """Killed by SIGKILL while it writes; told again it keeps the whole files, and all is as if nothing had been."""
    arrays = {f"w{number}": np.random.default_rng(number).normal(size=(512, 1024)) for number in range(24)}
    safetensors.numpy.save_file(arrays, tmp_path / "big.safetensors")
    assert behemoth("ckpt", "import", "big.safetensors", "--to", "store", cwd=tmp_path).code == 0
    command = ["ckpt", "export", "store", "--to", "out", "--max-file-size", "4MB", "--threads", "1"]
    killed = subprocess.Popen([PROGRAM, *command], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.safetensors"))) < 2 and killed.poll() is None:
        assert time.monotonic() < deadline_s
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    whole = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.safetensors")}
    assert 2 <= len(whole) < 24
    assert all(arrays[name].tobytes() == array.tobytes() for name, array in loaded(tmp_path / "out").items())
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    ended = behemoth(*command, cwd=tmp_path)
    assert (ended.code, f"{len(whole)} of them there already" in ended.out) == (0, True)
    assert whole.items() <= {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}.items()
    assert len(list((tmp_path / "out").iterdir())) == 24 + 1
    assert same(loaded(tmp_path / "out"), arrays)
