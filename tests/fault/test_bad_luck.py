"""What the machine does to a run: full disks, damaged checkpoints, second runs, dead addresses. One clear error with a
hint, or recovery; what was committed stays, what is half done is not taken for done.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from behemoth.checkpoint.commit_log import BadCommit, commits, latest, read_record
from behemoth.checkpoint.paths import OWNER_KEY, commit_key
from behemoth.storage.local import LocalStore
from fault.kill_stage import COMMAND, KillStage, spec, staged, undisturbed

TESTS = str(Path(__file__).parents[1])
STEPS = 120
FAILED = 1
BAD_INPUT = 2
NOT_FOUND = 102
LIMIT_S = 150.0
"""Of a command: it ends a hang and judges no speed, shortly before pytest would."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


@contextlib.contextmanager
def small_disk(path: Path, *, size: str) -> Iterator[Path]:
    """A file system of its own that is soon full. Skips where mounting is not allowed, as in most containers."""
    path.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=LIMIT_S)


def writes(disk: Path) -> list[Path]:
    """Folders of writes in a store below `disk`, committed or not."""
    return list(disk.rglob("steps/*"))


def fill(path: Path) -> Path:
    """A file that takes all the space that is left."""
    ballast = path / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return ballast


@needs_root
def test_a_full_store_fails_saves_visibly_and_training_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="8m") as disk:
        text = spec(steps=400, step_ms=20, checkpoint=f"store: {disk}")
        with staged(tmp_path / "stage", text) as stage:
            stage.start()
            stage.until_event("Committed", 2)
            ballast = fill(disk)
            stage.until_event("SaveFailed", 2)
            told = str(stage.events("SaveFailed")[-1]["message"])
            full = "no space left on device"
            assert re.search(rf"rank \d, writing: \S+: \w+ steps/\S+: {full}|commit: .*{full}", told)
            committed = len(stage.events("Committed"))
            assert stage.events("WorkerFailed", "NodeLost", "RunFailed") == []
            stage.until(lambda: len(writes(disk)) <= len(stage.events("Committed")) + 1, "rubbish to be removed")
            ballast.unlink()
            stage.until_event("Committed", committed + 2)
            assert stage.finish()["outcome"] == "succeeded"
            stage.expect_no_process()
            stage.expect_journal()


@needs_root
def test_a_full_disk_below_the_run_directory_is_one_error_and_the_run_resumes(tmp_path: Path, digest: object) -> None:
    with (
        small_disk(tmp_path / "disk", size="16m") as disk,
        staged(tmp_path / "stage", spec(steps=STEPS, step_ms=30), place=disk) as stage,
    ):
        stage.start()
        stage.until_event("Committed", 2)
        ballast = fill(disk)
        code = stage.wait()
        ballast.unlink()
        assert code == FAILED, stage.told()
        assert "hint: free space on the disk" in stage.told()
        stage.expect_no_process()
        stage.start()
        assert stage.finish()["digest"] == digest
        stage.expect_sound(digest)


def stopped_midway(stage: KillStage, num_commits: int = 2) -> None:
    """The run process is killed after some commits: memory is gone, so the next start must read the disk."""
    stage.start()
    stage.until_event("Committed", num_commits)
    assert stage.process is not None
    stage.process.kill()
    stage.wait()
    stage.expect_no_process()


def newest_shards(stage: KillStage) -> list[Path]:
    """Files of the newest checkpoint's arrays, the largest last."""
    newest = latest(stage.store)
    assert newest is not None
    prefix = read_record(stage.store, newest).prefix
    found = [path for path in (stage.directory / "checkpoints" / prefix).rglob("c*/**/*") if path.is_file()]
    found += [path for path in (stage.directory / "checkpoints" / prefix).rglob("*") if path.name == "c"]
    return sorted({path for path in found if path.is_file()}, key=lambda path: path.stat().st_size)


def flip_a_bit(stage: KillStage) -> None:
    shard = newest_shards(stage)[-1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def lose_a_shard(stage: KillStage) -> None:
    newest_shards(stage)[-1].unlink()


def zero_a_shard(stage: KillStage) -> None:
    shard = newest_shards(stage)[-1]
    shard.write_bytes(bytes(shard.stat().st_size))


def cut_the_commit(stage: KillStage) -> None:
    newest = latest(stage.store)
    assert newest is not None
    path = stage.directory / "checkpoints" / commit_key(newest.step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, lose_a_shard, zero_a_shard, cut_the_commit])
