"""Benchmarks print rows of the agreed shape, and read a run's ledger right. Their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import recover
from bench_table import FORMAT_VERSION, Row

BENCH = Path(__file__).parent / "bench"
STRUCK_US = 1_000_000_000


def rows_of(name: str, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(BENCH / f"{name}.py"), "--quick", "-o", "json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["version"], document["benchmark"], document["quick"]) == (FORMAT_VERSION, name, True)
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def check_shape(rows: list[dict[str, Any]]) -> None:
    assert rows
    for row in rows:
        assert list(row) == [field.name for field in fields(Row)]
        assert row["ours_low"] <= row["ours"] <= row["ours_high"]
        assert (row["peer"] is None) == (row["ratio"] is None)
        assert row["num_samples"] >= 1


def test_the_command_lines_benchmark_prints_a_row_per_command() -> None:
    rows = rows_of("cli")
    check_shape(rows)
    assert rows[0]["metric"].startswith("behemoth --help")


@pytest.mark.longer
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simulate", ()),
        ("coordinator", ("--agents", "60")),
        ("reshard", ("--rounds", "1")),
        ("torch_dcp", ()),
        ("checkpoint_s3", ("--rounds", "1")),
        ("checkpoint_local", ("--rounds", "1", "--only", "memory-tier", "raw-tmpfs", "blocking")),
    ],
)
def test_other_cheap_benchmarks_print_rows_of_the_same_shape(name: str, options: tuple[str, ...]) -> None:
    check_shape(rows_of(name, *options))


@pytest.mark.longer
def test_the_tiers_benchmark_tells_of_each_tier_what_it_reads_of_the_store() -> None:
    rows = rows_of("restore_tiers")
    check_shape(rows)
    start = "store bytes / needed, from "
    found = {row["metric"].removeprefix(start): row["ours"] for row in rows if row["metric"].startswith(start)}
    once = pytest.approx(1, abs=0.01)
    assert found == {"own memory": 0, "a peer": 0, "own disk": 0, "disk, cached": once, "disk, cold": once}
    assert {row["unit"] for row in rows if row["metric"] == "restore from own disk"} == {"s", "GB/s"}


def fault(*, at_s: float, detect_s: float) -> dict[str, Any]:
    """A row of summary.json whose first sign was `at_s` after the first drill."""
    return {
        "at_us": STRUCK_US + round(at_s * 1e6),
        "detect_s": detect_s,
        "restart_s": 0.125,
        "restore_s": 0.25,
        "to_first_step_s": detect_s + 0.5,
        "to_regained_s": detect_s + 2.0,
        "reason": "a drill",
    }


def drill_events(spacing_s: float) -> list[dict[str, Any]]:
    return [
        {"reason": "Drill", "message": sentence, "at_us": STRUCK_US + round(number * spacing_s * 1e6)}
        for number, (_, sentence) in enumerate(recover.DRILLS)
    ]


def test_recovery_counts_from_the_strike_although_the_ledger_begins_at_the_last_step() -> None:
    faults = [fault(at_s=number * 100 - 0.5, detect_s=1.0) for number in range(len(recover.DRILLS))]
    found = recover.read_recoveries({"faults": faults}, drill_events(100))
    assert [one.kind for one in found] == [kind for kind, _ in recover.DRILLS]
    assert found[0].phases == pytest.approx({"detect": 0.5, "restart": 0.125, "restore": 0.25, "first_step": 0.125})
    assert (found[0].next_step, found[0].regained) == pytest.approx((1.0, 2.5))
    assert sum(found[0].phases.values()) == pytest.approx(found[0].next_step)


def test_a_drill_without_a_fault_ends_the_benchmark() -> None:
    faults = [fault(at_s=number * 100, detect_s=0.1) for number in range(len(recover.DRILLS)) if number != 1]
    with pytest.raises(SystemExit, match="a row of the ledger for each drill, got none for node"):
        recover.read_recoveries({"faults": faults}, drill_events(100))


def test_a_step_of_the_old_attempt_after_the_kill_is_no_recovery() -> None:
    steps = [(1, 10.0), (2, 11.0), (3, 12.0), (2, 20.0), (3, 21.0), (4, 22.0)]
    found = recover._peer_recovery(steps, killed_s=11.5)
    assert (found.next_step, found.regained) == pytest.approx((8.5, 9.5))
