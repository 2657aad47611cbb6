"""Faults that give no sign but silence or a wrong bit: a frozen node, a hung rank, a checkpoint damaged on disk."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fault.kill_stage import KillStage, spec, staged, undisturbed

STEPS = 150


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> object:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), spec(steps=STEPS))


def drilled(folder: Path, *drills: str, **more: object) -> AbstractContextManager[KillStage]:
    arguments = ["--runtime", "process", *(word for drill in drills for word in ("--drill", drill))]
    text = spec(steps=STEPS, step_ms=20, **more)  # type: ignore[arg-type]
    return staged(folder, text, arguments=arguments)


def test_a_frozen_node_is_told_by_its_missing_beats_alone(tmp_path: Path, digest: object) -> None:
    with drilled(tmp_path, "freeze node 0 at step 30", "freeze node 1 at step 30") as stage:
        stage.start()
        stage.finish()
        lost = [str(event["message"]) for event in stage.events("Evicted", "NodeLost")]
        assert any("silent" in message or "beat" in message for message in lost), stage.told()
        stage.expect_sound(digest)


def test_a_hung_rank_is_stopped_and_its_log_says_where_it_hung(tmp_path: Path, digest: object) -> None:
    with drilled(tmp_path, "hang rank 0 at step 30", floors="step: 2s, first_step: 60s") as stage:
        stage.start()
        stage.finish()
        assert any("no step for" in str(event["message"]) for event in stage.events("Starting")), stage.told()
        silences = re.findall(r"no step for ([\d.]+) s at step \d+ \(step\)", str(stage.events("Hung")))
        assert [seconds for seconds in silences if float(seconds) >= 2], stage.told()
        logs = [path.read_text() for path in (stage.directory / "logs/attempt-0001").iterdir()]
        assert any(re.search(r'File ".*counter\.py", line \d+ in main', log) for log in logs)
        stage.expect_sound(digest)


def test_a_bit_flipped_in_the_newest_checkpoint_is_found_when_the_disk_is_read(tmp_path: Path, digest: object) -> None:
    """Memory hides the damage for as long as it lasts, so the run process dies after it."""
    with drilled(tmp_path, "corrupt newest checkpoint at step 60", every=50) as stage:
        stage.start()
        stage.until_event("Drill")
        stage.until(stage.is_damaged, "a flipped bit")
        assert stage.process is not None
        stage.process.kill()
        stage.resume()
        stage.finish()
        assert stage.events("Rejected"), stage.told()
        stage.expect_sound(digest)
