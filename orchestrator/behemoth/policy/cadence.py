"""At which step the next save is: on multiples of a number of steps, or by time along the line of progress.

Pure. A save names a step that no rank has passed, so it is announced ahead; one that came too late to some rank is
followed by one twice as far ahead. What becomes of a save is `behemoth.reconcile.saving`'s.
"""

from __future__ import annotations

from collections.abc import Collection

from behemoth.base.ids import Step
from behemoth.state.config import Cadence

_LEAD_US = 1_000_000
"""How long an announcement may take to every rank: one tick, and the way."""
_MIN_LEAD_STEPS = 2
_MAX_DOUBLINGS = 20


def line_step(step: Step, *, at_us: int, step_us: int, now_us: int) -> Step:
    """Where the gang is now if it went on as before since `at_us`; `step` itself when its pace is not known."""
    if step_us <= 0:
        return step
    return Step(step + max(0, now_us - at_us) // step_us)


def lead_steps(*, step_us: int, num_passed: int) -> int:
    """How many steps ahead a save must be announced; doubles with each in a row that came too late."""
    lead = max(_MIN_LEAD_STEPS, -(-_LEAD_US // step_us) if step_us > 0 else 0)
    return lead << min(num_passed, _MAX_DOUBLINGS)


def next_multiple(cadence_steps: int, *, after: Step, committed: Collection[Step], total_steps: Step) -> Step:
    """The first multiple beyond `after` that is not committed yet, or the run's last step when that comes first."""
    step = (after // cadence_steps + 1) * cadence_steps
    while step < total_steps and step in committed:
        step += cadence_steps
    return Step(min(step, total_steps))


def next_step(
    cadence: Cadence,
    *,
    line: Step,
    furthest_step: Step,
    due_us: int,
    now_us: int,
    step_us: int,
    num_passed: int,
    is_asked: bool,
    committed: Collection[Step],
    total_steps: Step,
) -> Step | None:
    """The step of the save to announce now, None while it is too early to say.

    `line` is where the gang is by estimate, `due_us` when the interval ends. `is_asked`: the run shall end at the
    nearest step that can still be announced. `total_steps` means the last save; ranks that stand there wait for it.
    """
    if furthest_step >= total_steps:
        return total_steps
    lead = lead_steps(step_us=step_us, num_passed=num_passed)
    if cadence.steps is not None and not is_asked:
        after = Step(max(furthest_step, line) + (lead if num_passed else 0))
        return next_multiple(cadence.steps, after=after, committed=committed, total_steps=total_steps)
    ahead = max(furthest_step, line) + lead
    if ahead < total_steps and now_us < due_us:
        return None
    while ahead < total_steps and ahead in committed:
        ahead += 1
    return Step(min(ahead, total_steps))
