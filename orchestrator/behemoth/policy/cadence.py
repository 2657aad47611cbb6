"""At which step the next save is: on multiples of a number of steps, or by time along the line of progress.

Pure. A save names a step that no rank has passed, so it is announced ahead; one that came too late to some rank tells
how much further ahead the next must be. What becomes of a save is `behemoth.reconcile.saving`'s.
"""

from __future__ import annotations

from behemoth.base.ids import Step
from behemoth.state.config import Cadence

_LEAD_US = 1_000_000
"""How long an announcement may take to every rank: one tick, and the way."""
_MIN_LEAD_STEPS = 2


def line_step(step: Step, *, at_us: int, step_us: int, now_us: int) -> Step:
    """Where the gang is now if it went on as before since `at_us`; `step` itself when its pace is not known."""
    if step_us <= 0:
        return step
    return Step(step + max(0, now_us - at_us) // step_us)


def lead_steps(*, step_us: int, learned_lead_steps: int) -> int:
    """How many steps ahead of the gang a save that follows no multiple is announced."""
    return max(_MIN_LEAD_STEPS, -(-_LEAD_US // step_us) if step_us > 0 else 0, learned_lead_steps)


def lead_after_passed(learned_lead_steps: int, *, late_by: int) -> int:
    """The lead once a save came `late_by` steps too late: what would have sufficed, or twice what did not."""
    return max(1, late_by, 2 * learned_lead_steps)


def next_step(
    cadence: Cadence,
    *,
    line: Step,
    furthest_step: Step,
    due_us: int,
    now_us: int,
    step_us: int,
    learned_lead_steps: int,
    is_asked: bool,
    committed: Step,
    total_steps: Step,
) -> Step | None:
    """The step of the save to announce now, None while it is too early to say.

    `line` is where the gang is by estimate, `committed` the newest commit's step, `due_us` when the interval ends.
    `is_asked`: the run shall end at the nearest step that can still be announced. `total_steps` means the last save;
    ranks that stand there wait for it.
    """
    if furthest_step >= total_steps:
        return total_steps
    reached = max(furthest_step, line)
    if cadence.steps is not None and not is_asked:
        after = max(reached + learned_lead_steps, committed)
        return Step(min((after // cadence.steps + 1) * cadence.steps, total_steps))
    ahead = reached + lead_steps(step_us=step_us, learned_lead_steps=learned_lead_steps)
    if ahead < total_steps and now_us < due_us:
        return None
    return Step(min(max(ahead, committed + 1), total_steps))
