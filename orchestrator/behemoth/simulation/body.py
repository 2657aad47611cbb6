"""The discrete-event body: it runs the very fold and decide of production on the model, and sleeps until `wake_at_us`.

Each turn is the turn of `behemoth.reconcile.loop`: fold what has arrived, decide, journal the decision, apply it.
Only the sleeping differs: here time jumps. It holds no policy, no timer and no retry. Neighbour: `report` reads it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from behemoth.base.errors import Internal
from behemoth.base.ids import Epoch
from behemoth.reconcile import decide as brain_decide
from behemoth.reconcile import fold as brain_fold
from behemoth.reconcile.journal import encode_line
from behemoth.reconcile.ledger import Ledger, book
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.channel import Channel
from behemoth.simulation.cluster import Cluster
from behemoth.state.decision import Decision
from behemoth.state.effect import Effect
from behemoth.state.evidence import CommitsFound, Decided, Evidence, RunOpened, TermBegan
from behemoth.state.observation import Observation

MAX_TURNS_PER_MOMENT = 1_000
"""A brain that decides so often without time passing goes round in circles."""

Fold = Callable[[Observation | None, Evidence, int], Observation]
Decide = Callable[[Observation], Decision]
Watch = Callable[[Observation, tuple[Effect, ...]], None]
Apply = Callable[[Effect], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Brain:
    """The two functions under test. Another pair than the default serves comparisons and deliberate mutations."""

    fold: Fold = brain_fold.fold
    decide: Decide = brain_decide.decide


class Body:
    """One term of one run. `journal`, when given, receives every line. `stopwatch_ns` times each call of decide.

    `watch(observation, effects)` is called in every turn after the decision was folded and before it is applied.
    `apply` stands in for the cluster's own, for a process that dies between two effects. The ledger is kept by the
    body that opened the run; one that takes over has none."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        agenda: Agenda,
        channel: Channel,
        brain: Brain,
        observation: Observation | None = None,
        journal: list[bytes] | None = None,
        watch: Watch | None = None,
        apply: Apply | None = None,
        stopwatch_ns: Callable[[], int] | None = None,
    ) -> None:
        self.observation = observation
        self.decision: Decision | None = None
        self.ledger: Ledger | None = None
        self.num_decided = 0
        self.num_folded = 0
        self.decide_ns = array("q")
        self._cluster = cluster
        self._agenda = agenda
        self._channel = channel
        self._brain = brain
        self._journal = journal
        self._watch = watch
        self._apply = apply if apply is not None else cluster.apply
        self._stopwatch_ns = stopwatch_ns
        self._turn_us = -1
        self._num_turns_now = 0

    def begin(self, epoch: Epoch, *, do_agents_survive: bool = True) -> None:
        """Open the run, or take it over when there is an observation already."""
        if self.observation is None:
            self._fold(RunOpened(config=self._cluster.config))
        self._fold(TermBegan(epoch=epoch))
        self._fold(CommitsFound(commits=self._cluster.store.found()))
        self._channel.join()
        self._cluster.begin_term(epoch, do_agents_survive=do_agents_survive)
        self.turn()

    def run_until(self, until_us: int) -> bool:
        """Play on up to `until_us`; False as soon as the run is closed, be it by a predecessor that died before it
        could tell the agents: the process ends then, and they with it."""
        while not self.is_closed:
            due_us = self._due_us()
            if due_us is None or due_us > until_us:
                self._agenda.advance_to(until_us)
                return True
            self._step_to(due_us)
        return False

    @property
    def is_closed(self) -> bool:
        return self.observation is not None and self.observation.outcome is not None

    def turn(self) -> None:
        """One turn of the loop."""
        self._count_turn()
        inbox = self._channel.inbox
        while inbox:
            self._fold(inbox.popleft())
        for effect in self._decide():
            self._apply(effect)

    def _due_us(self) -> int | None:
        if self._channel.inbox:
            return self._agenda.now_us
        event_us = self._agenda.next_us()
        wake_us = self.decision.wake_at_us if self.decision is not None else None
        if wake_us is None:
            return event_us
        wake_us = max(wake_us, self._agenda.now_us)
        return wake_us if event_us is None else min(event_us, wake_us)

    def _step_to(self, due_us: int) -> None:
        self._agenda.advance_to(due_us)
        wake_us = self.decision.wake_at_us if self.decision is not None else None
        if wake_us is not None and wake_us <= due_us and not self._channel.inbox:
            self._channel.inbox.append(self._cluster.look())
        if self._channel.inbox:
            self.turn()

    def _decide(self) -> tuple[Effect, ...]:
        if self.observation is None:
            raise Internal("body: expected a run that was opened, got none")
        self.decision = self._timed_decide(self.observation)
        self.num_decided += 1
        effects = self.decision.effects
        if effects:
            self._fold(Decided(effects=effects))
        if self._watch is not None:
            self._watch(self.observation, effects)
        return effects

    def _timed_decide(self, observation: Observation) -> Decision:
        if self._stopwatch_ns is None:
            return self._brain.decide(observation)
        begin_ns = self._stopwatch_ns()
        decision = self._brain.decide(observation)
        self.decide_ns.append(self._stopwatch_ns() - begin_ns)
        return decision

    def _fold(self, evidence: Evidence) -> None:
        now_us = self._agenda.now_us
        if self._journal is not None:
            self._journal.append(encode_line(now_us, evidence))
        self.num_folded += 1
        before = self.observation
        self.observation = self._brain.fold(before, evidence, now_us)
        if self.ledger is not None or before is None:
            self.ledger = book(self.ledger, before, evidence, self.observation)

    def _count_turn(self) -> None:
        if self._agenda.now_us != self._turn_us:
            self._turn_us, self._num_turns_now = self._agenda.now_us, 0
        self._num_turns_now += 1
        if self._num_turns_now > MAX_TURNS_PER_MOMENT:
            raise Internal(
                f"brain: expected time to pass, got {self._num_turns_now} decisions at {self._turn_us} us, the last "
                f"of them {self.decision!r}"
            )
