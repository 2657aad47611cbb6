"""`behemoth plan`: what a save costs, on a page and as a document, and what it refuses."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from behemoth.checkpoint import forecast as forecasts
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.loads import loads
from behemoth.checkpoint.model_layout import model_layout
from behemoth.checkpoint.scale_waves import NODE_KEPT_BYTES
from behemoth.checkpoint.uploads import plan_uploads
from behemoth.spec.decode import decode_run
from behemoth.spec.model import named_inventory
from behemoth.storage import mounts
from behemoth_cli import root
from behemoth_cli.exits import Exit
from command_line.cli_rig import NUMPY_RUN, matches_golden
from command_line.test_bad_input import refused

BEHEMOTH_RUN = NUMPY_RUN.with_name("behemoth.yaml")
NAMES = ("bytes_per_rank", "objects", "parts", "requests", "metadata_bytes", "staging_bytes", "seconds", "over_read")


def scout_run(folder: Path) -> Path:
    file = folder / "scout.yaml"
    text = NUMPY_RUN.read_text().replace("count: 2", "count: 32").replace("gpus_per_node: 1", "gpus_per_node: 8")
    mesh = "  model: {ref: scout}\n  mesh: {tp: 8, pp: 2, dp: 16, etp: 1, ep: 16, edp: 8}\n"
    file.write_text(text.replace("  mesh:\n    dp: 2\n", mesh))
    return file


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert root.run(["plan", "-f", *arguments]) == Exit.OK
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(told(capsys, *arguments, "-o", "json"))
    return found


def test_a_plan_says_what_a_save_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matches_golden(told(capsys, str(scout_run(tmp_path))), "plan.save.txt")


def test_a_rate_below_one_request_a_second_is_not_called_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, str(scout_run(tmp_path)), "--bandwidth", "store=10MB/s")
    assert re.search(r"rate: .* requests/s, 0\.\d+ for the busiest array", text)


def test_a_plan_is_made_offline_also_of_a_run_that_saves_to_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = scout_run(tmp_path)
    file.write_text(file.read_text().replace("  checkpoint:\n", "  checkpoint:\n    store: s3://bucket/prefix\n"))

    def ask(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a plan has asked the network")

    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    assert "s3://bucket/prefix" in told(capsys, str(file), "--restore-mesh", "tp=4,pp=2,dp=32,ep=16,edp=8")


def test_a_document_has_the_numbers_of_the_save_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = scout_run(tmp_path)
    run = decode_run(file.read_bytes())
    layout = model_layout(named_inventory("scout"), run.recipe, run.mesh)
    written, uploads = loads(layout).written_bytes, plan_uploads(replace(layout, sharding="box"))
    found = document(capsys, str(file))
    assert found["bytes_per_rank"] == {"min": written.min(), "mean": written.mean(), "max": written.max()}
    num_metadata = found["files"] - len(layout.arrays)  # type: ignore[operator]
    assert found["objects"] == uploads.num_objects + num_metadata
    assert found["requests"] == uploads.num_requests + num_metadata
    assert set(found["seconds"]) == {"memory", "peer", "local_disk", "disk", "store"}  # type: ignore[call-overload]
    assert len(found["ranks"]) == 256  # type: ignore[arg-type]


def test_told_stages_change_what_ranks_write_and_stand_among_the_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = scout_run(tmp_path)
    even = document(capsys, str(file))["bytes_per_rank"]
    file.write_text(file.read_text().replace("  mesh: {tp", "  pipeline: {layers: [20, 28]}\n  mesh: {tp"))
    told_bytes = document(capsys, str(file))["bytes_per_rank"]
    assert told_bytes["mean"] == even["mean"]  # type: ignore[index]
    assert told_bytes["max"] > 1.1 * even["max"]  # type: ignore[index]
    assert re.search(r"pipeline: +layers 20, 28\n", told(capsys, str(file)))
    other = document(capsys, str(file), "--restore-mesh", "tp=8,pp=4,dp=8,ep=16,edp=4")  # of other stages: evenly
    assert other["over_read"] is not None


def test_a_document_of_the_reference_behemoth_has_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, str(BEHEMOTH_RUN))
    assert found["bytes"] == 12 * 2_015_461_958_144
    assert [name for name in NAMES if found.get(name) is None] == []
    assert found["numRanks"] == 32_000


def test_rates_prices_and_the_mesh_that_restores_are_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(scout_run(tmp_path))
    plain = document(capsys, file)
    other = document(
        capsys,
        file,
        "--bandwidth",
        "disk=4GB/s",
        "--bandwidth",
        "store=100MB",
        "--price",
        "10",
        "--restore-mesh",
        "ep=8,tp=8",
    )
    assert other["seconds"]["disk"] == plain["seconds"]["disk"] / 2  # type: ignore[index]
    assert other["seconds"]["store"] == plain["seconds"]["store"] * 2  # type: ignore[index]
    assert other["seconds"]["memory"] == plain["seconds"]["memory"]  # type: ignore[index]
    assert other["price_usd"] == 2 * plain["price_usd"]  # type: ignore[operator]
    assert other["requests_per_s"] == plain["requests_per_s"] / 2  # type: ignore[operator]
    assert other["over_read_alone"] < plain["over_read_alone"]  # type: ignore[operator]


def test_several_meshes_that_restore_have_a_row_each_beside_a_save_that_is_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, of_save = str(scout_run(tmp_path)), forecasts.forecast
    alone = [document(capsys, file, "--restore-mesh", mesh) for mesh in ("tp=4,pp=2,dp=32,ep=8,edp=16", "dp=1")]
    saves: list[object] = []

    def counted(layout: Layout, **named: Any) -> forecasts.Forecast:
        saves.append(layout)
        return of_save(layout, **named)

    monkeypatch.setattr(forecasts, "forecast", counted)
    options = ("--restore-mesh", "tp=4,pp=2,dp=32,ep=8,edp=16", "--restore-mesh", "dp=1")
    both = document(capsys, file, *options)
    assert len(saves) == 1
    assert both == {**alone[0], "restores": [one for lone in alone for one in lone["restores"]]}  # type: ignore[attr-defined]
    for lone in alone:
        found: dict[str, object] = lone["restores"][0]  # type: ignore[index]
        assert {"mesh", "over_read", "over_read_alone"} < found.keys()
        assert found == {name: lone[name] for name in found if name != "mesh"} | {"mesh": found["mesh"]}
    matches_golden(told(capsys, file, *options), "plan.restores.txt")


def test_copies_keep_to_the_rates_of_the_run_and_to_those_that_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = scout_run(tmp_path)
    free = document(capsys, str(file))
    limits = "    peer_rate: 1GB\n    local_disk: {path: /nvme, rate: 500MB}\n"
    file.write_text(file.read_text().replace("  checkpoint:\n", "  checkpoint:\n" + limits))
    limited = document(capsys, str(file))
    slow = document(capsys, str(file), "--bandwidth", "local_disk=250MB/s")
    assert limited["seconds"]["peer"] == 10 * free["seconds"]["peer"]  # type: ignore[index]
    assert limited["seconds"]["local_disk"] == 4 * free["seconds"]["local_disk"]  # type: ignore[index]
    assert slow["seconds"]["local_disk"] == 8 * free["seconds"]["local_disk"]  # type: ignore[index]
    assert limited["local_disk"] == free["local_disk"]
    disk = free["local_disk"]
    assert disk["capacity_bytes"] == 2 * disk["copied_bytes"]  # type: ignore[index]


def test_a_generator_of_another_recipe_reads_masters_alone_and_converts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole blocks of bfloat16, made of float32 masters: each rank reads its chunks and hardly more."""
    served = "weights=bfloat16,master=none,exp_avg=none,exp_avg_sq=none,shares=whole"
    file, mesh = str(scout_run(tmp_path)), "tp=8,dp=8,ep=8,edp=8"
    all_of_it = document(capsys, file, "--restore-mesh", mesh)
    found = document(capsys, file, "--restore-mesh", mesh, "--restore-recipe", served)
    assert found["over_read"] == pytest.approx(1, abs=1e-5)
    assert found["over_read_alone"] < 1.2 < all_of_it["over_read_alone"]  # type: ignore[operator]


