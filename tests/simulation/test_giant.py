"""Giant runs, in short: faults at their rate, repairs with their tail, a ledger that closes, one history per seed."""

from __future__ import annotations

import statistics
from random import Random

import pytest

from behemoth.reconcile.journal import audit, decode_lines
from behemoth.simulation.faults import HOUR_US, RSC1_RATE, FaultModel
from behemoth.simulation.report import quantile_us, report_of
from behemoth.simulation.scenario import giant


def test_repairs_have_the_published_median_and_mean() -> None:
    rng = Random(1)
    hours = [FaultModel().repair_us(rng) / HOUR_US for _ in range(200_000)]
    assert statistics.median(hours) == pytest.approx(20, rel=0.03)
    assert statistics.fmean(hours) == pytest.approx(133, rel=0.15)


def test_faults_come_at_their_rate_wherever_there_is_something_to_break() -> None:
    report = report_of(giant(num_nodes=400, num_days=40, seed=3))
    expected = RSC1_RATE * 400 * 40 / 1_000
    assert sum(report.num_faults.values()) == pytest.approx(expected, rel=0.3)


def test_a_giant_run_survives_its_faults_and_its_ledger_closes() -> None:
    report = report_of(giant(num_nodes=1_000, num_days=10, seed=1))
    assert report.num_attempts > 30
    assert report.buckets.total == report.wall_us * report.num_ranks
    assert 0.9 < report.effective_share < 1.0
    assert report.num_refused == 0


def test_one_seed_is_one_history_byte_for_byte() -> None:
    journals: list[list[bytes]] = [[], []]
    for journal in journals:
        giant(num_nodes=60, num_days=3, seed=5, rate=100.0, journal=journal)
    assert journals[0] == journals[1]
    assert audit(decode_lines(b"".join(journals[0]))) == []


def test_another_seed_is_another_history() -> None:
    runs = [report_of(giant(num_nodes=60, num_days=3, seed=seed, rate=100.0)) for seed in (1, 2)]
    assert runs[0].buckets != runs[1].buckets


def test_a_mean_below_the_median_is_no_repair_time() -> None:
    with pytest.raises(ValueError, match="expected a mean"):
        FaultModel(repair_median_us=2, repair_mean_us=1)


def test_a_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        quantile_us([], 0.99)
