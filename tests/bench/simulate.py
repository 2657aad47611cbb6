"""The brain on 4,000 nodes for 54 virtual days: the very fold and decide of production on the discrete-event body.

Goals: the whole run in at most 5 s on one core, a mean decision in at most 50 us, and a time per event that grows at
most 1.5 times from 400 to 4,000 nodes. The peer is a brain that rebuilds its indexes by a full scan each time.
Times are CPU time of this thread, which other processes do not stretch much.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import bench_table
import msgspec

from behemoth.reconcile.decide import decide
from behemoth.simulation.body import Brain
from behemoth.simulation.faults import LLAMA3_RATE, RSC1_RATE
from behemoth.simulation.report import Report, quantile_us, report_of
from behemoth.simulation.scenario import giant
from behemoth.state.decision import Decision
from behemoth.state.observation import Observation, indexes_of

SMALL, LARGE = 400, 4_000
GOAL_RUN_S, GOAL_DECIDE_US, GOAL_GROWTH = 5.0, 50.0, 1.5


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One run: CPU seconds without the stopwatch, and each decision's time with it."""

    report: Report
    cpu_s: float
    decide_ns: list[int]

    @property
    def us_per_event(self) -> float:
        return self.cpu_s * 1e6 / self.report.num_folded


def decide_by_scan(observation: Observation) -> Decision:
    """The same decision from indexes that were rebuilt by looking at every node."""
    return decide(msgspec.structs.replace(observation, **indexes_of(observation)))


def play(*, num_nodes: int, num_days: float, seed: int, rate: float = RSC1_RATE, brain: Brain | None = None) -> Timed:
    gc.collect()
    begin_s = time.process_time()
    plain = giant(num_nodes=num_nodes, num_days=num_days, seed=seed, rate=rate, brain=brain)
    cpu_s = time.process_time() - begin_s
    timed = giant(
        num_nodes=num_nodes, num_days=num_days, seed=seed, rate=rate, brain=brain, stopwatch_ns=time.thread_time_ns
    )
    return Timed(report=report_of(plain), cpu_s=cpu_s, decide_ns=timed.body.decide_ns.tolist())


def values_of(run: Timed) -> Mapping[str, float]:
    return {
        "run": run.cpu_s,
        "per event": run.us_per_event,
        "decide mean": statistics.fmean(run.decide_ns) / 1_000,
        "decide p99": quantile_us(run.decide_ns, 0.99),
    }


def main() -> int:
    options = bench_table.arguments(__doc__ or "")
    num_days, num_rounds = (4.0, 2) if options.quick else (54.0, 5)
    runs: dict[int, list[Mapping[str, float]]] = {SMALL: [], LARGE: []}
    last: Report | None = None
    for seed in range(num_rounds):
        for num_nodes in (SMALL, LARGE):
            run = play(num_nodes=num_nodes, num_days=num_days, seed=seed)
            runs[num_nodes].append(values_of(run))
            last = run.report
        print(f"round {seed + 1} of {num_rounds} done", file=sys.stderr, flush=True)
    if last is None:
        raise SystemExit("simulate: expected at least one round, got none")
    slower = play(num_nodes=LARGE, num_days=num_days, seed=0, rate=LLAMA3_RATE)
    rows = [*_rows(runs, num_days), bench_table.alone(f"CPU, rate {LLAMA3_RATE}", "s", [slower.cpu_s])]
    rows.extend(_scan_rows(num_rounds))
    bench_table.show("simulate", rows, options, notes=_notes(runs, last, num_days))
    return 0 if options.quick or _reaches_goals(runs) else 1


def _rows(runs: Mapping[int, list[Mapping[str, float]]], num_days: float) -> list[bench_table.Row]:
    rows = [
        bench_table.alone(
            f"CPU, {num_nodes} nodes, {num_days:g} days, rate {RSC1_RATE}", "s", [run["run"] for run in runs[num_nodes]]
        )
        for num_nodes in (SMALL, LARGE)
    ]
    for metric in ("decide mean", "decide p99", "per event"):
        large, small = ([run[metric] for run in runs[num_nodes]] for num_nodes in (LARGE, SMALL))
        rows.append(bench_table.beside(f"{metric}, {LARGE} nodes", "us", large, f"{SMALL} nodes", small))
    return rows


def _scan_rows(num_rounds: int) -> list[bench_table.Row]:
    """Both brains, in turns, on what is known after a day."""
    observation = giant(num_nodes=LARGE, num_days=1.0, seed=0).body.observation
    if observation is None:
        raise SystemExit("simulate: expected a run that was opened, got none")
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(10 * num_rounds):
        for samples, brain in ((ours, decide), (theirs, decide_by_scan)):
            begin_ns = time.thread_time_ns()
            brain(observation)
            samples.append((time.thread_time_ns() - begin_ns) / 1_000)
    return [bench_table.beside(f"one decide, {LARGE} nodes", "us", ours, "full scan", theirs)]


def _notes(runs: Mapping[int, list[Mapping[str, float]]], report: Report, num_days: float) -> list[str]:
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(report.num_faults.items()))
    total = report.buckets.total
    shares = ", ".join(
        f"{name} {100 * booked / total:.2f}%" for name, booked in msgspec.structs.asdict(report.buckets).items()
    )
    return [
        f"goals: {LARGE} nodes x {num_days:g} days <= {GOAL_RUN_S:g} s; mean decide <= {GOAL_DECIDE_US:g} us; "
        f"growth of time per event <= {GOAL_GROWTH:g}; {'reached' if _reaches_goals(runs) else 'NOT reached'}",
        f"last run: {report.num_folded} facts folded, {report.num_decided} decisions, {report.num_attempts} attempts, "
        f"{report.num_committed} commits; faults: {faults}",
        f"its ledger (closes exactly; delays are assumed, so no claim): {shares}",
    ]


def _reaches_goals(runs: Mapping[int, list[Mapping[str, float]]]) -> bool:
    def median(num_nodes: int, metric: str) -> float:
        return statistics.median(run[metric] for run in runs[num_nodes])

    growth = median(LARGE, "per event") / median(SMALL, "per event")
    is_fast = median(LARGE, "run") <= GOAL_RUN_S and median(LARGE, "decide mean") <= GOAL_DECIDE_US
    return is_fast and growth <= GOAL_GROWTH


if __name__ == "__main__":
    sys.exit(main())