def test_a_plan_tells_whether_nodes_read_together_and_what_it_costs_when_they_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights whole on each of 16 replicas: ranks that read for themselves read them 16 times."""
    monkeypatch.setattr(mounts, "MOUNTINFO", str(tmp_path / "missing"))
    file, whole = scout_run(tmp_path), ("--restore-recipe", "exp_avg=none,exp_avg_sq=none,shares=whole")
    text = file.read_text()
    for written, is_shared in (
        ("", False),
        ("    share_reads: always\n", True),
        ("    store: s3://bucket/run\n", True),
        ("    store: s3://bucket/run\n    share_reads: never\n", False),
    ):
        file.write_text(text.replace("  checkpoint:\n", f"  checkpoint:\n{written}"))
        found = document(capsys, str(file), *whole)
        assert (found["reads_shared"], found["over_read"]) == (is_shared, pytest.approx(1, abs=1e-5))
        assert 8 < found["over_read_fleet_alone"] < 17  # type: ignore[operator]
        assert 1 <= found["over_read_alone"] <= found["over_read_worst"]  # type: ignore[operator]
        page = told(capsys, str(file), *whole)
        assert ("; this run shares reads" in page, "; this run's ranks do" in page) == (is_shared, not is_shared)


def test_a_plan_tells_that_nodes_read_a_directory_together_that_lies_on_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As this machine has it mounted; a run that names no store keeps it below the folder in which it is started."""
    (tmp_path / "common").mkdir()
    lines = tmp_path / "mountinfo"
    lines.write_text(f"1 0 8:1 / / rw - ext4 disk rw\n2 1 0:2 / {tmp_path}/common rw - lustre any rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", str(lines))
    file = scout_run(tmp_path)
    text = file.read_text()
    for written, folder, is_shared in (
        (f"    store: {tmp_path}/common/run\n", tmp_path, True),
        ("    store: run\n", tmp_path, False),
        ("", tmp_path, False),
        ("", tmp_path / "common", True),
    ):
        monkeypatch.chdir(folder)
        file.write_text(text.replace("  checkpoint:\n", f"  checkpoint:\n{written}"))
        assert document(capsys, str(file))["reads_shared"] is is_shared


