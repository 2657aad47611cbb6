"""`behemoth ckpt diff`: codes, rows and documents."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from behemoth.checkpoint import diff as comparison
from behemoth.checkpoint.diff import ArrayDiff, Side, diff
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import open_commit
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore
from behemoth_cli import root
from behemoth_cli.out.table import Page
from behemoth_cli.views.difference import diff_page
from checkpoint import checkpoint_rig
from checkpoint.saved_checkpoint import save, small_layout
from command_line.cli_rig import matches_golden, on_screen, piped


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Steps 10 and 20 hold the same, step 30 something else."""
    with closing(LocalStore(tmp_path / "store")) as store:
        for step, seed in ((10, 1), (20, 1), (30, 2)):
            save(store, small_layout(), step=step, write_id=f"a1-{step}", seed=seed)
    return tmp_path / "store"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", "diff", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_same_state_ends_with_0_and_another_with_3(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, str(place), "10", "20")
    assert (code, text) == (0, "checkpoint/10 (a1-10) and checkpoint/20 (a1-20) are the same\n")
    code, text, _ = run(capsys, str(place), "10", "30")
    assert code == 3
    assert text.splitlines()[0] == "checkpoint/10 (a1-10) and checkpoint/30 (a1-30) differ in 4 of 4 arrays"
    assert [line.split()[0] for line in text.splitlines()[3:]] == ["model/norm", "model/w", "optim/m", "state/count"]
    assert len(run(capsys, str(place), "10", "20", "-o", "wide")[1].splitlines()) == 7


def test_a_checkpoint_that_retention_deletes_while_it_is_compared_is_not_called_damaged(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diff_late(one: Side, two: Side, **how: Any) -> tuple[ArrayDiff, ...]:
        execute(one.store, plan_gc(one.store, drop=[one.commit.record]))
        return diff(one, two, **how)

    monkeypatch.setattr(comparison, "diff", diff_late)
    code, text, told = run(capsys, str(place), "10", "30")
    assert (code, text) == (102, "")
    assert "error: checkpoint/10: expected it to stay while it was read, got it deleted" in told
    assert "code: checkpoint-gone" in told


def test_the_second_one_may_lie_in_another_store(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(LocalStore(tmp_path / "other")) as store:
        save(store, small_layout(), step=70, write_id="a9-1", seed=2)
    assert run(capsys, str(place), "30", "70", "--in", str(tmp_path / "other"))[0] == 0
    code, text, _ = run(capsys, str(place), "10", "70", "--in", str(tmp_path / "other"), "-o", "json")
    document = json.loads(text)
    assert (code, document["isSame"], document["numSame"], document["numArrays"]) == (3, False, 0, 4)
    assert document["second"] == {"step": 70, "writeId": "a9-1", "run": "test"}


def test_a_step_that_is_not_there_is_not_found_and_damage_is_unhealthy(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = run(capsys, str(place), "10", "15")
    assert (code, "there are checkpoints of step 10, 20, 30" in told) == (102, True)
    shard = place / "steps/000000030-a1-30/model/w/c/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    code, _, told = run(capsys, str(place), "10", "30")
    assert (code, "array 'model/w', chunk 0" in told) == (3, True)


def figures() -> tuple[ArrayDiff, ...]:
    """One array of each kind of difference, found by the engine itself."""
    before: dict[str, npt.NDArray[Any]] = {
        "a/gone": np.ones(3, np.float32),
        "b/same": np.ones(3, np.float32),
        "c/changed": np.array([1, 2, np.nan, 4], np.float32),
        "d/infinite": np.array([1, 2], np.float64),
        "e/retyped": np.ones(2, np.float32),
    }
    after: dict[str, npt.NDArray[Any]] = {
        "b/same": before["b/same"],
        "c/changed": np.array([1, 2.5, 3, 5], np.float32),
        "d/infinite": np.array([1, np.inf], np.float64),
        "e/retyped": np.ones(2, np.float64),
        "f/new": np.ones((), np.int8),
    }
    sides = []
    for arrays in (before, after):
        specs = (ArraySpec(name=name, dtype=each.dtype.name, shape=each.shape) for name, each in arrays.items())
        store = MemoryStore()
        record = checkpoint_rig.save(store, Layout(mesh=Mesh(), arrays=tuple(specs)), arrays, step=1)
        sides.append(Side(store=store, commit=open_commit(store, record.ref)))
    return diff(sides[0], sides[1], threads=1)


def page(*, is_full: bool) -> Page:
    records = []
    for step in (10, 30):
        record = save(MemoryStore(), small_layout(), step=step, write_id=f"a1-{step}")
        assert record is not None
        records.append(record)
    return diff_page(figures(), records[0], records[1], is_full=is_full)


def test_differences_for_a_pipe_a_terminal_and_a_script() -> None:
    matches_golden(piped(page(is_full=False)), "diff.txt")
    matches_golden(piped(page(is_full=True), "wide"), "diff.wide.txt")
    matches_golden(on_screen(page(is_full=False), 110), "diff.terminal.txt")
    matches_golden(piped(page(is_full=False), "json"), "diff.json")
    json.loads(piped(page(is_full=False), "json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