def test_a_damaged_newest_checkpoint_makes_the_run_go_back_to_an_older_one_and_say_so(
    tmp_path: Path, digest: object, damage: Callable[[KillStage], None]
) -> None:
    with staged(tmp_path, spec(steps=STEPS, step_ms=30)) as stage:
        stopped_midway(stage)
        newest = latest(stage.store)
        assert newest is not None
        damage(stage)
        stage.start()
        stage.finish()
        told = stage.events("Rejected", "UnusableCheckpoint")
        assert len(told) == 1
        assert stage.events("SaveFailed") == []
        assert str(newest.step) in str(told[0]["message"])
        restored = [event for event in stage.events("Restored") if "memory" in str(event["message"])]
        assert int(str(restored[0]["step"]) or 0) < newest.step
        stage.expect_sound(digest)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_in_silence(tmp_path: Path) -> None:
    with staged(tmp_path, spec(steps=STEPS, step_ms=30)) as stage:
        stopped_midway(stage)
        for shard in (stage.directory / "checkpoints" / "steps").rglob("*"):
            if shard.is_file() and shard.stat().st_size > 4096:
                shard.write_bytes(bytes(shard.stat().st_size))
        stage.start()
        stage.wait()
        stage.expect_no_process()
        assert stage.events("Rejected")


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = f"store: {tmp_path / 'shared'}"
    python = {"PYTHONPATH": TESTS}
    text = spec(entrypoint="fault.unlucky:learns", step_ms=None, steps=40, checkpoint=store)
    with staged(tmp_path / "first", text, environment=python) as stage:
        stage.start()
        stage.finish()
    before = taken_over(tmp_path / "shared" / "kills")
    other = spec(entrypoint="fault.unlucky:another_model", step_ms=None, steps=60, checkpoint=store, failures=3)
    with staged(tmp_path / "second", other, environment=python) as stage:
        stage.start()
        assert stage.wait() not in (0, -9)
        stage.expect_no_process()
        assert "weight" in stage.told()
    assert checkpoints_in(tmp_path / "shared" / "kills") == before


def test_a_run_goes_on_from_the_checkpoints_of_another_mesh_to_the_same_end(tmp_path: Path) -> None:
    """The program's ranks all compute the same, so that the number of ranks changes no bit of the state."""
    digest = undisturbed(tmp_path / "undisturbed", spec(steps=60))
    store = f"store: {tmp_path / 'shared'}"
    with staged(tmp_path / "first", spec(steps=40, checkpoint=store)) as stage:
        stage.start()
        stage.finish()
    taken_over(tmp_path / "shared" / "kills")
    with staged(tmp_path / "second", spec(steps=60, gpus=2, checkpoint=store)) as stage:
        stage.start()
        summary = stage.finish()
        assert [event["step"] for event in stage.events("Restored")] == [40]
        assert summary["digest"] == digest
        stage.expect_no_process()


def test_a_run_that_ends_before_the_newest_checkpoint_of_its_store_is_refused_and_may_be_corrected(
    tmp_path: Path,
) -> None:
    store = f"store: {tmp_path / 'shared'}"
    with staged(tmp_path / "first", spec(steps=40, checkpoint=store)) as stage:
        stage.start()
        stage.finish()
    before = taken_over(tmp_path / "shared" / "kills")
    with staged(tmp_path / "second", spec(steps=20, checkpoint=store)) as stage:
        stage.start()
        assert stage.wait() == BAD_INPUT
        assert "spec.workload.steps: expected at least 40" in stage.told()
        assert checkpoints_in(tmp_path / "shared" / "kills") == before
        stage.text = spec(steps=60, checkpoint=store)
        stage.start()
        assert stage.finish()["outcome"] == "succeeded"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoints_in(store: Path) -> dict[str, bytes]:
    """Everything but whose they are."""
    return {key: data for key, data in snapshot(store).items() if key != OWNER_KEY}


def taken_over(store: Path) -> dict[str, bytes]:
    """The way that the refusal tells: whoever comes next has the store. What lies there."""
    (store / OWNER_KEY).unlink()
    return checkpoints_in(store)


@contextlib.contextmanager
def standing_still(stage: KillStage) -> Iterator[None]:
    """The run process, so that it is there for as long as another one needs to start."""
    assert stage.process is not None
    stage.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stage.process.send_signal(signal.SIGCONT)


