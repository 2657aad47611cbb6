"""How far the gang is, from the beats of its agents: one Progress when something changed, and figures for people.

The slowest rank counts. Steps are heard in beats, so `at_us` is when the coordinator heard of the step; the agents
send one beat at once for the first step after a start, which is what recovery times are measured by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from behemoth.base.ids import Attempt, NodeId, Step
from behemoth.policy.hang import laggard_key
from behemoth.state.config import HangFloors
from behemoth.state.evidence import Progress
from behemoth.wire.reports import Beat


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """Figures for a view; nothing decides by them. `loss` is the mean over the nodes that report one."""

    attempt: Attempt
    step: Step
    loss: float | None
    tokens: int


class ProgressBoard:
    """The last beat of each node of one attempt. Not thread-safe; owned by the server's event loop."""

    def __init__(self, attempt: Attempt, nodes: Sequence[NodeId], *, floors: HangFloors) -> None:
        self._attempt = attempt
        self._floors = floors
        self._beats: dict[NodeId, Beat | None] = dict.fromkeys(nodes)
        self._heard_us: dict[NodeId, int] = {}
        self._num_silent = len(self._beats)
        self._slowest_step_us = 0
        self._told: Progress | None = None
        self._finished: set[NodeId] = set()

    def note(self, node: NodeId, beat: Beat, now_us: int) -> None:
        """Beats of other attempts and of nodes outside the gang say nothing about this one."""
        if beat.attempt != self._attempt or node not in self._beats:
            return
        if self._beats[node] is None:
            self._num_silent -= 1
        self._beats[node] = beat
        self._heard_us[node] = now_us
        self._slowest_step_us = max(self._slowest_step_us, beat.slowest_step_us)

    def finished(self, node: NodeId, attempt: Attempt) -> None:
        """Its workers have ended as they should: what they did last says nothing about those that still work."""
        if attempt == self._attempt:
            self._finished.add(node)

    def is_first_step_due(self) -> bool:
        """True when the gang has completed a step and no Progress has told of any yet."""
        if self._num_silent or (self._told is not None and self._told.slowest_step_us > 0):
            return False
        return all(beat is not None and beat.slowest_step_us > 0 for beat in self._beats.values())

    def progress(self) -> Progress | None:
        """What changed since the last call, None when nothing did or a node has not beaten yet. O(nodes)."""
        if self._num_silent:
            return None
        beats = {node: beat for node, beat in self._beats.items() if beat is not None}
        step = min(beat.step for beat in beats.values())
        behind = [node for node, beat in beats.items() if beat.step == step]
        laggard = min(
            [node for node in behind if node not in self._finished] or behind,
            key=lambda node: laggard_key(
                beats[node].phase, self._phase_since_us(node, beats[node]), floors=self._floors
            ),
        )
        news = Progress(
            attempt=self._attempt,
            step=step,
            furthest_step=max(beat.furthest_step for beat in beats.values()),
            at_us=max(self._heard_us[node] for node in behind),
            phase=beats[laggard].phase,
            phase_since_us=self._phase_since_us(laggard, beats[laggard]),
            slowest_step_us=self._slowest_step_us,
            stall_us=sum(beat.stall_us for beat in beats.values()),
        )
        if self._told is not None and _is_same(self._told, news):
            return None
        self._told = news
        self._slowest_step_us = 0
        return news

    def vitals(self) -> Vitals:
        beats = [beat for beat in self._beats.values() if beat is not None]
        losses = [beat.loss for beat in beats if beat.loss is not None]
        return Vitals(
            attempt=self._attempt,
            step=min((beat.step for beat in beats), default=Step(0)),
            loss=sum(losses) / len(losses) if losses else None,
            tokens=sum(beat.tokens for beat in beats),
        )

    def _phase_since_us(self, node: NodeId, beat: Beat) -> int:
        return self._heard_us[node] - beat.phase_age_us


def _is_same(told: Progress, news: Progress) -> bool:
    """An evaluation that began after what was told is another one; to return to phase `step` is no step."""
    if news.phase == "eval" and news.phase_since_us > told.at_us:
        return False
    return (told.step, told.furthest_step, told.phase, told.stall_us) == (
        news.step,
        news.furthest_step,
        news.phase,
        news.stall_us,
    )
