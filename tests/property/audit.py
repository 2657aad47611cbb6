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
from behemoth.state.effect import Abort, Commit, CommitRef, Delete, Effect, Evict, Reject, Replace, Save, Start
from behemoth.state.evidence import (
    CommitsFound,
    Committed,
    Decided,
    Evidence,
    GangFinished,
    GangGone,
    GangRestored,
    GangUp,
    NodeJoined,
    RestoreFailed,
    RunOpened,
    SaveArmed,
    SaveFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
    TermBegan,
    Tick,
    WorkerFailed,
)
from behemoth.state.observation import Observation, indexes_of
from behemoth.testing.silence import effects_of_silence
from property.auditor import Auditor
from property.stopping import NeverStopsWhatCanGoOn


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


class EvictedBeforeReplaced(Auditor):
    """An agent that was given up is ended before its slot is given away: no Evict comes after that Replace or Start."""

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        left: set[NodeId] = set()
        is_started = False
        for effect in effects:
            match effect:
                case Replace():
                    left.add(effect.node)
                case Start():
                    is_started = True
                case Evict():
                    assert effect.node not in left, f"{effect.node} was evicted after its slot was given away"
                    assert not is_started, f"{effect.node} was evicted after the next attempt was started"
                case _:
                    pass


@dataclass
class SilentNodesAreLost(Auditor):
    """An agent that has been late for the whole limit is given up, whatever becomes of the gang meanwhile."""

    late_since_us: dict[NodeId, int] = field(default_factory=dict)
    now_us: int = 0

    def brain(self, brain: Brain) -> Brain:
        def fold(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
            self.hear(evidence, now_us)
            return brain.fold(obs, evidence, now_us)

        return Brain(fold=fold, decide=brain.decide)

    def hear(self, evidence: Evidence, now_us: int) -> None:
        match evidence:
            case TermBegan():
                self.late_since_us = {}
            case NodeJoined():
                others = (name for name in self.late_since_us if name != evidence.node)
                self.late_since_us = dict.fromkeys(others, now_us)
            case Tick():
                listed = {late.node for late in evidence.late}
                self.late_since_us = {name: self.late_since_us.get(name, now_us) for name in sorted(listed)}
            case _:
                pass

    def watch(self, obs: Observation, effects: tuple[Effect, ...]) -> None:
        """Silence counts anew from a start and from an agent's return; what was decided is seen with this turn."""
        if any(isinstance(effect, Start) for effect in effects):
            self.late_since_us = dict.fromkeys(self.late_since_us, obs.now_us)
        if obs.outcome is not None:
            return
        for name, since_us in self.late_since_us.items():
            is_over = obs.now_us >= since_us + obs.config.heartbeat_limit_us
            assert not is_over or obs.nodes[name].state != "present", f"{name} is silent since {since_us} and counts"


@dataclass
class OldFactsChangeNothing(Auditor):
    """What is told of an attempt that was replaced, or of a save that is over, is as good as nothing told."""

    attempt: int = 0
    save: WriteId | None = None
    given_up: set[WriteId] = field(default_factory=set)
    num_old: int = 0

    def brain(self, brain: Brain) -> Brain:
        def fold(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
            after = brain.fold(obs, evidence, now_us)
            if obs is not None and self.is_old(evidence):
                self.num_old += 1
                late = evidence.late if isinstance(evidence, Tick) else None
                nothing = RunOpened(config=obs.config) if late is None else Tick(late=late)
                assert after == brain.fold(obs, nothing, now_us), f"attempt {self.attempt} heard of {evidence}"
            self.hear(evidence)
            return after

        return Brain(fold=fold, decide=brain.decide)

    def is_old(self, evidence: Evidence) -> bool:
        match evidence:
            case WorkerFailed() | RestoreFailed() | GangUp() | GangRestored() | GangGone() | GangFinished():
                return evidence.attempt < self.attempt
            case Tick(progress=progress):
                return progress is not None and progress.attempt < self.attempt
            case SavePassed() | SaveArmed() | SaveStaged() | SaveWritten() | SaveFailed():
                return evidence.write_id != self.save
            case Committed():
                return evidence.commit.write_id not in (self.save, *self.given_up)
            case _:
                return False

    def hear(self, evidence: Evidence) -> None:
        """The latest save stays ours after its commit: a coordinator that dies may have to hear of that again."""
        if isinstance(evidence, Decided):
            for effect in evidence.effects:
                self.note(effect)

    def note(self, effect: Effect) -> None:
        match effect:
            case Start():
                self.attempt = effect.fence.attempt
            case Save():
                self.save = effect.write_id
            case Abort():
                self.save = None
                self.given_up.add(effect.write_id)
            case _:
                pass


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


def all_auditors() -> list[Auditor]:
    return [
        SlotsAreInjective(),
        EvictedBeforeReplaced(),
        SilentNodesAreLost(),
        OldFactsChangeNothing(),
        OneAttemptActs(),
        AgainChangesNothing(),
        NothingIsSleptThrough(),
        IncrementalEqualsFullScan(),
        LedgerCloses(),
        NothingCommittedIsLost(),
        NeverStopsWhatCanGoOn(),
    ]


def world_of(cluster: Cluster) -> object:
    """What effects can change at once, as a value."""
    gang = cluster.training.gang
    machines = {name: (m.agent, m.coming, m.newest) for name, m in cluster.machines.machines.items()}
    saves = {w: (save.state, save.is_agreed, save.step) for w, save in cluster.training.saves.tries.items()}
    return (
        list(cluster.slots),
        cluster.seen,
        cluster.outcome,
        machines,
        saves,
        dict(cluster.store.commits),
        (gang.attempt, gang.step, gang.is_over, gang.is_moving) if gang is not None else None,
    )
