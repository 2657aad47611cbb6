"""Runs of processes with a second store: what is there at the end, when it fails, and when the first is lost."""

from __future__ import annotations

import secrets
import shutil
import signal
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from behemoth.base.ids import Step
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.owner import OWNED
from behemoth.checkpoint.paths import commit_key
from behemoth.checkpoint.verify import verify
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from behemoth.storage.open import open_store
from fault.kill_stage import KillStage, spec, staged, undisturbed
from servers.s3_server import BUCKET, S3Server
from storage.s3_stores import let_in

INTERRUPTED, NOT_FINISHED = 130, 101
STEPS = 60


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def drained(folder: Path, *, more: str = "", durable: str = "store") -> str:
    """A run that saves to `fast` and drains to `safe`."""
    drain = f"drain: {{to: {folder / 'safe'}{more}}}"
    return spec(steps=STEPS, step_ms=60, checkpoint=f"store: {folder / 'fast'}, {drain}, durable: {durable}")


def stage_of(folder: Path, text: str) -> AbstractContextManager[KillStage]:
    return staged(folder, text, store_url=str(folder / "fast" / "kills"))


def steps_of(place: Path) -> list[int]:
    store = LocalStore(place)
    found = [one for one in commits(store) if isinstance(one, CommitRef)]
    assert all(verify(store, one, threads=1, deep=True).is_intact for one in found)
    return [int(one.step) for one in found]


def drain_of(stage: KillStage) -> dict[str, object]:
    found = stage.summary()["drain"]
    assert isinstance(found, dict)
    return found


def test_the_last_checkpoint_is_in_both_stores_and_the_tiers_own_retention_holds(
    tmp_path: Path, digest: object
) -> None:
    text = drained(tmp_path, more=", retention: {keep_last: 3}", durable="drain")
    with stage_of(tmp_path, text) as stage:
        stage.start()
        stage.finish()
        stage.expect_sound(digest)
        below = steps_of(tmp_path / "safe" / "kills")
        assert below[-1] == STEPS
        assert 1 <= len(below) <= 3
        above = steps_of(tmp_path / "fast" / "kills")
        assert above[-2:] == [STEPS - 10, STEPS]
        assert len(above) <= 4  # one on its way and one that waited are held until the commit that follows
        assert (drain_of(stage)["step"], drain_of(stage)["is_complete"]) == (STEPS, True)
        assert stage.events("Drained")
        assert not stage.events("DrainFailed")


def test_a_lost_first_store_is_filled_from_the_second_and_the_run_ends_as_if_nothing_had_been(
    tmp_path: Path, digest: object
) -> None:
    with stage_of(tmp_path, drained(tmp_path)) as stage:
        stage.start()
        stage.until_event("Drained", 2)
        assert stage.process is not None
        stage.process.kill()
        stage.wait()
        stage.expect_no_process()  # the drain process too
        shutil.rmtree(tmp_path / "fast")
        below = steps_of(tmp_path / "safe" / "kills")
        stage.start()
        stage.finish()
        stage.expect_sound(digest)
        (fetched,) = stage.events("Fetched")
        assert f"step {below[-1]} " in str(fetched["message"])
        restored = [
            event for event in stage.events("Restored") if f"stands at step {below[-1]}" in str(event["message"])
        ]
        assert restored
        assert steps_of(tmp_path / "safe" / "kills")[-1] == STEPS


def test_a_second_store_that_takes_nothing_leaves_the_run_unfinished_where_only_it_is_durable(
    tmp_path: Path, digest: object
) -> None:
    safe = tmp_path / "safe" / "kills"
    with stage_of(tmp_path, drained(tmp_path, more=", limit: 2s", durable="drain")) as stage:
        stage.start()
        stage.until_event("Placed")
        stage.until(lambda: (safe / "owner" / "run.json").exists(), "the second store")
        hidden = tmp_path / "away"
        safe.rename(hidden)
        safe.write_text("a file stands where the store was")
        assert stage.wait() == NOT_FINISHED, stage.told()
        assert "code: not-durable" in stage.told()
        assert stage.events("DrainFailed")
        assert drain_of(stage)["is_complete"] is False
        safe.unlink()
        hidden.rename(safe)
        finish_draining(stage)
        stage.expect_sound(digest)
        assert steps_of(safe)[-1] == STEPS
        assert "step" in drain_of(stage)


