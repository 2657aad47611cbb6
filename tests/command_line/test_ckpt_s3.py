"""`behemoth ckpt` on checkpoints in a bucket of a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import load, load_file, save_file

from behemoth.checkpoint.commit_log import commits
from behemoth.storage.s3 import S3Store
from behemoth.testing.store import MemoryStore, read
from behemoth_cli import root
from behemoth_cli.exits import Exit
from checkpoint.saved_checkpoint import save, small_layout
from servers.s3_server import S3Server
from storage.s3_stores import let_in, new_place, opened

STEPS = (10, 20, 30)


@pytest.fixture
def store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """Three checkpoints, and what a fourth save left that was never committed."""
    let_in(monkeypatch, s3)
    saved = MemoryStore()
    for step in STEPS:
        save(saved, small_layout(), step=step, write_id=f"a1-{step}")
    save(saved, small_layout(), step=40, write_id="a1-40", publish=False)
    with opened(new_place()) as store:
        for info in saved.list(""):
            store.create(info.key, read(saved, info.key, info.size_bytes))
        yield store


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """What a verb prints, its notes behind."""
    got = root.run(["ckpt", *arguments])
    shown = capsys.readouterr()
    assert got == code, shown.err
    return shown.out + shown.err


def test_checkpoints_in_a_bucket_are_listed_shown_and_verified(
    store: S3Store, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "".join(f"checkpoint/{step}\n" for step in STEPS)
    assert told(capsys, "list", store.root, "-o", "name") == names
    assert "model/w" in told(capsys, "show", store.root, "--step", "20")
    verified = told(capsys, "verify", store.root)
    assert all(f"checkpoint/{step} ok (" in verified for step in STEPS)
    assert f"checkpoint/{STEPS[0]} ok" in told(capsys, "scrub", store.root, "--once")


def test_damage_in_a_bucket_is_found_and_named(store: S3Store, capsys: pytest.CaptureFixture[str]) -> None:
    victim = next(info for info in store.list("steps/000000020-a1-20/model/w/c"))
    data = bytearray(read(store, victim.key, victim.size_bytes))
    data[3] ^= 1
    store.delete([victim.key])
    store.create(victim.key, data)
    shown = told(capsys, "verify", store.root, code=Exit.UNHEALTHY)
    assert "checkpoint/10 ok" in shown
    assert victim.key in shown


def test_two_places_are_compared_over_the_network(store: S3Store, capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, "diff", store.root, "10", "20", "--in", store.root, code=Exit.UNHEALTHY)
    assert "model/w" in shown


def test_a_checkpoint_in_a_bucket_is_exported_to_a_folder(
    store: S3Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "export", store.root, "--to", str(tmp_path / "out"))
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert "model/norm" in set(file.keys())


def test_a_checkpoint_is_exported_into_a_bucket_in_parts_and_the_library_reads_what_is_downloaded(
    store: S3Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors: dict[str, npt.NDArray[Any]] = {
        "w": np.random.default_rng(6).random((5, 1 << 20), np.float32),
        "b": np.arange(7, dtype=np.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    told(capsys, "import", str(tmp_path), "--to", str(tmp_path / "store"))
    to = f"{store.root}/exported"
    command = ("export", str(tmp_path / "store"), "--to", to, "--max-file-size", "20MiB")
    assert "would be exported" in told(capsys, *command, "--dry-run")
    assert list(store.list("exported")) == []
    left = store.begin_upload("exported/model-00002-of-00002.safetensors")
    assert "2 tensors, 2 files of" in told(capsys, *command)
    assert left not in [upload.upload_id for upload in store.list_uploads("")]
    found = {info.key.split("/")[-1]: read(store, info.key, info.size_bytes) for info in store.list("exported")}
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert found.keys() == {*files, "model.safetensors.index.json"}
    assert {name for file in files for name in load(found[file])} == {"w", "b"}
    for name, array in (pair for file in files for pair in load(found[file]).items()):
        assert array.tobytes() == tensors[name].tobytes()
    assert "2 of them there already" in told(capsys, *command)
    assert "export-folder" in told(capsys, *command[:4], code=Exit.FAILED)  # in one file
    assert "or one within the other" in told(capsys, "export", store.root, "--to", to, code=Exit.USAGE)
    assert "got commits/" in told(capsys, *command[:3], store.root, code=Exit.FAILED)


def test_safetensors_are_imported_into_a_bucket_in_parts_and_come_back_bit_for_bit(
    store: S3Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors: dict[str, npt.NDArray[Any]] = {
        "w": np.random.default_rng(5).random((30, 1 << 20), np.float32),
        "b": np.arange(7, dtype=np.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    to = f"{store.root}/imported"
    assert "would" in told(capsys, "import", str(tmp_path), "--to", to, "--dry-run")
    assert list(store.list("imported")) == []
    told(capsys, "import", str(tmp_path), "--to", to, "--step", "3")
    assert "checkpoint/3 ok (" in told(capsys, "verify", to)
    assert list(store.list_uploads("")) == []
    told(capsys, "export", to, "--to", str(tmp_path / "back"))
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(back[name].tobytes() == array.tobytes() for name, array in tensors.items())
    assert "checkpoint/3 was imported before into" in told(capsys, "import", str(tmp_path), "--to", to, "--step", "3")
    save_file(tensors, tmp_path / "model.safetensors")  # the same bytes; that nobody can know without reading them
    assert "import-taken" in told(capsys, "import", str(tmp_path), "--to", to, "--step", "3", code=Exit.FAILED)


def test_pins_and_retention_hold_in_a_bucket(store: S3Store, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "pin", store.root, "--step", "10", "--reason", "paper")
    assert "pinned" in told(capsys, "gc", store.root, "--keep-last", "2", "--execute")
    assert [one.step for one in commits(store)] == list(STEPS)
    told(capsys, "unpin", store.root, "--step", "10")
    assert "would delete 1 of 3 checkpoints" in told(capsys, "gc", store.root, "--keep-last", "2")
    assert "deleted 1 of 3 checkpoints" in told(capsys, "gc", store.root, "--keep-last", "2", "--execute")
    assert [one.step for one in commits(store)] == [20, 30]
    assert {info.key.split("/")[1] for info in store.list("steps")} == {
        "000000020-a1-20",
        "000000030-a1-30",
        "000000040-a1-40",
    }


def test_uploads_and_objects_of_cut_off_writes_go_when_somebody_says_so(
    store: S3Store, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "steps/000000040-a1-40/model/w/c/0/0"
    upload_id = store.begin_upload(key)
    kept = told(capsys, "gc", store.root, "--keep-last", "3", "--execute")
    assert "the store belongs to no run" in kept
    assert [one.upload_id for one in store.list_uploads("")] == [upload_id]
    planned = told(capsys, "gc", store.root, "--keep-last", "3", "--unfinished")
    assert "would delete 0 of 3 checkpoints and what 1 unfinished write left, and abort 1 unfinished upload" in planned
    document = json.loads(told(capsys, "gc", store.root, "--keep-last", "3", "-o", "json").partition("\nstore ")[0])
    assert document["numUploads"] == 0
    told(capsys, "gc", store.root, "--keep-last", "3", "--unfinished", "--execute")
    assert list(store.list_uploads("")) == []
    assert [info.key for info in store.list("steps/000000040-a1-40")] == []
    assert "ok (" in told(capsys, "verify", store.root)


def test_a_prefix_without_checkpoints_and_a_missing_bucket_are_not_found(
    store: S3Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected a prefix with checkpoints" in told(capsys, "list", f"{store.root}/x", code=Exit.NOT_FOUND)
    assert "no such bucket" in told(capsys, "list", "s3://nobody-made-it/x", code=Exit.NOT_FOUND)


def test_credentials_never_reach_the_terminal(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    shown = told(capsys, "list", store.root, code=Exit.DENIED)
    shown += told(capsys, "list", store.root.replace("s3://", "s3://AKIA:sesame@"), code=Exit.USAGE)
    shown += told(capsys, "list", f"{store.root}?secret=sesame", code=Exit.USAGE)
    assert "sesame" not in shown
