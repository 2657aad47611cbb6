"""Which committed checkpoints may go. Pure: steps in, steps out.

It sees committed, durable checkpoints only; what was never committed is garbage, not history, and belongs to
`checkpoint.gc`, its neighbour. Must never give up the last two commits: the newest may prove damaged on restore.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from behemoth.base.errors import Invalid
from behemoth.base.ids import Step

MIN_KEPT = 2
"""So that a damaged newest checkpoint always has a predecessor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Keep the newest `keep_last` commits (>= 2), and for ever those at multiples of `every_steps` (None: none)."""

    keep_last: int
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.keep_last < MIN_KEPT:
            hint = f"keep at least {MIN_KEPT}: when the newest is damaged, restore goes back to the one before"
            raise Invalid(f"retention: expected keep_last >= {MIN_KEPT} commits, got {self.keep_last}", hint=hint)
        if self.every_steps is not None and self.every_steps < 1:
            raise Invalid(f"retention: expected every_steps >= 1 steps or none, got {self.every_steps}")


def expired(steps: Iterable[Step], retention: Retention, *, pinned: Iterable[Step] = ()) -> tuple[Step, ...]:
    """Steps of commits that may be deleted, oldest first; `steps` are those of all intact commits, in any order.

    Never the last two, never a pinned one. O(n log n).
    """
    ordered = sorted(set(steps))
    candidates = ordered[: -retention.keep_last]
    kept = set(pinned)
    return tuple(step for step in candidates if step not in kept and not _is_milestone(step, retention.every_steps))


def _is_milestone(step: Step, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0
