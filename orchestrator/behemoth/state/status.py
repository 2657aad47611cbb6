"""What the brain tells people and scripts about a run: a phase, a machine-readable reason, one sentence.

Values only; `behemoth.reconcile.report` fills them in.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from behemoth.base.ids import Attempt, Step
from behemoth.state.effect import CommitRef, Outcome

Phase = Literal[
    "pending", "placing", "starting", "restoring", "training", "recovering", "suspended", "succeeded", "failed"
]
"""A run that the operator stopped is `suspended` with outcome `cancelled`: its work is kept, and it can go on."""


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the run. `reason` is CamelCase and stable; `message` is for people and may change."""

    phase: Phase
    reason: str
    message: str
    attempt: Attempt
    step: Step
    """Completed by every rank of the present attempt."""
    best_step: Step
    """Furthest step that any attempt completed."""
    commit: CommitRef | None
    """The newest commit that may be restored."""
    num_failures: int
    """Failures of the program since it last got further."""
    num_save_failures: int
    """Saves in a row that did not commit."""
    save_message: str
    """Why the last save failed; empty when it did not."""
    outcome: Outcome | None