def test_a_store_belongs_to_one_run_and_another_directory_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    """The other one would restore, and its clean-up delete, what the first is writing."""
    text = spec(steps=STEPS, step_ms=60, checkpoint=f"store: {tmp_path / 'shared'}")
    store = tmp_path / "shared" / "kills"
    with staged(tmp_path / "first", text) as stage:
        stage.start()
        stage.until_event("Committed", 1)
        uncommitted = store / "steps" / "000000999-a9-9" / "model" / "w" / "c"
        uncommitted.parent.mkdir(parents=True)
        uncommitted.write_bytes(b"written and not yet committed")
        with standing_still(stage), staged(tmp_path / "second", text) as second:
            second.start()
            assert second.wait() == FAILED
            assert f"got that of run/kills in {stage.directory}" in second.told()
            assert f"remove {store / OWNER_KEY}" in second.told()
            assert "code: store-owned" in second.told()
            assert not (second.directory / "identity.json").exists()
            assert uncommitted.exists()
        stage.finish()
        stage.expect_no_process()
    found = commits(LocalStore(store))
    assert found
    assert not [one for one in found if isinstance(one, BadCommit)]


def test_a_store_that_is_away_stops_the_run_instead_of_beginning_anew_and_back_again_it_goes_on(
    tmp_path: Path, digest: object
) -> None:
    with staged(tmp_path, spec(steps=STEPS, step_ms=30)) as stage:
        stopped_midway(stage)
        store = stage.directory / "checkpoints"
        journal = (stage.directory / "evidence.jsonl").read_bytes()
        store.rename(tmp_path / "away")
        for is_mount in (False, True):  # not there, and the empty place of a mount
            if is_mount:
                store.mkdir()
            stage.start()
            assert stage.wait() == NOT_FOUND, stage.told()
            assert f"checkpoint store {store}: expected the checkpoint of step" in stage.told()
            assert "hint: mount the store" in stage.told()
            assert not store.exists() or not any(store.iterdir())
            assert (stage.directory / "evidence.jsonl").read_bytes() == journal
        store.rmdir()
        (tmp_path / "away").rename(store)
        stage.start()
        stage.finish()
        assert all("from the beginning" not in str(event["message"]) for event in stage.events("Started")[1:])
        stage.expect_sound(digest)


def test_a_relative_store_is_found_again_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: object
) -> None:
    began, later = tmp_path / "began", tmp_path / "later"
    began.mkdir()
    later.mkdir()
    monkeypatch.chdir(began)
    with staged(tmp_path / "stage", spec(steps=STEPS, step_ms=30, checkpoint="store: ckpts")) as stage:
        stopped_midway(stage)
        monkeypatch.chdir(later)
        stage.start()
        assert stage.finish()["digest"] == digest
        assert stage.events("Restored")[-1]["step"]
        assert list(later.iterdir()) == []
        assert latest(LocalStore(began / "ckpts" / "kills")).step == STEPS  # type: ignore[union-attr]


def test_two_runs_on_one_directory_are_one_run_and_one_refusal(tmp_path: Path, digest: object) -> None:
    with staged(tmp_path, spec(steps=STEPS, step_ms=60)) as stage:
        stage.start()
        stage.until_event("Training")
        with standing_still(stage):
            second = run_again(stage)
        assert second.returncode == FAILED, stage.told()
        assert "expected nobody else to run here" in second.stderr
        assert "hint: wait for it" in second.stderr
        stage.finish()
        stage.expect_sound(digest)


def test_a_changed_file_on_an_old_directory_is_refused_with_what_differs(tmp_path: Path) -> None:
    with staged(tmp_path, spec(steps=STEPS, step_ms=30)) as stage:
        stopped_midway(stage, 1)
        (tmp_path / "run.yaml").write_text(spec(steps=STEPS + 1))
        second = run_again(stage)
        assert second.returncode == BAD_INPUT
        assert "steps" in second.stderr
        assert str(STEPS + 1) in second.stderr


def test_a_dead_ray_address_is_one_error_with_a_hint(tmp_path: Path) -> None:
    with staged(tmp_path, spec(steps=STEPS, step_ms=30), arguments=("--address", "127.0.0.1:9")) as stage:
        stage.start()
        assert stage.wait() == FAILED
        assert "error: ray at 127.0.0.1:9" in stage.told()
        assert "hint: check with `ray status`" in stage.told()
        stage.expect_no_process()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming nobody needs root")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_directory_without_permission_is_one_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(spec())
    ours = tmp_path / "ours"
    ours.mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    refused = subprocess.run(
        [*nobody, COMMAND, "run", str(tmp_path / "run.yaml"), "--dir", str(ours / "run"), "--runtime", "process"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert refused.returncode == 4, refused.stderr
    assert "Permission denied" in refused.stderr
    assert "hint: check the owner and the mode" in refused.stderr


def run_again(stage: KillStage) -> subprocess.CompletedProcess[str]:
    """The same command beside the one that runs, or after it."""
    return subprocess.run(
        [COMMAND, "run", str(stage.folder / "run.yaml"), "--dir", str(stage.directory), *stage.arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
