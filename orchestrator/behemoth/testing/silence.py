"""What the brain would do while nothing is told: the check of its promise when to be woken."""

from __future__ import annotations

from behemoth.reconcile.decide import decide
from behemoth.reconcile.fold import fold
from behemoth.state.effect import Effect, Save
from behemoth.state.evidence import Late, Tick
from behemoth.state.observation import Observation

A_YEAR_US = 365 * 86_400_000_000


def effects_of_silence(obs: Observation, wake_at_us: int | None) -> tuple[Effect, ...]:
    """What would be decided just before `wake_at_us` (None: within a year) had the loop been awake; it should be
    nothing, or the loop sleeps through it.

    Announcements of saves at multiples of a number of steps are left out: they follow the line of progress, which every
    report draws on. Those by time are not: nothing else may wake the loop for them.
    """
    late = tuple(Late(node=name, since_us=node.late_us) for name, node in obs.nodes.items() if node.late_us is not None)
    last_us = obs.now_us + A_YEAR_US if wake_at_us is None else wake_at_us - 1
    effects = decide(fold(obs, Tick(late=late), last_us)).effects
    if obs.config.cadence.interval_us is not None:
        return effects
    return tuple(effect for effect in effects if not isinstance(effect, Save))
