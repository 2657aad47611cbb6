"""What must hold at every moment of every history, checked from outside: on the model's state and on the journal.

An auditor sees each turn (`watch`) and each effect (`before`, `after`), and may stand around the brain (`brain`). It
keeps its own books from delivered evidence and decided effects alone, so that it shares no thought with the core.
"""

# Auditors share one set of methods, of which each needs a part.
# ruff: noqa: ARG002

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from behemoth.base.ids import NodeId, Step, WriteId
from behemoth.reconcile.ledger import Ledger, book, books
from behemoth.simulation.body import Brain
from behemoth.simulation.cluster import Cluster
from behemoth.state.decision import Decision
from behemoth.state.effect import Close, Commit, CommitRef, Delete, Effect, Reject, Save, Start
from behemoth.state.evidence import (
    CommitsFound,
    Committed,
    Decided,
    Evidence,
    NodeJoined,
    NodeLost,
    Progress,
    RestoreFailed,
    RunOpened,
    TermBegan,
    Tick,
    WorkerFailed,
)
from behemoth.state.observation import Observation, indexes_of
from behemoth.testing.silence import effects_of_silence


class Auditor:
    """Looks on and objects to nothing; auditors override what they need."""

    def brain(self, brain: Brain) -> Brain:
        return brain

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        return None

    def before(self, cluster: Cluster, effect: Effect) -> None:
        return None

    def after(self, cluster: Cluster, effect: Effect, *, is_applied: bool) -> None:
        return None


class SlotsAreInjective(Auditor):
    """No node has two holders, neither in the books of the brain nor in the world."""

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        holders = list(obs.holders.values())
        assert len(set(holders)) == len(holders), f"a node holds two slots: {holders}"
        by_node = {node.slot: name for name, node in obs.nodes.items() if node.slot is not None}
        assert by_node == dict(obs.holders), f"nodes and slots disagree: {by_node}, {dict(obs.holders)}"
        assert len(holders) in (0, obs.config.num_slots), f"a slot was left out, or a node holds two slots: {holders}"

    def after(self, cluster: Cluster, effect: Effect, *, is_applied: bool) -> None:
        assert len(set(cluster.slots)) == len(cluster.slots), f"a node holds two slots: {cluster.slots}"


@dataclass
class OneAttemptActs(Auditor):
    """Attempts only rise, each is started once, and saves and commits are taken from the acting one alone."""

    acting: int = 0
    newest: int = 0
    saved: dict[WriteId, Step] = field(default_factory=dict)

    def before(self, cluster: Cluster, effect: Effect) -> None:
        gang = cluster.training.gang
        self.acting = gang.attempt if gang is not None else 0

    def after(self, cluster: Cluster, effect: Effect, *, is_applied: bool) -> None:
        acting = self.acting
        assert is_applied, f"the living coordinator was refused: {effect}"
        attempt = effect.fence.attempt
        match effect:
            case Start():
                assert attempt > self.newest, f"attempt {attempt} was started after attempt {self.newest}"
                self.newest = attempt
            case Save():
                assert attempt == acting, f"attempt {attempt} saves while attempt {acting} acts"
                assert effect.write_id not in self.saved, f"{effect.write_id} names two saves"
                self.saved[effect.write_id] = effect.step
            case Commit():
                assert attempt >= acting, f"attempt {attempt} commits while attempt {acting} acts"
                assert self.saved.get(effect.write_id) == effect.step, f"nobody was asked for {effect}"
            case _:
                assert attempt >= acting, f"attempt {attempt} speaks while attempt {acting} acts"


@dataclass
class AgainChangesNothing(Auditor):
    """An effect applied twice is an effect applied once, and a decision that was folded leaves nothing to decide."""

    decide: Brain | None = None

    def brain(self, brain: Brain) -> Brain:
        self.decide = brain
        return brain

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        assert self.decide is not None
        again = self.decide.decide(obs)
        assert again.effects == (), f"decided twice: {again.effects} after {effects}"
        if effects:
            folded = self.decide.fold(obs, Decided(effects=effects), obs.now_us)
            repeated = self.decide.decide(folded)
            assert repeated.effects == (), f"a decision told twice is decided again: {repeated.effects}"

    def after(self, cluster: Cluster, effect: Effect, *, is_applied: bool) -> None:
        before = world_of(cluster)
        cluster.apply(effect)
        assert world_of(cluster) == before, f"applied twice, it changed the world: {effect}"


