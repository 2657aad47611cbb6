"""Who looks on at a history, alone or together with others. Neighbours: `audit` and `stopping`, the auditors."""

# Auditors share one set of methods, of which each needs a part.
# ruff: noqa: ARG002

from __future__ import annotations

from behemoth.simulation.body import Brain
from behemoth.simulation.cluster import Cluster
from behemoth.state.effect import Effect
from behemoth.state.observation import Observation


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
