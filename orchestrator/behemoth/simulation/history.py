"""Histories: what may befall a run, as values, and the player that lets it happen to the model.

Where `faults` draws from published rates, a history is a list of mishaps that a test chooses: faults, a bad channel, a
coordinator that dies between any two effects and is followed by another, wishes of the operator. Neighbour:
`behemoth.testing.strategies`, which makes up histories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias, assert_never

from behemoth.base.errors import Internal
from behemoth.base.ids import Epoch, NodeId
from behemoth.reconcile.journal import decode_lines, replay
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.body import Body, Brain, Watch
from behemoth.simulation.channel import Channel, Loss
from behemoth.simulation.cluster import Cluster
from behemoth.simulation.faults import FaultKind, strike
from behemoth.simulation.timing import Timing
from behemoth.state.config import RunConfig
from behemoth.state.effect import Effect
from behemoth.state.evidence import Asked

RETELL_US = 15_000_000
"""How often bodies repeat their facts in a history with a bad channel, also after it became good."""
FUSE_PATIENCE_US = 5_000_000
"""How long a coordinator that is to die between two effects waits for a decision to die in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing happens for a while."""

    for_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A fault on the node with this order. A lost machine is away, or a frozen one frozen, for `repair_us`."""

    kind: FaultKind
    order: int
    repair_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFault:
    """The store refuses the next write of a save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipBit:
    """The newest commit no longer restores, and nobody knows yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The coordinator dies after applying `num_applied` effects of its next decision, or soon if it decides nothing.
    Its successor comes `down_us` later. `is_tail_lost`: lines after the last synced decision did not reach the disk."""

    num_applied: int
    down_us: int
    do_agents_survive: bool
    is_tail_lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A wish of the operator."""

    request: Literal["suspend", "stop", "resume"]


Mishap: TypeAlias = Wait | Strike | WriteFault | FlipBit | Crash | Ask


class Died(Exception):
    """The coordinator's process ended between two effects."""


class History:
    """One run through a history, with everything that a test wants to look at.

    `on_effect` is called in place of `Cluster.apply`, with the cluster and the effect, and does the applying."""

    def __init__(
        self,
        *,
        config: RunConfig,
        timing: Timing,
        seed: int,
        loss: Loss | None,
        brain: Brain,
        watch: Watch | None = None,
        on_effect: Callable[[Cluster, Effect], bool] | None = None,
    ) -> None:
        self.journal: list[bytes] = []
        self.epoch = Epoch(0)
        self.num_zombie_effects_applied = 0
        self.agenda = Agenda()
        self.channel = Channel(agenda=self.agenda, rng=Random(seed), loss=loss)
        self.cluster = Cluster(config=config, agenda=self.agenda, timing=timing, send=self.channel.send)
        self._config = config
        self._is_lossy = loss is not None
        self._brain = brain
        self._watch = watch
        self._on_effect = on_effect if on_effect is not None else Cluster.apply
        self._fuse: int | None = None
        self._unapplied: list[Effect] = []
        self.body = self._new_body()

    def begin(self) -> None:
        """Open the run."""
        self.agenda.after(RETELL_US, self._retell)
        self._begin(do_agents_survive=True)

    def play(self, mishaps: Sequence[Mishap]) -> None:
        """Let these befall the run, one after the other; what comes after its end befalls nobody."""
        for mishap in mishaps:
            if self.body.is_closed:
                return
            self.do(mishap)

    def do(self, mishap: Mishap) -> None:
        match mishap:
            case Wait():
                self._run(mishap.for_us)
            case Strike():
                node = self._config.nodes[mishap.order % len(self._config.nodes)]
                strike(self.cluster, mishap.kind, node, repair_us=mishap.repair_us)
            case WriteFault():
                self.cluster.training.saves.num_write_faults += 1
            case FlipBit():
                self._flip_bit()
            case Crash():
                self._crash(mishap)
            case Ask():
                self.channel.inbox.append(Asked(request=mishap.request))
                self._run(0)
            case _:
                assert_never(mishap)

    def calm(self, for_us: int) -> bool:
        """Faults cease: channel and store are perfect from now on. True when the run was closed within `for_us`."""
        self.channel.loss = None
        self.cluster.training.saves.num_write_faults = 0
        self._run(for_us)
        return self.body.is_closed

    def replace_coordinator(self, *, down_us: int, do_agents_survive: bool, is_tail_lost: bool) -> None:
        """The process is gone; another takes over from the journal. What the dead one had yet to apply comes late."""
        self._fuse = None
        self.channel.cut()
        self.agenda.advance_to(self.agenda.now_us + down_us)
        if is_tail_lost:
            self._lose_tail()
        self.body = self._new_body()
        zombie, self._unapplied = self._unapplied, []
        self._begin(do_agents_survive=do_agents_survive)
        self.num_zombie_effects_applied += sum(self.cluster.apply(effect) for effect in zombie)

    def node(self, order: int) -> NodeId:
        return self._config.nodes[order]

    def _begin(self, *, do_agents_survive: bool) -> None:
        self.epoch = Epoch(self.epoch + 1)
        self.body.begin(self.epoch, do_agents_survive=do_agents_survive)

    def _new_body(self) -> Body:
        return Body(
            cluster=self.cluster,
            agenda=self.agenda,
            channel=self.channel,
            brain=self._brain,
            observation=replay(decode_lines(b"".join(self.journal))),
            journal=self.journal,
            watch=self._watch,
            apply=self._apply,
        )

    def _run(self, for_us: int) -> None:
        try:
            self.body.run_until(self.agenda.now_us + for_us)
        except Died:
            raise Internal("history: expected a coordinator that lives, got one that died outside a crash") from None

    def _crash(self, crash: Crash) -> None:
        self._fuse = crash.num_applied
        with suppress(Died):
            self.body.run_until(self.agenda.now_us + FUSE_PATIENCE_US)
        if self.cluster.outcome is not None:
            return
        self.replace_coordinator(
            down_us=crash.down_us, do_agents_survive=crash.do_agents_survive, is_tail_lost=crash.is_tail_lost
        )

    def _apply(self, effect: Effect) -> bool:
        if self._fuse is None:
            return self._on_effect(self.cluster, effect)
        if self._fuse == 0:
            decision = self.body.decision
            effects = decision.effects if decision is not None else ()
            self._unapplied = list(effects[effects.index(effect) :])
            raise Died
        self._fuse -= 1
        return self._on_effect(self.cluster, effect)

    def _lose_tail(self) -> None:
        while self.journal and b'"Decided"' not in self.journal[-1]:
            self.journal.pop()

    def _flip_bit(self) -> None:
        newest = self.cluster.store.newest()
        if newest is not None:
            self.cluster.store.corrupt.add(newest.write_id)

    def _retell(self) -> None:
        if self._is_lossy:
            self.cluster.retell()
        self.agenda.after(RETELL_US, self._retell)
