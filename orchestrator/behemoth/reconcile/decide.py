"""decide(observation) -> Decision: what shall be done now, what is so, and when to look again.

Pure, total, deterministic; cost is that of what changed and what is open. Rules are tried in order; the first that
wants something is heard, its effects are folded exactly as the journal will fold them, and the rules are tried again,
until none wants anything. So a decision is complete, and deciding once more after folding it yields nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.base.errors import Internal
from behemoth.reconcile import agents, attempts, closing, gang, keeping, saving
from behemoth.reconcile.fold import after_effects
from behemoth.reconcile.report import status_of
from behemoth.state.decision import Decision
from behemoth.state.effect import Effect
from behemoth.state.observation import Observation

_RULES: tuple[Callable[[Observation], tuple[Effect, ...]], ...] = (
    agents.evictions,
    saving.aborts,
    keeping.rejections,
    closing.closings,
    agents.provisions,
    agents.placement,
    attempts.starts,
    saving.calls,
    keeping.deletions,
)
_DEADLINES: tuple[Callable[[Observation], list[int]], ...] = (
    agents.deadlines,
    gang.deadlines,
    attempts.deadlines,
    saving.deadlines,
    closing.deadlines,
)
_MAX_ROUNDS = 64
"""No observation needs more than one round per rule; one that goes on for ever is a bug, told instead of looped."""


def decide(obs: Observation) -> Decision:
    """The decision at `obs.now_us`; raises Internal only for rules that never come to rest, which is a bug."""
    effects: list[Effect] = []
    for _ in range(_MAX_ROUNDS):
        wanted = _wanted(obs)
        if not wanted:
            return Decision(effects=tuple(effects), status=status_of(obs), wake_at_us=_wake_at_us(obs))
        effects.extend(wanted)
        obs = after_effects(obs, wanted)
    names = ", ".join(type(effect).__name__ for effect in effects[-8:])
    raise Internal(f"decision: expected an end within {_MAX_ROUNDS} rounds, got {names} again and again")


def _wanted(obs: Observation) -> tuple[Effect, ...]:
    if obs.epoch == 0 or obs.outcome is not None:
        return ()
    for rule in _RULES:
        effects = rule(obs)
        if effects:
            return effects
    return ()


def _wake_at_us(obs: Observation) -> int | None:
    if obs.epoch == 0 or obs.outcome is not None:
        return None
    times_us = (time_us for deadlines in _DEADLINES for time_us in deadlines(obs))
    return min((time_us for time_us in times_us if time_us > obs.now_us), default=None)