def finish_draining(stage: KillStage) -> None:
    """The same command until the last checkpoint is below, as it tells: a busy machine may need more than one limit."""
    stage.start()
    while stage.wait() == NOT_FINISHED:
        assert "hint: the same command tries again to drain it" in stage.told()
        stage.start()
    stage.finish()


def test_a_run_that_was_killed_in_its_last_drain_goes_on_from_an_older_checkpoint_where_no_other_is_left(
    tmp_path: Path, digest: object
) -> None:
    """What the kill leaves: a journal that calls the run succeeded, no summary, and an older checkpoint below."""
    with stage_of(tmp_path, drained(tmp_path)) as stage:
        stage.start()
        stage.finish()
        (stage.directory / "summary.json").unlink()
        shutil.rmtree(tmp_path / "fast")
        (tmp_path / "safe" / "kills" / commit_key(Step(STEPS))).unlink()
        below = steps_of(tmp_path / "safe" / "kills")[-1]
        stage.start()
        stage.finish()
        stage.expect_sound(digest)
        assert [event["step"] for event in stage.events("RunSucceeded")] == [STEPS, STEPS]
        assert f"stands at step {below}" in str(stage.events("Restored")[-1]["message"])
        assert steps_of(tmp_path / "safe" / "kills")[-1] == STEPS


def test_two_runs_do_not_drain_into_one_place(tmp_path: Path) -> None:
    with stage_of(tmp_path / "one", drained(tmp_path)) as stage:
        stage.start()
        stage.finish()
    other = drained(tmp_path).replace(str(tmp_path / "fast"), str(tmp_path / "other"))
    with staged(folder=tmp_path / "two", text=other) as stage:
        stage.start()
        assert stage.wait() == 1
        assert f"code: {OWNED}" in stage.told()
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("within", ["", "kills/second"])
def test_a_second_store_that_is_the_first_by_another_name_or_lies_within_it_is_refused(
    tmp_path: Path, within: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "fast")
    text = drained(tmp_path).replace(str(tmp_path / "safe"), str(tmp_path / "link" / within))
    with staged(folder=tmp_path, text=text) as stage:
        stage.start()
        assert stage.wait() == 2
        assert "code: drain-same" in stage.told()


def test_a_run_drains_to_a_real_server_though_its_process_is_killed_and_comes_back_from_there(
    tmp_path: Path, digest: object, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in(monkeypatch, s3)
    url = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    text = drained(tmp_path).replace(str(tmp_path / "safe"), url)
    with stage_of(tmp_path, text) as stage:
        stage.start()
        stage.until(lambda: stage.living("drain"), "a drain process")
        stage.kill(stage.living("drain")[0])
        stage.until_event("Drained")
        assert stage.process is not None
        stage.process.kill()
        stage.wait()
        stage.expect_no_process()
        shutil.rmtree(tmp_path / "fast")
        stage.start()
        stage.finish()
        stage.expect_sound(digest)
        assert stage.events("Fetched")
        with closing(open_store(f"{url}/kills")) as below:
            newest = commits(below)[-1]
            assert newest.step == STEPS
            assert verify(below, newest, threads=2, deep=True).is_intact


def test_two_interrupts_end_a_run_that_waits_for_its_last_drain(tmp_path: Path) -> None:
    with stage_of(tmp_path, drained(tmp_path, more=", rate: 1B")) as stage:
        stage.start()
        stage.until(lambda: "draining the checkpoint" in stage.told(), "the last drain")
        assert stage.process is not None
        stage.process.send_signal(signal.SIGINT)
        stage.until(lambda: "once more" in stage.told(), "an answer")
        stage.process.send_signal(signal.SIGINT)
        assert stage.wait() == INTERRUPTED, stage.told()
        stage.expect_no_process()
        assert steps_of(tmp_path / "fast" / "kills")[-1] == STEPS
