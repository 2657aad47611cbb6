"""A whole run loses its power: leader, agents and workers at once. Every node restores from its own disk, the end is
that of a run that nobody disturbed, and then nothing is left on the disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fault.held_steps import ranks_on_disk
from fault.kill_stage import KillStage, spec, staged, undisturbed


def of_two(text: str) -> str:
    """Without a spare, which might come back before one of the two and take its slot."""
    return text.replace("spares: 1", "spares: 0")


def lose_power(stage: KillStage, disk: Path) -> None:
    """Once every rank has the first commit on its disk, seconds before the next."""
    stage.until_event("Committed")
    stage.until(lambda: any(len(ranks) == 2 for ranks in ranks_on_disk(stage, disk).values()), "a file of every rank")
    for found in stage.living("run", "agent", "store"):
        stage.kill(found)


def test_a_run_that_lost_all_its_memory_goes_on_from_the_disks_of_its_nodes_and_leaves_nothing_there(
    tmp_path: Path,
) -> None:
    digest = undisturbed(tmp_path / "undisturbed", of_two(spec(steps=160, every=80, step_ms=0)))
    disk = tmp_path / "disk"
    text = of_two(spec(steps=160, every=80, step_ms=50, checkpoint=f"local_disk: {{path: {disk}}}"))
    with staged(tmp_path / "struck", text) as stage:
        stage.start()
        lose_power(stage, disk)
        summary = stage.finish()
        stage.expect_sound(digest)
    (restore,) = summary["restores"]
    # The rank that is restored last may find what both hold alike in the other's memory already.
    assert (restore["num_from_memory"], restore["num_from_peer"], restore["num_from_store"]) == (0, 0, 0)
    assert restore["num_from_disk"] >= 1
    assert (restore["store_bytes"], restore["missed"]) == (0, "")
    assert restore["disk_bytes"] > 0
    (told,) = [event["message"] for event in stage.events("Restored") if "memory" in str(event["message"])]
    assert f"0 of 2 ranks from memory, {restore['num_from_disk']} from the node's own disk" in str(told)
    assert "the store" not in str(told)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("within", ["run/checkpoints", "run/checkpoints/disk"])
def test_a_disk_that_lies_within_the_store_is_refused(tmp_path: Path, within: str) -> None:
    text = spec(steps=10, checkpoint=f"local_disk: {{path: {tmp_path / within}}}")
    with staged(tmp_path, text) as stage:
        stage.start()
        assert stage.wait() == 2
        assert "code: disk-in-store" in stage.told()
        assert f"expected a place outside {tmp_path}/run/checkpoints" in stage.told()


def test_a_program_that_saves_more_than_the_disk_may_take_is_refused_with_the_numbers(tmp_path: Path) -> None:
    text = spec(steps=10, checkpoint=f"local_disk: {{path: {tmp_path / 'disk'}, budget: 8KiB}}")
    with staged(tmp_path, text) as stage:
        stage.start()
        assert stage.wait() != 0
        (told,) = {str(event["message"]) for event in stage.events("ProgramRefused")}
        assert "own disk: expected at most 8KiB on a node, got" in told
        assert "2 files of each of 1 ranks" in told
        assert not (tmp_path / "disk").exists()