class NothingIsSleptThrough(Auditor):
    """The brain wants to be woken for all that silence alone will make it do."""

    def brain(self, brain: Brain) -> Brain:
        def decide(obs: Observation) -> Decision:
            decision = brain.decide(obs)
            if not decision.effects:
                early = effects_of_silence(obs, decision.wake_at_us)
                assert early == (), f"slept through until {decision.wake_at_us}: {early}"
            return decision

        return Brain(fold=brain.fold, decide=decide)


class IncrementalEqualsFullScan(Auditor):
    """Indexes equal those of a full scan, and a brain that rebuilds them before each decision decides the same."""

    def brain(self, brain: Brain) -> Brain:
        def decide(obs: Observation) -> Decision:
            scanned = indexes_of(obs)
            for name, index in scanned.items():
                assert dict(getattr(obs, name)) == dict(index), f"index {name} is not what a scan finds"
            decision = brain.decide(obs)
            assert decision == brain.decide(msgspec.structs.replace(obs, **scanned))
            return decision

        return Brain(fold=brain.fold, decide=decide)


@dataclass
class LedgerCloses(Auditor):
    """Every microsecond of every rank is in exactly one bucket, at every moment, across all terms."""

    ledger: Ledger | None = None

    def brain(self, brain: Brain) -> Brain:
        def fold(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
            after = brain.fold(obs, evidence, now_us)
            self.ledger = book(self.ledger, obs, evidence, after)
            buckets = books(self.ledger, after.now_us)
            assert buckets.total == (after.now_us - after.opened_us) * after.num_ranks
            for name, booked in msgspec.structs.asdict(buckets).items():
                assert booked >= 0, f"bucket {name} holds {booked} us"
                assert booked >= getattr(self.ledger.booked, name)
            return after

        return Brain(fold=fold, decide=brain.decide)


@dataclass
class NothingCommittedIsLost(Auditor):
    """Every Start restores the newest commit that was told and not rejected, and retention spares it."""

    commits: dict[WriteId, CommitRef] = field(default_factory=dict)
    ended: set[WriteId] = field(default_factory=set)

    def brain(self, brain: Brain) -> Brain:
        def fold(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
            self.hear(evidence)
            return brain.fold(obs, evidence, now_us)

        return Brain(fold=fold, decide=brain.decide)

    def hear(self, evidence: Evidence) -> None:
        match evidence:
            case CommitsFound():
                found = (commit for commit in evidence.commits if commit.write_id not in self.ended)
                self.commits = {commit.write_id: commit for commit in found}
            case Committed() if evidence.commit.write_id not in self.ended:
                self.commits[evidence.commit.write_id] = evidence.commit
            case Decided():
                for effect in evidence.effects:
                    self.check(effect)
            case _:
                pass

    def check(self, effect: Effect) -> None:
        match effect:
            case Reject():
                self.end(effect.commit)
            case Delete():
                newest = self.newest()
                for commit in effect.commits:
                    assert commit != newest, f"retention deletes the newest commit {commit}"
                    self.end(commit)
            case Start():
                assert effect.restore == self.newest(), f"{effect} does not restore {self.newest()}"
            case _:
                pass

    def end(self, commit: CommitRef) -> None:
        self.commits.pop(commit.write_id, None)
        self.ended.add(commit.write_id)

    def newest(self) -> CommitRef | None:
        return max(self.commits.values(), key=lambda commit: commit.step, default=None)

    def after(self, cluster: Cluster, effect: Effect, *, is_applied: bool) -> None:
        missing = cluster.training.missing_restores
        assert missing == [], f"restores what the store does not hold: {missing}"
        assert cluster.store.lost == [], f"the newest commit was deleted: {cluster.store.lost}"


@dataclass
class NeverStopsWhatCanGoOn(Auditor):
    """A run fails only after max_failures attempts without progress, or when nodes were short for the whole wait."""

    attempt: int = 0
    has_failed: bool = False
    progress_attempt: int = 1
    best_step: int = 0
    present: dict[NodeId, int] = field(default_factory=dict)
    short_since_us: int | None = None
    config_slots: int = 0
    closed: Close | None = None
    last_saves_failed: int = 0

    def brain(self, brain: Brain) -> Brain:
        def fold(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
            self.hear(evidence, now_us)
            return brain.fold(obs, evidence, now_us)

        return Brain(fold=fold, decide=brain.decide)

    def hear(self, evidence: Evidence, now_us: int) -> None:
        match evidence:
            case RunOpened():
                self.config_slots = evidence.config.num_slots
            case TermBegan():
                self.present.clear()
            case NodeJoined():
                self.present[evidence.node] = max(evidence.incarnation, self.present.get(evidence.node, 0))
            case NodeLost() if self.present.get(evidence.node) == evidence.incarnation:
                del self.present[evidence.node]
            case WorkerFailed() | RestoreFailed() if evidence.attempt == self.attempt:
                self.has_failed = True
            case Tick(progress=progress) if progress is not None:
                self.hear_progress(progress)
            case _:
                pass
        is_short = len(self.present) < self.config_slots
        if not is_short:
            self.short_since_us = None
        elif self.short_since_us is None:
            self.short_since_us = now_us

    def hear_progress(self, progress: Progress) -> None:
        """What is told of an attempt that was given up, or that failed already, comes too late to count."""
        is_late = progress.attempt != self.attempt or self.has_failed
        if not is_late and progress.step > self.best_step:
            self.best_step, self.progress_attempt = progress.step, progress.attempt

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                self.attempt, self.has_failed = effect.fence.attempt, False
            if isinstance(effect, Save) and effect.is_last:
                self.last_saves_failed += 1
            if isinstance(effect, Close) and effect.outcome == "failed":
                self.check(effect, obs)

    def check(self, close: Close, obs: Observation) -> None:
        num_failed = obs.attempt - self.progress_attempt + 1
        waited_us = obs.now_us - (self.short_since_us if self.short_since_us is not None else obs.now_us)
        can_go_on = (
            num_failed < obs.config.max_failures
            and waited_us < obs.config.node_wait_us
            and self.last_saves_failed < obs.config.max_failures
        )
        assert not can_go_on, f"stopped after {num_failed} attempts without progress: {close}"


def all_auditors() -> list[Auditor]:
    return [
        SlotsAreInjective(),
        OneAttemptActs(),
        AgainChangesNothing(),
        NothingIsSleptThrough(),
        IncrementalEqualsFullScan(),
        LedgerCloses(),
        NothingCommittedIsLost(),
        NeverStopsWhatCanGoOn(),
    ]


class Together(Auditor):
    """Several auditors at once."""

    def __init__(self, auditors: list[Auditor]) -> None:
        self._auditors = auditors

    def brain(self, brain: Brain) -> Brain:
        for auditor in self._auditors:
            brain = auditor.brain(brain)
        return brain

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        for auditor in self._auditors:
            auditor.watch(obs, effects)

    def before(self, cluster: Cluster, effect: Effect) -> None:
        for auditor in self._auditors:
            auditor.before(cluster, effect)

    def after(self, cluster: Cluster, effect: Effect, *, is_applied: bool) -> None:
        for auditor in self._auditors:
            auditor.after(cluster, effect, is_applied=is_applied)


def world_of(cluster: Cluster) -> object:
    """What effects can change at once, as a value."""
    gang = cluster.training.gang
    machines = {name: (m.agent, m.coming, m.newest) for name, m in cluster.machines.machines.items()}
    saves = {w: (save.state, save.is_agreed, save.step) for w, save in cluster.training.saves.items()}
    return (
        list(cluster.slots),
        cluster.seen,
        cluster.outcome,
        machines,
        saves,
        dict(cluster.store.commits),
        (gang.attempt, gang.step, gang.is_over, gang.is_moving) if gang is not None else None,
    )
