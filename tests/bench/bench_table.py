"""One row format, one way to sample and one way to print, for every benchmark in this folder.

A number alone says little about a shared machine. So contenders take turns within one run, ours beside each peer, and a
row holds the median with its interval, and the median of the ratios of neighbouring samples. A goal is met or missed
only when the ratio's whole interval says so. Must know no benchmark. Every benchmark takes `--quick` (a minute, small
sizes, no claim) and `-o table|json|markdown`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import comb
from typing import Literal

FORMAT_VERSION = 1
MIN_PAIRS = 15
"""With fewer a goal is neither met nor missed: the interval of six pairs is their whole range."""
Verdict = Literal["met", "missed", "not resolved", "too few pairs", "not run"]
Round = Callable[[], Mapping[str, float]]
"""Runs a contender once and returns its value of each metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median, and between which order statistics the true one lies in 95 of 100 cases (all samples when few)."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What we measured, beside a peer where there is one. `ratio` is ours / peer, from pairs of one round each.

    `goal`: what the ratio should be above, or below when `is_goal_upper`. `note`: why a peer has no value.
    """

    metric: str
    unit: str
    ours: float
    ours_low: float
    ours_high: float
    peer: str | None
    peer_value: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    num_samples: int
    goal: float | None = None
    is_goal_upper: bool = False
    verdict: Verdict | None = None
    note: str = ""


def arguments(
    description: str, *, extend: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """The command line that all benchmarks share; `extend` adds a benchmark's own options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs, proves nothing")
    parser.add_argument("-o", "--output", choices=("table", "json", "markdown"), default="table")
    if extend is not None:
        extend(parser)
    return parser.parse_args()


def alternate(contenders: Mapping[str, Round], *, num_rounds: int) -> dict[str, dict[str, list[float]]]:
    """Samples by contender and metric. Every round runs each contender once; the first to go changes every round.

    One more round, not counted, comes before, so that nobody pays for cold memory. Progress goes to stderr.
    """
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    names = list(contenders)
    for number in range(-1, num_rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            values = contenders[name]()
            if number < 0:
                continue
            for metric, value in values.items():
                samples[name].setdefault(metric, []).append(value)
        print(f"round {number + 1} of {num_rounds} done", file=sys.stderr, flush=True)
    return samples


def interval(samples: Sequence[float]) -> Interval:
    """Median with its distribution-free 95% interval (order statistics; binomial with p = 1/2)."""
    ordered = sorted(samples)
    size = len(ordered)
    skip = 0
    while 2 * sum(comb(size, below) for below in range(skip + 1)) <= 0.05 * 2**size:
        skip += 1
    skip = max(0, skip - 1)
    return Interval(median=statistics.median(ordered), low=ordered[skip], high=ordered[size - 1 - skip])


def alone(metric: str, unit: str, ours: Sequence[float]) -> Row:
    """A row without a peer."""
    of_ours = interval(ours)
    return Row(
        metric=metric,
        unit=unit,
        ours=of_ours.median,
        ours_low=of_ours.low,
        ours_high=of_ours.high,
        peer=None,
        peer_value=None,
        ratio=None,
        ratio_low=None,
        ratio_high=None,
        num_samples=len(ours),
    )


def beside(metric: str, unit: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> Row:
    """A row against a peer; sample i of both comes from round i."""
    of_ours = interval(ours)
    ratio = interval([mine / other for mine, other in zip(ours, theirs, strict=True)])
    return Row(
        metric=metric,
        unit=unit,
        ours=of_ours.median,
        ours_low=of_ours.low,
        ours_high=of_ours.high,
        peer=peer,
        peer_value=statistics.median(theirs),
        ratio=ratio.median,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        num_samples=len(ours),
    )


def with_goal(row: Row, goal: float, *, is_upper: bool = False) -> Row:
    """The row with its verdict. An interval that contains the goal is not resolved, which is no pass."""
    if row.ratio_low is None or row.ratio_high is None:
        raise ValueError(f"row {row.metric!r}: expected a ratio to judge, got a row without a peer")
    verdict: Verdict = "not resolved"
    if row.num_samples < MIN_PAIRS:
        verdict = "too few pairs"
    elif row.ratio_low > goal:
        verdict = "missed" if is_upper else "met"
    elif row.ratio_high < goal:
        verdict = "met" if is_upper else "missed"
    return replace(row, goal=goal, is_goal_upper=is_upper, verdict=verdict)


def not_run(metric: str, unit: str, ours: Sequence[float], peer: str, *, why: str) -> Row:
    """A row for a peer that this machine cannot run: it says so, since a peer that vanished would look beaten."""
    return replace(alone(metric, unit, ours), peer=peer, verdict="not run", note=why)


def show(name: str, rows: Sequence[Row], options: argparse.Namespace, *, notes: Sequence[str] = ()) -> None:
    """Print rows as a table or as one JSON document on stdout."""
    if options.output == "json":
        document = {
            "version": FORMAT_VERSION,
            "benchmark": name,
            "quick": options.quick,
            "machine": machine(),
            "notes": list(notes),
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(document, indent=2))
        return
    about = machine()
    if options.output == "markdown":
        _print_markdown([_HEAD, *(_cells(row) for row in rows)])
        return
    print(
        f"{name}{' (quick)' if options.quick else ''}: " + ", ".join(f"{key} {value}" for key, value in about.items())
    )
    for note in notes:
        print(f"  {note}")
    _print_columns([_HEAD, *(_cells(row) for row in rows)])


def machine() -> dict[str, str | int]:
    """What numbers depend on."""
    cpus = len(os.sched_getaffinity(0))
    return {
        "cpus": cpus,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


_HEAD = ("metric", "unit", "ours", "interval", "peer", "peer's", "ours / peer", "interval", "n", "goal", "verdict")


def _cells(row: Row) -> tuple[str, ...]:
    ours = (row.metric, row.unit, _number(row.ours), f"{_number(row.ours_low)} .. {_number(row.ours_high)}")
    if row.ratio is None:
        peer = (row.peer or "-", "-", "-", "-")
    else:
        peer = (
            row.peer or "-",
            _number(row.peer_value),
            f"{row.ratio:.2f}",
            f"{row.ratio_low:.2f} .. {row.ratio_high:.2f}",
        )
    goal = "-" if row.goal is None else f"{'<' if row.is_goal_upper else '>'} {row.goal:g}"
    verdict = ": ".join(part for part in (row.verdict or "-", row.note) if part)
    return (*ours, *peer, str(row.num_samples), goal, verdict)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _print_columns(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_markdown(lines: Sequence[Sequence[str]]) -> None:
    for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]):
        print(f"| {' | '.join(line)} |")
