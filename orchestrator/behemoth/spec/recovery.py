"""Recovery, as a run file says it: when silence is a fault, and when trying again is given up.

The neighbour is `run`, which holds this section.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from behemoth.spec.field import About, Integer, duration, require_ranges, section

BEAT_INTERVAL = timedelta(seconds=1)
"""How often an agent beats. A limit must allow one lost beat, so it lies above twice this."""
_FLOOR = duration(minimum=timedelta(seconds=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class HangFloor:
    """Least time without progress that may be called a hang, per phase that a rank declares."""

    start: Annotated[timedelta, About(doc="From the start of a worker until it has joined.", kind=_FLOOR)] = timedelta(
        minutes=2
    )
    restore: Annotated[timedelta, About(doc="While state is restored.", kind=_FLOOR)] = timedelta(minutes=10)
    first_step: Annotated[
        timedelta, About(doc="The first step of an attempt, from the restore on; it may compile.", kind=_FLOOR)
    ] = timedelta(minutes=5)
    step: Annotated[timedelta, About(doc="Any later step.", kind=_FLOOR)] = timedelta(minutes=1)
    eval: Annotated[timedelta, About(doc="An evaluation.", kind=_FLOOR)] = timedelta(minutes=30)
    save: Annotated[
        timedelta,
        About(
            doc="The blocking part of a save; and what a program still does after its last one, unless it declares "
            "a phase that may take longer.",
            kind=_FLOOR,
        ),
    ] = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Limits by which faults are told and recovery is given up."""

    heartbeat_limit: Annotated[
        timedelta,
        About(
            doc="A node that is silent for this long is lost. Agents beat five times within it, and at least once a "
            "second, so that a beat may go missing.",
            kind=duration(minimum=2 * BEAT_INTERVAL + timedelta(milliseconds=100)),
        ),
    ] = timedelta(seconds=2.5)
    hang_floor: Annotated[
        HangFloor,
        About(
            doc="A rank hangs when it makes no progress for 3 x the 99th percentile seen, but never before this long.",
            kind=section(HangFloor),
        ),
    ] = HangFloor()
    max_failures_without_progress: Annotated[
        int,
        About(
            doc="After this many failures of the same kind in a row without one more completed step, or three times "
            "as many of any kind, the run stops and says why. A checkpoint of another model stops it at once.",
            kind=Integer(minimum=1, maximum=1000),
        ),
    ] = 3
    node_wait: Annotated[
        timedelta,
        About(
            doc="How long a gang waits for a missing node before the run fails; for its first nodes at least "
            "as long as `hang_floor.start`.",
            kind=duration(),
        ),
    ] = timedelta(minutes=10)
    coordinator_grace: Annotated[
        timedelta,
        About(
            doc="How long agents keep training without their coordinator.",
            kind=duration(),
            supported=False,
        ),
    ] = timedelta(0)

    def __post_init__(self) -> None:
        require_ranges(self, name="recovery")
