"""The way from the world to the brain: perfect, or as bad as a network that one would not wish for.

A lossy channel drops, doubles and delays (hence reorders) evidence by chance from a seed. What it drops is not lost for
good: the bodies repeat their facts (`Cluster.retell`), as agents do when they reconnect.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from random import Random

from behemoth.simulation.agenda import Agenda
from behemoth.state.evidence import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How bad: probabilities per piece of evidence, and the longest delay."""

    drop: float
    duplicate: float
    delay: float
    max_delay_us: int


class Channel:
    """Fills `inbox`. `loss` may be changed at any time; None delivers at once, in order, exactly once."""

    def __init__(self, *, agenda: Agenda, rng: Random, loss: Loss | None = None) -> None:
        self.inbox: deque[Evidence] = deque()
        self.loss = loss
        self.num_dropped = 0
        self._agenda = agenda
        self._rng = rng
        self._term = 0
        self._is_cut = False

    def send(self, evidence: Evidence) -> None:
        if self._is_cut:
            return
        if self.loss is None:
            self.inbox.append(evidence)
            return
        self._send(evidence, self.loss)

    def cut(self) -> None:
        """Nobody listens: what is under way, and what is sent from now on, never arrives."""
        self._term += 1
        self._is_cut = True
        self.inbox.clear()

    def join(self) -> None:
        """Somebody listens again."""
        self._is_cut = False

    def _send(self, evidence: Evidence, loss: Loss) -> None:
        if self._rng.random() < loss.drop:
            self.num_dropped += 1
            return
        num_copies = 2 if self._rng.random() < loss.duplicate else 1
        for _ in range(num_copies):
            delay_us = self._rng.randrange(loss.max_delay_us) if self._rng.random() < loss.delay else 0
            self._agenda.after(delay_us, partial(self._deliver, self._term, evidence))

    def _deliver(self, term: int, evidence: Evidence) -> None:
        if term == self._term and not self._is_cut:
            self.inbox.append(evidence)
