"""fold(observation, evidence, now) -> observation: the only writer of what the brain knows.

Pure and total: no evidence in any order raises, what is stale or told twice changes nothing. Each family of facts has
its own module; this one only dispatches. Neighbour: `decide`, which folds its own effects through `after_effects` while
it decides, so that what was decided and what is folded back cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from msgspec.structs import replace

from behemoth.base.errors import Internal
from behemoth.reconcile import agents, attempts, closing, gang, keeping, saving
from behemoth.state import effect as fx
from behemoth.state import evidence as ev
from behemoth.state.effect import Effect
from behemoth.state.evidence import Evidence
from behemoth.state.observation import Observation, observe


def fold(obs: Observation | None, evidence: Evidence, now_us: int) -> Observation:
    """What is known after this fact was told at `now_us` (microseconds; an earlier time than before counts as before).

    Raises Internal for a journal that does not begin with RunOpened; nothing else.
    """
    if obs is None:
        if not isinstance(evidence, ev.RunOpened):
            raise Internal(f"journal: expected RunOpened as its first fact, got {type(evidence).__name__}")
        return observe(evidence.config, now_us)
    if now_us > obs.now_us:
        obs = replace(obs, now_us=now_us)
    if obs.outcome is not None:
        return _fold_closed(obs, evidence)
    return _elapse(_fold_one(obs, evidence))


def _fold_closed(obs: Observation, evidence: Evidence) -> Observation:
    """A closed run hears only what may open it again."""
    match evidence:
        case ev.TermBegan():
            return closing.on_term(obs, evidence)
        case ev.Asked():
            return closing.on_asked(obs, evidence)
        case ev.CommitsFound():
            return closing.on_found_closed(obs, evidence)
        case _:
            return obs


def _elapse(obs: Observation) -> Observation:
    """What the time that has passed means; nothing before the first term."""
    if obs.epoch == 0 or obs.outcome is not None:
        return obs
    return gang.elapse(saving.elapse(agents.elapse(obs)))


def _fold_one(obs: Observation, evidence: Evidence) -> Observation:
    match evidence:
        case ev.Tick():
            if evidence.awake_us is not None:
                obs = replace(obs, watch_us=max(obs.watch_us, min(evidence.awake_us, obs.now_us)))
            obs = agents.on_late(obs, evidence.late) if evidence.late or obs.late else obs
            return obs if evidence.progress is None else gang.on_progress(obs, evidence.progress)
        case ev.Decided():
            return after_effects(obs, evidence.effects)
        case ev.RunOpened():
            return obs
        case ev.TermBegan():
            return closing.on_term(obs, evidence)
        case ev.Asked():
            return closing.on_asked(obs, evidence)
        case ev.NodeJoined() | ev.NodeLost() | ev.ProvisionFailed():
            return _fold_agent(obs, evidence)
        case (
            ev.GangUp()
            | ev.GangRestored()
            | ev.GangMismatched()
            | ev.GangGone()
            | ev.GangFinished()
            | ev.WorkerFailed()
            | ev.RestoreFailed()
        ):
            return _fold_gang(obs, evidence)
        case _:
            return _fold_save(obs, evidence)


def _fold_agent(obs: Observation, evidence: ev.NodeJoined | ev.NodeLost | ev.ProvisionFailed) -> Observation:
    match evidence:
        case ev.NodeJoined():
            return agents.on_joined(obs, evidence)
        case ev.NodeLost():
            return agents.on_lost(obs, evidence)
        case ev.ProvisionFailed():
            return agents.on_provision_failed(obs, evidence)
        case _:
            assert_never(evidence)


def _fold_gang(
    obs: Observation,
    evidence: ev.GangUp
    | ev.GangRestored
    | ev.GangMismatched
    | ev.GangGone
    | ev.GangFinished
    | ev.WorkerFailed
    | ev.RestoreFailed,
) -> Observation:
    match evidence:
        case ev.GangUp():
            return gang.on_up(obs, evidence)
        case ev.GangRestored():
            return gang.on_restored(obs, evidence)
        case ev.GangMismatched():
            return gang.on_mismatched(obs, evidence)
        case ev.GangGone():
            return gang.on_gone(obs, evidence)
        case ev.GangFinished():
            return gang.on_finished(obs, evidence)
        case ev.WorkerFailed():
            return gang.on_worker_failed(obs, evidence)
        case ev.RestoreFailed():
            return gang.on_restore_failed(obs, evidence)
        case _:
            assert_never(evidence)


def _fold_save(
    obs: Observation,
    evidence: ev.CommitsFound
    | ev.SavePassed
    | ev.SaveArmed
    | ev.SaveStaged
    | ev.SaveWritten
    | ev.SaveFailed
    | ev.Committed
    | ev.Deleted
    | ev.Pinned,
) -> Observation:
    match evidence:
        case ev.CommitsFound():
            return keeping.on_found(obs, evidence)
        case ev.SavePassed():
            return saving.on_passed(obs, evidence)
        case ev.SaveArmed():
            return saving.on_armed(obs, evidence)
        case ev.SaveStaged():
            return saving.on_staged(obs, evidence)
        case ev.SaveWritten():
            return saving.on_written(obs, evidence)
        case ev.SaveFailed():
            return saving.on_failed(obs, evidence)
        case ev.Committed():
            return saving.on_committed(obs, evidence)
        case ev.Deleted():
            return keeping.on_deleted(obs, evidence)
        case ev.Pinned():
            return keeping.on_pinned(obs, evidence)
        case _:
            assert_never(evidence)


def after_effects(obs: Observation, effects: Iterable[Effect]) -> Observation:
    """What is known once these were decided. Effects of another run, term or earlier start change nothing.

    Time's consequences are drawn after each effect, so that one list folded whole equals its parts folded one by one.
    """
    for effect in effects:
        if effect.fence.epoch == obs.epoch and not effect.fence.is_stale_against(obs.fence):
            obs = _elapse(_after_effect(obs, effect))
    return obs


def _after_effect(obs: Observation, effect: Effect) -> Observation:
    match effect:
        case fx.Provision():
            return agents.provisioned(obs, effect)
        case fx.Evict():
            return agents.evicted(obs, effect)
        case fx.Place():
            return agents.placed(obs, effect)
        case fx.Replace():
            return attempts.replaced(obs, effect)
        case fx.Start():
            return attempts.started(obs, effect)
        case fx.Stop():
            return attempts.stopped(obs, effect)
        case fx.Reject():
            return keeping.rejected(obs, effect)
        case fx.Close():
            return closing.closed(obs, effect)
        case _:
            return _after_save_effect(obs, effect)


def _after_save_effect(obs: Observation, effect: fx.Save | fx.Agree | fx.Commit | fx.Abort | fx.Delete) -> Observation:
    match effect:
        case fx.Save():
            return saving.called(obs, effect)
        case fx.Agree():
            return saving.agreed(obs, effect)
        case fx.Commit():
            return saving.committing(obs, effect)
        case fx.Abort():
            return saving.aborted(obs, effect)
        case fx.Delete():
            return keeping.deleted(obs, effect)
        case _:
            assert_never(effect)
