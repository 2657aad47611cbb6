"""`behemoth ckpt rehearse` on the checkpoint of a real run, and how it looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from behemoth.base.ids import Rank
from behemoth.checkpoint.rehearsal import RankRehearsal, Rehearsal
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from behemoth_cli import root
from behemoth_cli.views.rehearsal import rehearsal_page
from checkpoint.saved_checkpoint import save, small_layout
from command_line.cli_rig import TRAINED_STEPS, matches_golden, on_screen, piped


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "small" / "checkpoints"


def rehearse(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", "rehearse", "run/small", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("mesh", "num_ranks"), [("", 2), ("dp=2", 2), ("dp=3", 3), ("tp=2,dp=2", 4)])
def test_a_run_is_restored_on_its_own_mesh_and_on_others(
    capsys: pytest.CaptureFixture[str], mesh: str, num_ranks: int
) -> None:
    code, out, err = rehearse(capsys, *(["--mesh", mesh] if mesh else []), "-o", "json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["kind"], told["step"], told["isIntact"]) == ("RestoreRehearsal", TRAINED_STEPS, True)
    assert [one["rank"] for one in told["ranks"]] == list(range(num_ranks))
    assert told["isOwnMesh"] == (mesh in ("", "dp=2"))
    assert told["readBytes"] == sum(one["readBytes"] for one in told["ranks"]) > told["heldBytes"] > 0
    assert told["slowestRank"] in range(num_ranks)


def test_a_newest_checkpoint_whose_record_is_damaged_is_an_alarm_and_no_older_one_is_rehearsed_for_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = place / "commits" / f"{TRAINED_STEPS:09d}.json"
    record.write_bytes(record.read_bytes()[:-9])
    code, out, err = rehearse(capsys)
    assert (code, out) == (3, "")
    assert f"error: commits/{TRAINED_STEPS:09d}.json: commit record of" in err


def test_damage_is_told_by_rank_and_ends_with_3(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shard,) = (place / "steps").glob(f"{TRAINED_STEPS:09d}-*/model/table/c/0/0")
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    code, out, _ = rehearse(capsys, "--ranks", "1")
    assert code == 3
    assert out.startswith(f"checkpoint/{TRAINED_STEPS} not restored, and thrown away\n")
    assert "array 'model/table', chunk 0, file steps/" in out.splitlines()[-1]
    assert "ranks:    1 of 2 (1)," in out


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--ranks", "0-2"), 2, "option --ranks: expected ranks below 2, the world of the mesh, got 2"),
        (("--ranks", "x"), 2, "option --ranks: expected a list of ranks, got 'x'"),
        (("--mesh", "tp=2,ep=3"), 2, "option --mesh: mesh: expected tp x cp x dp to equal"),
        (("--step", "3"), 102, "code: checkpoint-not-found"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, text: str
) -> None:
    got, out, err = rehearse(capsys, *arguments)
    assert (got, out) == (code, "")
    assert text in err


def test_a_rehearsal_for_a_pipe_a_terminal_and_a_script() -> None:
    record = save(MemoryStore(), small_layout(), step=7, write_id="a1-7")
    assert record is not None
    damage = "array 'model/w', chunk 1, file steps/000000007-a1-7/model/w/c/0/0: expected CRC-32C 1, got 2"
    ranks = (
        RankRehearsal(rank=Rank(0), held_bytes=3 << 30, read_bytes=4 << 30, seconds=2.0, damage=""),
        RankRehearsal(rank=Rank(1), held_bytes=1 << 30, read_bytes=0, seconds=0.5, damage=damage),
    )
    page = rehearsal_page(record, Mesh(dp=4, edp=4), Rehearsal(ranks=ranks), open_s=0.25)
    matches_golden(piped(page), "rehearsal.txt")
    matches_golden(on_screen(page, 90), "rehearsal.terminal.txt")
    matches_golden(piped(page, "json"), "rehearsal.json")
    own = rehearsal_page(record, record.mesh, Rehearsal(ranks=ranks[:1]), open_s=0.25)
    matches_golden(piped(own), "rehearsal.own.txt")
