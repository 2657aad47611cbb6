"""The properties can fail: each auditor objects to a brain that was broken on purpose, and to none that was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from behemoth.base.errors import Internal
from behemoth.base.ids import Attempt
from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.reconcile.journal import audit as audit_journal
from behemoth.reconcile.journal import decode_lines
from behemoth.reconcile.ledger import book
from behemoth.simulation.body import Brain
from behemoth.simulation.channel import Loss
from behemoth.simulation.history import Crash, Strike, Wait
from behemoth.simulation.timing import Timing
from behemoth.state.config import Cadence
from behemoth.state.decision import Decision
from behemoth.state.effect import Close, Effect, Evict, Place, Provision, Save, Start
from behemoth.state.evidence import Evidence, Tick, WorkerFailed
from behemoth.state.observation import Observation
from behemoth.testing.strategies import SECOND_US, run_config
from property import audit
from property.audit import (
    AgainChangesNothing,
    EvictedBeforeReplaced,
    IncrementalEqualsFullScan,
    LedgerCloses,
    NothingCommittedIsLost,
    NothingIsSleptThrough,
    OldFactsChangeNothing,
    OneAttemptActs,
    SilentNodesAreLost,
    SlotsAreInjective,
    all_auditors,
)
from property.auditor import Auditor
from property.played import SETTLE_US, Example, history_of, play
from property.stopping import NeverStopsWhatCanGoOn

EXAMPLE = Example(
    config=run_config(
        num_slots=2,
        num_spares=1,
        cadence=Cadence(steps=5),
        rejoin_us=5 * SECOND_US,
        max_failures=3,
        total_steps=60,
        node_wait_s=600,
    ),
    timing=Timing(),
    loss=None,
    seed=0,
    mishaps=(
        Wait(for_us=20 * SECOND_US),
        Strike(kind="exit", order=0, repair_us=SECOND_US),
        Wait(for_us=15 * SECOND_US),
        Strike(kind="node-loss", order=1, repair_us=5 * SECOND_US),
        Wait(for_us=15 * SECOND_US),
        Crash(num_applied=0, down_us=SECOND_US, do_agents_survive=True, is_tail_lost=True),
    ),
)
NODES = EXAMPLE.config.nodes


def altered(change: Callable[[Effect], Effect | None]) -> Brain:
    """A brain whose effects are changed on their way out; None takes one away."""

    def decide_altered(obs: Observation) -> Decision:
        decision = decide(obs)
        changed = (change(effect) for effect in decision.effects)
        return msgspec.structs.replace(decision, effects=tuple(effect for effect in changed if effect is not None))

    return Brain(decide=decide_altered)


def one_node_twice(effect: Effect) -> Effect:
    if not isinstance(effect, Place):
        return effect
    return msgspec.structs.replace(effect, holders=(effect.holders[0],) * len(effect.holders))


def from_the_former_attempt(effect: Effect) -> Effect:
    if not isinstance(effect, Save):
        return effect
    fence = msgspec.structs.replace(effect.fence, attempt=Attempt(effect.fence.attempt - 1))
    return msgspec.structs.replace(effect, fence=fence)


def from_the_beginning(effect: Effect) -> Effect:
    return msgspec.structs.replace(effect, restore=None) if isinstance(effect, Start) else effect


def never_again(effect: Effect) -> Effect | None:
    return None if isinstance(effect, Start) and effect.fence.attempt > 1 else effect


def give_up(effect: Effect) -> Effect:
    if not isinstance(effect, Start) or effect.fence.attempt == 1:
        return effect
    return Close(fence=effect.fence, outcome="failed", reason="no patience")


def decide_over_and_over(obs: Observation) -> Decision:
    decision = decide(obs)
    again = Provision(fence=obs.fence, node=NODES[2], incarnation=1)
    return msgspec.structs.replace(decision, effects=(*decision.effects, again))


def oversleep(obs: Observation) -> Decision:
    decision = decide(obs)
    woken_us = obs.now_us if decision.wake_at_us is None else decision.wake_at_us
    return msgspec.structs.replace(decision, wake_at_us=woken_us + 3_600 * SECOND_US)


def evict_last(obs: Observation) -> Decision:
    decision = decide(obs)
    effects = sorted(decision.effects, key=lambda effect: isinstance(effect, Evict))
    return msgspec.structs.replace(decision, effects=tuple(effects))


def deaf_to_silence(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
    return fold(obs, msgspec.structs.replace(evidence, late=()) if isinstance(evidence, Tick) else evidence, now_us)


def believe_anything(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
    if obs is not None and isinstance(evidence, WorkerFailed):
        evidence = msgspec.structs.replace(evidence, attempt=obs.attempt)
    return fold(obs, evidence, now_us)


def forget_a_spare(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
    folded = fold(obs, evidence, now_us)
    if NODES[2] not in folded.spares:
        return folded
    return msgspec.structs.replace(folded, spares=folded.spares.delete(NODES[2]))


def test_no_auditor_objects_to_the_brain_as_it_is() -> None:
    history = play(EXAMPLE, *all_auditors())
    assert history.body.observation is not None
    assert history.body.observation.attempt >= 3


@pytest.mark.parametrize(
    ("auditor", "brain", "objection"),
    [
        (SlotsAreInjective(), altered(one_node_twice), "two slots"),
        (EvictedBeforeReplaced(), Brain(decide=evict_last), "evicted after its slot"),
        (OneAttemptActs(), altered(from_the_former_attempt), "was refused"),
        (AgainChangesNothing(), Brain(decide=decide_over_and_over), "decided twice"),
        (NothingIsSleptThrough(), Brain(decide=oversleep), "slept through"),
        (IncrementalEqualsFullScan(), Brain(fold=forget_a_spare), "index spares"),
        (NothingCommittedIsLost(), altered(from_the_beginning), "does not restore"),
        (NeverStopsWhatCanGoOn(), altered(give_up), "stopped after 1 alike of 1 failures"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Auditor) else "",
)
def test_an_auditor_objects_to_a_brain_that_was_broken_for_it(auditor: Auditor, brain: Brain, objection: str) -> None:
    with pytest.raises((AssertionError, Internal), match=objection):
        play(EXAMPLE, auditor, brain=brain)


def test_a_brain_that_hears_no_silence_is_found() -> None:
    frozen = Strike(kind="freeze", order=0, repair_us=120 * SECOND_US)
    mishaps = (Wait(for_us=20 * SECOND_US), frozen, Wait(for_us=20 * SECOND_US))
    example = replace(EXAMPLE, mishaps=mishaps)
    play(example, SilentNodesAreLost())
    with pytest.raises(AssertionError, match="n0 is silent"):
        play(example, SilentNodesAreLost(), brain=Brain(fold=deaf_to_silence))


def test_a_brain_that_believes_what_is_told_of_an_attempt_that_is_over_is_found() -> None:
    channel = Loss(drop=0.0, duplicate=0.0, delay=0.0, max_delay_us=SECOND_US, echo=0.9)
    example = replace(EXAMPLE, loss=channel)
    auditor = OldFactsChangeNothing()
    play(example, auditor)
    assert auditor.num_old > 10
    with pytest.raises(AssertionError, match="heard of WorkerFailed"):
        play(example, OldFactsChangeNothing(), brain=Brain(fold=believe_anything))


def test_a_ledger_that_loses_a_microsecond_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = book
    monkeypatch.setattr(audit, "book", lambda *told: msgspec.structs.replace(whole(*told), mark_us=told[3].now_us + 1))
    with pytest.raises(AssertionError):
        play(EXAMPLE, LedgerCloses())


def test_a_brain_that_never_starts_again_does_not_settle() -> None:
    history = history_of(EXAMPLE, brain=altered(never_again))
    history.begin()
    history.play(EXAMPLE.mishaps)
    assert not history.calm(SETTLE_US)


def test_a_decision_changed_in_the_journal_is_found() -> None:
    data = b"".join(play(EXAMPLE).journal)
    assert audit_journal(decode_lines(data)) == []
    changed = data.replace(b"from the beginning", b"from the end", 1)
    [mismatch] = audit_journal(decode_lines(changed))
    assert mismatch.recorded != mismatch.decided


def test_a_coordinator_that_died_between_two_effects_speaks_to_nobody_afterwards() -> None:
    history = play(EXAMPLE)
    assert history.epoch == 2
    refused = history.cluster.num_refused
    stale = msgspec.structs.replace(history.cluster.seen, epoch=1)
    assert not history.cluster.apply(Provision(fence=stale, node=NODES[0], incarnation=99))
    assert history.cluster.num_refused == refused + 1
