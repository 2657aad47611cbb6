"""The model's gang and its saves as values: one attempt's line of steps, and how far each save is.

Steps are a line (a step, the moment it was completed, a slope), never events. Nothing happens here; the neighbour
`training` plays attempts and saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.state.config import WorkPhase
from behemoth.state.effect import CommitRef

SaveState = Literal["coming", "armed", "staging", "staged", "written"]


@dataclass(slots=True, kw_only=True)
class SaveTry:
    """One save under way. It outlives its attempt once it is staged: the agents own that memory."""

    step: Step
    write_id: WriteId
    is_last: bool
    attempt: Attempt
    state: SaveState = "coming"
    is_agreed: bool = False

    @property
    def is_with_workers(self) -> bool:
        """Nobody else has its bytes yet."""
        return self.state in ("coming", "armed", "staging")

    @property
    def is_held(self) -> bool:
        """Whether a gang that stands at its step waits there."""
        return self.state in ("armed", "staging") or (self.is_last and self.state in ("staged", "written"))


@dataclass(slots=True, kw_only=True)
class Gang:
    """One attempt. It moves only while it is whole, not hung, and all holders answer (which the cluster knows)."""

    attempt: Attempt
    restore: CommitRef | None
    phase: WorkPhase = "start"
    phase_since_us: int = 0
    is_broken: bool = False
    is_hung: bool = False
    is_over: bool = False
    is_moving: bool = False
    has_stepped: bool = False
    step: int = 0
    at_us: int = 0
    line_id: int = 0
    reported_us: int = 0
    stall_us: int = 0
    deferred: list[Callable[[], None]] = field(default_factory=list)

    @property
    def is_able(self) -> bool:
        """Whether its workers run and can go on."""
        return not (self.is_over or self.is_broken or self.is_hung)

    @property
    def has_state(self) -> bool:
        return self.phase not in ("start", "restore")

    def enter(self, phase: WorkPhase, now_us: int) -> None:
        self.phase, self.phase_since_us = phase, now_us

    def step_at(self, now_us: int, step_us: int) -> Step:
        """The step that is completed then."""
        if not self.is_moving:
            return Step(self.step)
        return Step(self.step + max(0, (now_us - self.at_us) // step_us))

    def advance(self, now_us: int, step_us: int) -> None:
        """The line begins anew at the last completed step."""
        if self.is_moving:
            step = self.step_at(now_us, step_us)
            self.at_us += (step - self.step) * step_us
            self.step = step

    def halt(self, now_us: int, step_us: int) -> None:
        """The line stops where it is; the step under way is lost."""
        self.advance(now_us, step_us)
        self.is_moving = False
        self.line_id += 1

    def goes_on(self, at_us: int) -> None:
        """The line goes on from `step`, taken as completed at `at_us`."""
        self.is_moving = True
        self.at_us = at_us
        self.line_id += 1
