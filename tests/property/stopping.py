"""That a run is given up only when going on is hopeless, judged from delivered evidence alone.

It keeps its own count of failures, so that it shares no thought with the core. Neighbour: `audit`, the other auditors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from behemoth.base.ids import NodeId
from behemoth.reconcile.incidents import plain_incident
from behemoth.simulation.body import Brain
from behemoth.state.decision import Decision
from behemoth.state.effect import Close, Effect, Reject, Save, Start
from behemoth.state.evidence import Evidence, NodeJoined, NodeLost, RunOpened, TermBegan
from behemoth.state.observation import Observation
from property.auditor import Auditor

PROGRAM_CAUSES = frozenset({"signal", "exit", "restore", "ended", "hang"})
"""What counts against `max_failures`: lost nodes, lost coordinators and the operator's wishes do not."""
PATIENCE_FACTOR = 3
"""So many times `max_failures` a program may die of something else each time."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How one attempt ended. `is_stuck`: it had made no step."""

    cause: str
    rank: int | None
    signature: str
    step: int
    is_stuck: bool

    def is_again(self, former: Failure) -> bool:
        is_alike = self.rank == former.rank or (self.signature != "" and self.signature == former.signature)
        return self.is_stuck or self.step >= former.step or (self.cause == former.cause and is_alike)


@dataclass
class NeverStopsWhatCanGoOn(Auditor):
    """A run fails only after max_failures failures of the program that look like one, or three times as many of any
    kind, without progress; or when nodes were short for the whole wait; or when its last save failed that often."""

    failures: list[Failure] = field(default_factory=list)
    failed_at_best: int = -1
    present: dict[NodeId, int] = field(default_factory=dict)
    short_since_us: int | None = None
    config_slots: int = 0
    closed: Close | None = None
    last_saves_failed: int = 0

    def brain(self, brain: Brain) -> Brain:
        def fold(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
            self.hear(evidence, now_us)
            return brain.fold(obs, evidence, now_us)

        def decide(obs: Observation) -> Decision:
            decision = brain.decide(obs)
            self.judge(obs, decision.effects)
            return decision

        return Brain(fold=fold, decide=decide)

    def judge(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        """What the end of this attempt was, before the decision that answers it is folded and forgets it."""
        rejected = {effect.commit for effect in effects if isinstance(effect, Reject)}
        for effect in effects:
            if isinstance(effect, Start) or (isinstance(effect, Close) and effect.outcome == "failed"):
                self.count(obs, is_bare=rejected.issuperset(obs.commits))
                return

    def count(self, obs: Observation, *, is_bare: bool) -> None:
        """`is_bare`: no commit is left to go back to, which makes even a bad one the program's failure."""
        incident, progress = obs.incident, obs.progress
        if incident is None and obs.gang == "finished" and obs.ending_step is None:
            # Its last save is given up in this very decision: it ended without its last checkpoint.
            incident = plain_incident(obs, "ended", "")
        if incident is None or not (incident.cause in PROGRAM_CAUSES or (incident.cause == "corrupt" and is_bare)):
            return
        if obs.best_step > self.failed_at_best:
            self.failed_at_best, self.failures = obs.best_step, []
        failure = Failure(
            cause=incident.cause,
            rank=incident.rank,
            signature=incident.signature,
            step=progress.step if progress is not None else 0,
            is_stuck=progress is None or progress.phase == "first_step",
        )
        self.failures.append(failure)

    @property
    def num_alike(self) -> int:
        """How many of the latest failures looked like one."""
        num = 1 if self.failures else 0
        for failure, former in zip(self.failures[:0:-1], self.failures[-2::-1], strict=True):
            if not failure.is_again(former):
                break
            num += 1
        return num

    def hear(self, evidence: Evidence, now_us: int) -> None:
        match evidence:
            case RunOpened():
                self.config_slots = evidence.config.num_slots
            case TermBegan():
                self.present.clear()
                self.failures.clear()
                self.failed_at_best = -1
                self.last_saves_failed = 0
            case NodeJoined():
                self.present[evidence.node] = max(evidence.incarnation, self.present.get(evidence.node, 0))
            case NodeLost() if self.present.get(evidence.node) == evidence.incarnation:
                del self.present[evidence.node]
            case _:
                pass
        is_short = len(self.present) < self.config_slots
        if not is_short:
            self.short_since_us = None
        elif self.short_since_us is None:
            self.short_since_us = now_us

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Save) and effect.is_last:
                self.last_saves_failed += 1
            if isinstance(effect, Close) and effect.outcome == "failed":
                self.check(effect, obs)

    def check(self, close: Close, obs: Observation) -> None:
        waited_us = obs.now_us - (self.short_since_us if self.short_since_us is not None else obs.now_us)
        can_go_on = (
            self.num_alike < obs.config.max_failures
            and len(self.failures) < PATIENCE_FACTOR * obs.config.max_failures
            and waited_us < obs.config.node_wait_us
            and self.last_saves_failed < obs.config.max_failures
        )
        told = f"{self.num_alike} alike of {len(self.failures)} failures without progress"
        assert not can_go_on, f"stopped after {told}: {close}"
