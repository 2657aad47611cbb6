"""The model's machines and the agents on them: up, in repair, frozen, provisioned, evicted.

Plays the Runtime and the handshake half of the coordinator's server. It knows nothing of gangs and saves: `training`
does, and hears through `on_agent` which agents answer. Whatever it tells is a fact that it repeats on demand (`Facts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from behemoth.base.ids import Attempt, NodeId
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.facts import Facts
from behemoth.simulation.timing import Timing
from behemoth.state.evidence import Late, NodeJoined, NodeLost, ProvisionFailed

Change = Literal["joined", "frozen", "thawed", "ended"]


@dataclass(slots=True, kw_only=True)
class Machine:
    """One machine. `agent` is the incarnation that answers, 0 for none; `coming` the one that is being started."""

    is_up: bool = True
    agent: int = 0
    coming: int = 0
    newest: int = 0
    frozen_since_us: int | None = None

    def answers(self) -> bool:
        return self.agent > 0 and self.frozen_since_us is None


class Machines:
    """All machines of a run. Calls `on_agent(node, change)` whenever an agent begins or ceases to answer."""

    def __init__(
        self,
        *,
        names: Iterable[NodeId],
        agenda: Agenda,
        facts: Facts,
        timing: Timing,
        on_agent: Callable[[NodeId, Change], None],
    ) -> None:
        self.machines = {name: Machine() for name in names}
        self._agenda = agenda
        self._facts = facts
        self._timing = timing
        self._on_agent = on_agent
        self.frozen: dict[NodeId, None] = {}

    def answers(self, node: NodeId) -> bool:
        return self.machines[node].answers()

    def late(self) -> tuple[Late, ...]:
        """Joined agents that missed a beat, by name, since their last one."""
        now_us = self._agenda.now_us
        return tuple(
            Late(node=node, since_us=since_us)
            for node in sorted(self.frozen)
            if (since_us := self.machines[node].frozen_since_us) is not None
            and now_us - since_us >= self._timing.beat_us
        )

    def provision(self, node: NodeId, incarnation: int) -> None:
        """Idempotent: an incarnation that was seen before, or is older, changes nothing."""
        machine = self.machines[node]
        if incarnation <= machine.newest:
            return
        self._end_agent(node)
        machine.newest = machine.coming = incarnation
        if machine.is_up:
            self._agenda.after(self._timing.provision_us, partial(self._join, node, incarnation))
        elif self._timing.refuse_us is not None:
            self._agenda.after(self._timing.refuse_us, partial(self._refuse, node, incarnation))

    def evict(self, node: NodeId, incarnation: int) -> None:
        """End that agent and what it was about to become; silent, because the brain asked for it."""
        machine = self.machines[node]
        if incarnation < max(machine.agent, machine.coming):
            return
        machine.newest = max(machine.newest, incarnation)
        self._end_agent(node)
        self._facts.forget("node", node)

    def lose(self, node: NodeId, repair_us: int) -> None:
        """The machine dies now and is back in `repair_us`, empty. Nothing happens to one that is in repair."""
        machine = self.machines[node]
        if not machine.is_up:
            return
        machine.is_up = False
        self._facts.forget("node", node)
        lost, coming = machine.agent, machine.coming
        self._end_agent(node)
        machine.coming = coming
        self._agenda.after(repair_us, partial(self._repaired, node))
        if lost:
            self._agenda.after(self._timing.loss_report_us, partial(self._report_lost, node, lost))
        if coming and self._timing.refuse_us is not None:
            self._agenda.after(self._timing.refuse_us, partial(self._refuse, node, coming))

    def freeze(self, node: NodeId, thaw_us: int) -> None:
        """The agent stops beating now and, if nobody ended it by then, goes on in `thaw_us`."""
        machine = self.machines[node]
        if not machine.answers():
            return
        since_us = machine.frozen_since_us = self._agenda.now_us
        self.frozen[node] = None
        self._agenda.after(thaw_us, partial(self._thaw, node, machine.agent, since_us))
        self._on_agent(node, "frozen")

    def end_all_agents(self) -> None:
        """The coordinator died and its agents have no patience: every agent is gone, and so is what was to come."""
        for node in self.machines:
            self._end_agent(node)
            self._facts.forget("node", node)

    def rejoin(self, attempt_of: Callable[[NodeId], Attempt]) -> None:
        """Every agent that answers greets a new coordinator; what the former one knew of dead agents is lost."""
        for node, machine in self.machines.items():
            self._facts.forget("node", node)
            if machine.answers():
                self._facts.tell(
                    NodeJoined(node=node, incarnation=machine.agent, attempt=attempt_of(node)), "node", node
                )

    def _join(self, node: NodeId, incarnation: int) -> None:
        machine = self.machines[node]
        if machine.coming != incarnation or not machine.is_up:
            return
        machine.agent, machine.coming = incarnation, 0
        self._facts.tell(NodeJoined(node=node, incarnation=incarnation, attempt=Attempt(0)), "node", node)
        self._on_agent(node, "joined")

    def _refuse(self, node: NodeId, incarnation: int) -> None:
        machine = self.machines[node]
        if machine.coming != incarnation or machine.is_up:
            return
        machine.coming = 0
        self._facts.tell(
            ProvisionFailed(node=node, incarnation=incarnation, reason="the machine is in repair"), "node", node
        )

    def _repaired(self, node: NodeId) -> None:
        machine = self.machines[node]
        machine.is_up = True
        if machine.coming:
            self._agenda.after(self._timing.provision_us, partial(self._join, node, machine.coming))

    def _report_lost(self, node: NodeId, incarnation: int) -> None:
        if self.machines[node].newest == incarnation:
            self._facts.tell(NodeLost(node=node, incarnation=incarnation, reason="connection closed"), "node", node)

    def _thaw(self, node: NodeId, incarnation: int, since_us: int) -> None:
        machine = self.machines[node]
        if machine.agent != incarnation or machine.frozen_since_us != since_us:
            return
        machine.frozen_since_us = None
        self.frozen.pop(node, None)
        self._on_agent(node, "thawed")

    def _end_agent(self, node: NodeId) -> None:
        machine = self.machines[node]
        had_agent = machine.agent > 0
        machine.agent = machine.coming = 0
        machine.frozen_since_us = None
        self.frozen.pop(node, None)
        if had_agent:
            self._on_agent(node, "ended")
