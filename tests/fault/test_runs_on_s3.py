"""Whole runs that save to a real S3 server: they end with the bytes that a run on a directory ends with, whatever dies
meanwhile, and leave no upload behind."""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.opened import open_commit
from behemoth.state.effect import CommitRef
from fault.kill_stage import KillStage, spec, staged, undisturbed
from servers.s3_server import BUCKET, S3Server

HERE = str(Path(__file__).parent)
WIDE = "wide_state:main"


def on_s3(folder: Path, s3: S3Server, text: str, prefix: str, *drills: str) -> AbstractContextManager[KillStage]:
    arguments = ["--runtime", "process", *(word for drill in drills for word in ("--drill", drill))]
    return staged(
        folder,
        text,
        arguments=arguments,
        store_url=f"s3://{BUCKET}/{prefix}/kills",
        environment={**s3.environment, "PYTHONPATH": HERE},
    )


def stored(prefix: str) -> str:
    return f"store: 's3://{BUCKET}/{prefix}'"


@pytest.fixture
def let_in(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """This process reads the store as well."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


def assert_keeps_secret(secret: str, stage: KillStage) -> None:
    """Neither logs, journal, events and specs of the run nor what it told have it."""
    assert secret not in stage.told()
    files = [path for path in stage.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_a_run_on_s3_ends_as_one_on_a_directory_though_a_worker_is_killed_and_a_node_lost(
    tmp_path: Path, let_in: S3Server
) -> None:
    digest = undisturbed(tmp_path / "undisturbed", spec(gpus=2))
    prefix = secrets.token_hex(6)
    text = spec(gpus=2, checkpoint=stored(prefix))
    drills = ("kill rank 1 at step 25", "lose node 1 at step 65")
    with on_s3(tmp_path / "s3", let_in, text, prefix, *drills) as stage:
        stage.start()
        stage.finish()
        assert len(stage.events("Drill")) == 2, stage.told()
        stage.expect_sound(digest)
        assert not (stage.directory / "checkpoints").exists()
        assert_keeps_secret(let_in.environment["AWS_SECRET_ACCESS_KEY"], stage)
        newest = commits(stage.store)[-1]
        assert isinstance(newest, CommitRef)
        assert open_commit(stage.store, newest).layout.sharding == "box"


@pytest.mark.longer
def test_arrays_of_several_parts_survive_the_death_of_store_processes_and_of_the_run(
    tmp_path: Path, let_in: S3Server
) -> None:
    steps = {"gpus": 2, "entrypoint": WIDE, "steps": 80, "step_ms": None, "every": 10}
    with staged(tmp_path / "undisturbed", spec(**steps), environment={"PYTHONPATH": HERE}) as stage:  # type: ignore[arg-type]
        stage.start()
        digest = stage.finish()["digest"]
    prefix = secrets.token_hex(6)
    with on_s3(tmp_path / "s3", let_in, spec(**steps, checkpoint=stored(prefix)), prefix) as stage:  # type: ignore[arg-type]
        stage.start()
        stage.until_event("Committed")
        stage.kill(stage.living("store")[0], "in a save")
        stage.until_event("Committed", 2)
        assert stage.process is not None
        stage.process.kill()
        stage.resume()
        stage.finish()
        stage.expect_sound(digest)
        ref = commits(stage.store)[-1]
        assert isinstance(ref, CommitRef)
        newest = open_commit(stage.store, ref)
        sizes = {info.key: info.size_bytes for info in stage.store.list(newest.record.prefix)}
        assert len(newest.shard_keys(newest.layout.positions["model/columns"])) == 4
        (flat,) = newest.shard_keys(newest.layout.positions["optim/flat"])
        assert sizes[flat] > 4 * (5 << 20)
