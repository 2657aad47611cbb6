"""Which committed checkpoints may go, and why each of the others stays. Pure: commits in, verdicts out.

It sees committed, durable checkpoints only; what was never committed is garbage, not history, and belongs to
`checkpoint.gc`, its neighbour. Must never give up the last two commits: the newest may prove damaged on restore.

Hours and days count as restic and borg count them: the newest checkpoint of each of the latest hours *that have one*
stays, so that a run which was suspended for a week loses nothing, and the time at which somebody asks does not matter:
there is no `now`. A commit's time is only a label (which hour, which day, in UTC); the order is that of the steps. So a
clock that jumps, or another machine's clock, can make two checkpoints share an hour or give one an hour of its own. It
cannot push out the last `keep_last`, milestones or pins, and a checkpoint labelled far ahead ages out like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step

MIN_KEPT = 2
"""So that a damaged newest checkpoint always has a predecessor."""
HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US

Reason = Literal["last", "milestone", "hourly", "daily", "pinned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Keep the newest `keep_last` commits (>= 2); for ever those at multiples of `every_steps` (None: none); and the
    newest one of each of the latest `hourly` hours and `daily` days that have any (0: none)."""

    keep_last: int
    every_steps: int | None = None
    hourly: int = 0
    daily: int = 0

    def __post_init__(self) -> None:
        if self.keep_last < MIN_KEPT:
            hint = f"keep at least {MIN_KEPT}: when the newest is damaged, restore goes back to the one before"
            raise Invalid(f"retention: expected keep_last >= {MIN_KEPT} commits, got {self.keep_last}", hint=hint)
        if self.every_steps is not None and self.every_steps < 1:
            raise Invalid(f"retention: expected every_steps >= 1 steps or none, got {self.every_steps}")
        for name, number in (("hourly", self.hourly), ("daily", self.daily)):
            if number < 0:
                raise Invalid(f"retention: expected {name} >= 0 checkpoints, got {number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dated:
    """A commit as retention sees it: its step, and when it was committed by the clock of who did."""

    step: Step
    committed_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a commit stays; it may go when there is no reason."""

    step: Step
    reasons: tuple[Reason, ...]


def verdicts(commits: Iterable[Dated], retention: Retention, *, pinned: Iterable[Step] = ()) -> tuple[Verdict, ...]:
    """One for each commit, oldest first; `commits` are all intact ones, one a step, in any order. O(n log n).

    Who deletes what may go and asks again is told to keep the rest, with the same reasons.
    """
    newest_first = sorted(commits, key=lambda commit: commit.step, reverse=True)
    reasons: dict[Step, list[Reason]] = {commit.step: [] for commit in newest_first}
    for commit in newest_first[: retention.keep_last]:
        reasons[commit.step].append("last")
    for step, found in reasons.items():
        if retention.every_steps is not None and step % retention.every_steps == 0:
            found.append("milestone")
    for step in _newest_of_each(newest_first, HOUR_US, retention.hourly):
        reasons[step].append("hourly")
    for step in _newest_of_each(newest_first, DAY_US, retention.daily):
        reasons[step].append("daily")
    for step in set(pinned) & reasons.keys():
        reasons[step].append("pinned")
    return tuple(Verdict(step=step, reasons=tuple(reasons[step])) for step in reversed(reasons))


def expired(commits: Iterable[Dated], retention: Retention, *, pinned: Iterable[Step] = ()) -> tuple[Step, ...]:
    """Steps of commits that may be deleted, oldest first. Never the last two, never a pinned one."""
    return tuple(verdict.step for verdict in verdicts(commits, retention, pinned=pinned) if not verdict.reasons)


def _newest_of_each(newest_first: Sequence[Dated], span_us: int, num_spans: int) -> list[Step]:
    """The first one met of each of the first `num_spans` different spans that are met."""
    met: dict[int, Step] = {}
    for commit in newest_first:
        if len(met) == num_spans:
            break
        met.setdefault(commit.committed_us // span_us, commit.step)
    return list(met.values())