def test_a_restore_to_float8_is_counted_with_the_search_for_its_scales(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(scout_run(tmp_path))
    served = "master=none,exp_avg=none,exp_avg_sq=none,shares=whole"
    blocks, tensors = (
        document(capsys, file, "--restore-recipe", f"weights=float8_e4m3fn,scale_block={block},{served}")
        for block in (128, 1 << 30)
    )
    assert blocks["over_read"] == tensors["over_read"] == pytest.approx(1, abs=1e-5)
    assert blocks["over_read_alone"] < 1.5 < tensors["over_read_alone"]  # type: ignore[operator]
    assert 0 < tensors["restore_kept_bytes"] <= NODE_KEPT_BYTES  # type: ignore[operator]
    options = ("--restore-recipe", f"weights=float8_e4m3fn,scale_block={1 << 30},{served}")
    assert "of memory on a node at most, beside staging, until scales are known" in told(capsys, file, *options)
    assert "until scales are known" not in told(capsys, file)


def test_without_tensors_the_numbers_of_a_save_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, str(NUMPY_RUN))
    assert {name: found[name] for name in NAMES} == dict.fromkeys(NAMES)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--restore-mesh", "tp=5"], "--restore-mesh: tp: expected a divisor of 1024"),
        (["--restore-mesh", "tp=5"], "hint: change tp in tp=5; tp x cp x dp must stay equal to etp x ep x edp"),
        (["--restore-mesh", "dp=2", "--restore-mesh", "ep=3,dp=3"], "ep: expected a divisor of the model's 16 experts"),
        (["--restore-mesh", "tp=0"], "--restore-mesh: expected each axis once with its size, got 'tp=0'"),
        (["--restore-mesh", "dp=1000001"], "hint: write it as tp=4,pp=8,dp=500, sizes from 1 to 1000000; axes: tp, cp"),
        (["--restore-mesh", "dp=1000000,pp=8"], "--restore-mesh: expected at most 6400000 ranks, got 8"),
        (["--restore-mesh", "tp"], "--restore-mesh: expected each axis once with its size, got 'tp'"),
        (["--restore-recipe", "weights"], "--restore-recipe: expected each field once with its value, got 'weights'"),
        (["--bandwidth", "dsk=1GB"], "hint: did you mean disk?"),
        (
            ["--bandwidth", "disk=1GB", "--bandwidth", "disk=2GB"],
            "expected each of memory, peer, local_disk, disk, store once",
        ),
        (["--bandwidth", "disk=5"], "got '5' without a unit"),
        (["--bandwidth", "disk=0B/s"], "disk: expected at least 1B a second, got '0B'"),
        (["--bandwidth", "disk=0"], "hint: write it as disk=5GB/s; without the option a usual rate is assumed"),
        (["--price", "-1"], "--price"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], expected: str
) -> None:
    code, message = refused(capsys, "plan", "-f", str(scout_run(tmp_path)), *option)
    assert code == Exit.USAGE
    assert expected in message


def test_a_recipe_that_takes_two_steps_is_told_with_the_option_and_a_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = scout_run(tmp_path)
    split = "  recipe: {weights: bfloat16, master: split}\n  mesh: {tp: 8"
    file.write_text(file.read_text().replace("  mesh: {tp: 8", split))
    code, message = refused(capsys, "plan", "-f", str(file), "--restore-recipe", "weights=float16,master=none")
    assert code == Exit.USAGE
    assert message.startswith("error: option --restore-recipe: tensor '")
    assert "to make float16 from, got a split master\nhint: do it in two steps: to master=float32 first" in message


@pytest.mark.parametrize(
    "option",
    [["--restore-mesh", "dp=2"], ["--restore-recipe", "master=none"], ["--bandwidth", "disk=1GB"], ["--price", "0"]],
)
def test_an_option_without_effect_is_refused(capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    code, message = refused(capsys, "plan", "-f", str(NUMPY_RUN), *option)
    assert (code, "expected it with a model whose tensors are known" in message) == (Exit.USAGE, True)
