"""Which step the loop over `steps` is at, so that no other step is reported or saved by mistake.

A program may leave the loop unnoticed while a variable, tqdm or islice still holds the iterator. That it left is known
when it reports a later step, which a program inside the loop does not do. If it then continues the same loop, Conflict
is raised. The neighbour is `run`; without `steps` the step numbers are the program's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from behemoth.base.errors import Conflict
from behemoth.base.ids import Step


class Turn:
    """One per run; used by the program's thread only."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._is_reported = False

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """The loop is at `step` in this block. Raises Conflict at its end when the program had left the loop."""
        self._step, self._is_reported = step, False
        try:
            yield
            self._check_return(step)
        finally:
            if self._step == step:  # else the program is in another loop by now
                self._step = None

    def note_report(self, step: Step) -> None:
        """Raises Conflict for another step than that of the loop, unless the program must have left it."""
        if self._step is not None and self._is_reported and step > self._step:
            self._step = None
        self.check("report", step)
        self._is_reported = True

    def check(self, what: str, step: Step) -> None:
        """Raises Conflict for another step than that of the loop: the state would be saved under the wrong step."""
        if self._step is not None and step != self._step:
            raise Conflict(
                f"{what}: expected step {self._step}, where steps() is now, got {step}",
                hint="report and save the step that the loop is in; after leaving it, report each step before its save",
                code="step-mismatch",
            )

    def _check_return(self, step: int) -> None:
        if self._step != step:
            raise Conflict(
                f"steps: expected no further turn of the loop that was left at step {step}, got one",
                hint="report one step per turn of the loop; to come back later, begin anew with run.steps(completed)",
                code="step-mismatch",
            )
