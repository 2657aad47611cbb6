"""When silence is a hang: no step in max(3 x p99 of the steps seen, the floor of the declared phase).

Pure. It knows no clock and acts on nothing; `behemoth.reconcile.gang` asks it for a deadline.

Progress is a line between reports. A body that reports whenever something changed leaves `next_report_by_us` empty,
and its silence is a gang without steps. A body that would rather not report every step (the simulator, 54 days
long) promises the time of its next report: until then the gang is taken to go on as before, so that no event per step
is needed, and the same limit counts from the promise.
"""

from __future__ import annotations

from behemoth.state.config import HangFloors, WorkPhase
from behemoth.state.evidence import Progress

_P99_FACTOR = 3
"""design/recovery.md: "no step in max(3 x p99, floor)"."""
_BEFORE_STEPS: tuple[WorkPhase, ...] = ("start", "restore")


def limit_us(phase: WorkPhase, *, floors: HangFloors, p99_us: int) -> int:
    """Longest silence that is still work. `p99_us` is 0 before the first step was seen."""
    match phase:
        case "start":
            return floors.start_us
        case "restore":
            return floors.restore_us
        case "first_step":
            return max(_P99_FACTOR * p99_us, floors.first_step_us)
        case "step":
            return max(_P99_FACTOR * p99_us, floors.step_us)
        case "eval":
            return max(_P99_FACTOR * p99_us, floors.eval_us)
        case "save":
            return max(_P99_FACTOR * p99_us, floors.save_us)


def deadline_us(progress: Progress, *, watch_us: int, floors: HangFloors, p99_us: int) -> int:
    """When this progress, if it stays the latest, is a hang. `watch_us`: silence before it is excused (a takeover)."""
    last_sign_us = max(progress.at_us, progress.phase_since_us, progress.next_report_by_us or 0, watch_us)
    return last_sign_us + limit_us(progress.phase, floors=floors, p99_us=p99_us)


def laggard_key(phase: WorkPhase, since_us: int, *, floors: HangFloors) -> tuple[int, int, int]:
    """The least of these, among ranks at the same step, is the rank whose phase decides: one that is not up yet, else
    the one that may take longest (an evaluation on one rank, for which the others wait), else the one that began first.
    """
    num_before = _BEFORE_STEPS.index(phase) if phase in _BEFORE_STEPS else len(_BEFORE_STEPS)
    return num_before, -limit_us(phase, floors=floors, p99_us=0), since_us
