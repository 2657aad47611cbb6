"""The world that the brain's effects change, as a model: nodes, agents, workers, store.

`apply` does what a real body does with an effect, and refuses what carries a stale fence; answers come later, as
evidence. Two things are never allowed, whatever the brain says: a node with two slots, and a gang without a placement;
both raise Internal, because they are bugs of the brain. It decides nothing. Neighbours: `faults` breaks it, `body` runs
the brain on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from behemoth.base.errors import Internal
from behemoth.base.ids import Attempt, Epoch, NodeId, Rank, Slot
from behemoth.base.slots import ranks_of
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.facts import Facts
from behemoth.simulation.gang import SaveTry
from behemoth.simulation.machines import Change, Machines
from behemoth.simulation.saves import Parts
from behemoth.simulation.store import Store
from behemoth.simulation.timing import Timing
from behemoth.simulation.training import Training
from behemoth.state.config import RunConfig
from behemoth.state.effect import (
    Abort,
    Agree,
    Close,
    Commit,
    Delete,
    Effect,
    Evict,
    Outcome,
    Place,
    Provision,
    Reject,
    Replace,
    Save,
    Start,
    Stop,
)
from behemoth.state.evidence import Evidence, Tick
from behemoth.state.fence import Fence

CHECKPOINT_BYTES = 1 << 30
"""Size of every commit of the model; nothing depends on it."""


class Cluster:
    """One run's world. Everything it has to tell goes through `send`, in the order in which it happens."""

    def __init__(self, *, config: RunConfig, agenda: Agenda, timing: Timing, send: Callable[[Evidence], None]) -> None:
        self.config = config
        self.seen = Fence(run_uid=config.run_uid, epoch=Epoch(0), attempt=Attempt(0))
        self.slots: list[NodeId] = []
        self.outcome: Outcome | None = None
        self.num_refused = 0
        self.facts = Facts(send=send)
        self.store = Store(agenda=agenda, facts=self.facts, commit_us=timing.commit_us, size_bytes=CHECKPOINT_BYTES)
        self.machines = Machines(
            names=config.nodes, agenda=agenda, facts=self.facts, timing=timing, on_agent=self._on_agent
        )
        parts = Parts(
            agenda=agenda,
            facts=self.facts,
            store=self.store,
            timing=timing,
            total_steps=config.total_steps,
            num_ranks=config.num_slots * config.ranks_per_node,
            is_fit=lambda: not self._silent_holders,
            tick=self._tick,
        )
        self.training = Training(parts)
        self._agenda = agenda
        self._timing = timing
        self._slot_of: dict[NodeId, Slot] = {}
        self._silent_holders: dict[NodeId, None] = {}
        self._gone_holders: dict[NodeId, None] = {}

    # What the body asks.

    def look(self) -> Tick:
        """Beats and progress as they are now."""
        return Tick(late=self.machines.late(), progress=self.training.progress())

    def slot_of(self, node: NodeId) -> Slot | None:
        return self._slot_of.get(node)

    def begin_term(self, epoch: Epoch, *, do_agents_survive: bool) -> None:
        """A coordinator with this epoch is there: older ones are refused, and agents that live greet it."""
        self.seen = Fence(run_uid=self.seen.run_uid, epoch=epoch, attempt=self.seen.attempt)
        self.outcome = None
        if not do_agents_survive:
            self.machines.end_all_agents()
            self.training.end_everything()
        self.machines.rejoin(self._attempt_on)
        self.retell()

    def retell(self) -> None:
        """Every agent that answers tells its present state once more."""
        self.facts.retell(silent=self.machines.frozen)
        self._tick()

    # What the brain wants.

    def apply(self, effect: Effect) -> bool:
        """Make it so; False when it was refused as stale or because the run is closed. Twice is as good as once.

        Raises Internal for a placement that gives one node two slots, and for a Start before any placement."""
        if effect.fence.is_stale_against(self.seen) or self.outcome is not None:
            self.num_refused += 1
            return False
        self.seen = effect.fence
        self._do(effect)
        return True

    def _do(self, effect: Effect) -> None:
        match effect:
            case Provision():
                self.machines.provision(effect.node, effect.incarnation)
            case Evict():
                self._evict(effect)
            case Place():
                self._place(effect.holders)
            case Replace():
                self._replace(effect)
            case Start():
                self._start(effect)
            case Stop():
                self.training.stop(effect.fence.attempt)
            case Reject():
                self.store.reject(effect.commit)
            case Delete():
                self.store.delete(effect.commits)
            case Close():
                self._close(effect.outcome)
            case Save() | Agree() | Commit() | Abort():
                self._do_save(effect)
            case _:
                assert_never(effect)

    def _do_save(self, effect: Save | Agree | Commit | Abort) -> None:
        match effect:
            case Save():
                self.training.saves.call(
                    SaveTry(
                        step=effect.step,
                        write_id=effect.write_id,
                        is_last=effect.is_last,
                        attempt=effect.fence.attempt,
                    )
                )
            case Agree():
                self.training.saves.agree(effect.write_id)
            case Commit():
                self.store.commit(effect.step, effect.write_id)
            case Abort():
                self.training.saves.abort(effect.write_id)
            case _:
                assert_never(effect)

    def _evict(self, effect: Evict) -> None:
        self.machines.evict(effect.node, effect.incarnation)

    def _place(self, holders: tuple[NodeId, ...]) -> None:
        if len(set(holders)) != len(holders):
            twice = sorted({node for node in holders if holders.count(node) > 1})
            raise Internal(f"placement: expected every node once, got {', '.join(twice)} with two slots")
        self.slots = list(holders)
        self._slot_of = {node: Slot(slot) for slot, node in enumerate(holders)}
        self._silent_holders = {}
        self._gone_holders = {}
        for node in holders:
            self._note_holder(node)

    def _replace(self, effect: Replace) -> None:
        holder = self.slots[effect.slot]
        if holder == effect.spare:
            return
        if effect.spare in self._slot_of:
            raise Internal(
                f"placement: expected spare {effect.spare} without a slot, got one that holds slot "
                f"{self._slot_of[effect.spare]} and was given slot {effect.slot}"
            )
        if holder != effect.node:
            raise Internal(f"placement: expected {effect.node} in slot {effect.slot}, got {holder}")
        self.slots[effect.slot] = effect.spare
        self._slot_of[effect.spare] = effect.slot
        del self._slot_of[holder]
        self._silent_holders.pop(holder, None)
        self._gone_holders.pop(holder, None)
        self._note_holder(effect.spare)

    def _start(self, effect: Start) -> None:
        if not self.slots:
            raise Internal(f"start: expected a placement before attempt {effect.fence.attempt}, got none")
        gang = self.training.gang
        if gang is not None and gang.attempt >= effect.fence.attempt:
            return
        self.training.start(effect.fence.attempt, effect.restore, self.slots[0], is_whole=not self._gone_holders)

    def _close(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.training.end_everything()
        self.machines.end_all_agents()

    # What happens.

    def rank_on(self, node: NodeId) -> Rank | None:
        """A rank of that node; None when it holds no slot."""
        slot = self._slot_of.get(node)
        return None if slot is None else ranks_of(slot, self.config.ranks_per_node)[0]

    def _attempt_on(self, node: NodeId) -> Attempt:
        gang = self.training.gang
        runs = gang is not None and not gang.is_over and node in self._slot_of
        return gang.attempt if gang is not None and runs else Attempt(0)

    def _on_agent(self, node: NodeId, change: Change) -> None:
        if node in self._slot_of:
            self._note_holder(node)
            self.training.holders_changed()
        match change:
            case "frozen":
                self._agenda.after(self._timing.beat_us, self._tick)
            case "thawed":
                self._tick()
            case "joined" | "ended":
                pass
            case _:
                assert_never(change)

    def _note_holder(self, node: NodeId) -> None:
        machine = self.machines.machines[node]
        _mark(self._silent_holders, node, is_set=not machine.answers())
        was_gone = node in self._gone_holders
        _mark(self._gone_holders, node, is_set=machine.agent == 0)
        if machine.agent == 0 and not was_gone:
            self.training.holder_gone()

    def _tick(self) -> None:
        if self.outcome is None:
            self.facts.say(self.look())


def _mark(nodes: dict[NodeId, None], node: NodeId, *, is_set: bool) -> None:
    if is_set:
        nodes[node] = None
    else:
        nodes.pop(node, None)
