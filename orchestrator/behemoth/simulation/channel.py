"""The way from the world to the brain: perfect, or as bad as a network that one would not wish for.

A lossy channel drops, doubles and delays (hence reorders) evidence by chance from a seed. What it drops is not lost for
good: the bodies repeat their facts (`Cluster.retell`), as agents do when they reconnect. It may also say once more, at
any later time, what was said of an attempt or a save that is long over, as an agent does whose queue was stuck.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from random import Random

from behemoth.base.ids import Attempt
from behemoth.simulation.agenda import Agenda
from behemoth.state.evidence import (
    Committed,
    Evidence,
    GangFinished,
    GangGone,
    GangRestored,
    GangUp,
    RestoreFailed,
    SaveArmed,
    SaveFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
    Tick,
    WorkerFailed,
)

_MAX_REMEMBERED = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How bad: probabilities per piece of evidence, and the longest delay."""

    drop: float
    duplicate: float
    delay: float
    max_delay_us: int
    echo: float = 0.0
    """Probability that a piece of evidence brings along one about a replaced attempt or a former save, of any age."""


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
        self._memory = _Memory()

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
        if loss.echo > 0.0:
            self._echo(evidence, loss)
        if self._rng.random() < loss.drop:
            self.num_dropped += 1
            return
        num_copies = 2 if self._rng.random() < loss.duplicate else 1
        for _ in range(num_copies):
            delay_us = self._rng.randrange(loss.max_delay_us) if self._rng.random() < loss.delay else 0
            self._agenda.after(delay_us, partial(self._deliver, self._term, evidence))

    def _echo(self, evidence: Evidence, loss: Loss) -> None:
        old = self._memory.old
        if old and self._rng.random() < loss.echo:
            delay_us = self._rng.randrange(loss.max_delay_us)
            self._agenda.after(delay_us, partial(self._deliver, self._term, self._rng.choice(old)))
        self._memory.note(evidence)

    def _deliver(self, term: int, evidence: Evidence) -> None:
        if term == self._term and not self._is_cut:
            self.inbox.append(evidence)


class _Memory:
    """What agents may still have to say of attempts that were replaced, and of saves. It outlives terms, as they do."""

    def __init__(self) -> None:
        self.old: deque[Evidence] = deque(maxlen=_MAX_REMEMBERED)
        self._attempt = Attempt(0)
        self._present: dict[str, Evidence] = {}

    def note(self, evidence: Evidence) -> None:
        match evidence:
            case SavePassed() | SaveArmed() | SaveStaged() | SaveWritten() | SaveFailed() | Committed():
                self.old.append(evidence)
            case WorkerFailed() | RestoreFailed() | GangUp() | GangRestored() | GangGone() | GangFinished():
                self._note_of(evidence.attempt, evidence)
            case Tick(progress=progress) if progress is not None:
                self._note_of(progress.attempt, Tick(progress=progress))
            case _:
                pass

    def _note_of(self, attempt: Attempt, evidence: Evidence) -> None:
        if attempt > self._attempt:
            self._replace(attempt)
        if attempt == self._attempt:
            self._present[type(evidence).__name__] = evidence

    def _replace(self, attempt: Attempt) -> None:
        """Whatever became of it, no worker of the former attempt is left now, and the last of them may say so."""
        if self._present:
            ended = GangGone(attempt=self._attempt), GangFinished(attempt=self._attempt)
            self.old.extend((*self._present.values(), *ended))
        self._attempt, self._present = attempt, {}
