"""Applies the decisions of the core (effects) to the world: calls of the fleet, the machines and the checkpoint desk.

Every application is idempotent and fenced: an effect of an older coordinator or an older attempt does nothing. Which
node holds which slot is tracked here once more, as a check: no node may get two slots, whatever the core decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from behemoth.agent.settings import INCARNATION_VARIABLE, NODE_VARIABLE, TOKEN_VARIABLE
from behemoth.app.checkpoint_desk import CheckpointDesk
from behemoth.app.machines import Machines, StartOrder, StopOrder
from behemoth.base.errors import Internal
from behemoth.base.ids import NodeId, Slot
from behemoth.fleet.server import Fleet
from behemoth.ports import AGENT_LOG_VARIABLE
from behemoth.state.effect import (
    Abort,
    Agree,
    Close,
    Commit,
    Delete,
    Effect,
    Evict,
    Place,
    Provision,
    Reject,
    Replace,
    Save,
    Start,
    Stop,
)
from behemoth.state.evidence import Committed, Evidence, Tick
from behemoth.state.fence import Fence
from behemoth.state.observation import Observation
from behemoth.wire.commands import AbortSave, CommitSeen, GoAhead, RestoreFrom, SaveAt

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentProgram:
    """How an agent is started: argv, the environment that is the same on all nodes, and the folder of its log."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)
    log_dir: Path


class LocalBody:
    """Applies effects on the event loop; never blocks. `domains` are the failure domains of all nodes, `witnesses` see
    everything that is folded."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        machines: Machines,
        desk: CheckpointDesk,
        agent: AgentProgram,
        domains: Mapping[NodeId, int],
        witnesses: tuple[Callable[[Evidence, Observation | None, Observation], None], ...],
    ) -> None:
        self._fleet = fleet
        self._machines = machines
        self._desk = desk
        self._agent = agent
        self._domains = domains
        self._witnesses = witnesses
        self._holders: dict[Slot, NodeId] = {}
        self._newest_fence: Fence | None = None
        self._has_rubbish = False

    def resume(self, observation: Observation) -> None:
        """Takes over from an earlier coordinator process: its agents may rejoin, and its gang counts as started."""
        for node, known in observation.nodes.items():
            self._fleet.expect(node, known.incarnation)
        self._holders = dict(observation.holders.items())
        if self._holders and observation.attempt:
            self._fleet.adopt_gang(observation.attempt, self._gang())

    def look(self) -> Tick:
        return self._fleet.look()

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        if isinstance(evidence, Committed):
            told = CommitSeen(fence=after.fence, step=evidence.commit.step, write_id=evidence.commit.write_id)
            self._fleet.end_save(told)
            if self._has_rubbish:  # once more: an agent may still have written when its save was given up
                self._has_rubbish = False
                self._desk.clean(self._fleet.saves_in_flight)
        for see in self._witnesses:
            see(evidence, before, after)

    def apply(self, effect: Effect) -> None:
        if self._newest_fence is not None and effect.fence.is_stale_against(self._newest_fence):
            _log.info("stale effect %s refused", type(effect).__name__)
            return
        self._newest_fence = effect.fence
        match effect:
            case Provision() | Evict() | Place() | Replace():
                self._apply_to_nodes(effect)
            case Start() | Stop():
                self._apply_to_gang(effect)
            case Save() | Agree() | Commit() | Abort():
                self._apply_to_save(effect)
            case Reject():
                self._desk.reject(effect.commit, effect.reason)
                self._remove_rubbish()
            case Delete():
                self._desk.delete(effect.commits)
            case Close():
                pass  # the loop ends by the observation's outcome; wiring then closes fleet and machines
            case _:
                assert_never(effect)

    def _apply_to_nodes(self, effect: Provision | Evict | Place | Replace) -> None:
        match effect:
            case Provision(node=node, incarnation=incarnation):
                token = self._fleet.expect(node, incarnation)
                env = self._agent.env | {
                    NODE_VARIABLE: node,
                    INCARNATION_VARIABLE: str(incarnation),
                    TOKEN_VARIABLE: token,
                    AGENT_LOG_VARIABLE: str(self._agent.log_dir / f"agent-{node}.log"),
                }
                self._machines.order(StartOrder(node=node, incarnation=incarnation, argv=self._agent.argv, env=env))
            case Evict(node=node, incarnation=incarnation, reason=reason):
                self._fleet.expel(node, incarnation, reason)
                self._machines.order(StopOrder(node=node, incarnation=incarnation))
            case Place(holders=holders):
                self._holders = {}
                for slot, node in enumerate(holders):
                    self._hold(Slot(slot), node)
            case Replace(slot=slot, spare=spare):
                self._hold(slot, spare)

    def _apply_to_gang(self, effect: Start | Stop) -> None:
        match effect:
            case Start(fence=fence, restore=restore, dump_stacks=dump_stacks):
                source = RestoreFrom(step=restore.step, write_id=restore.write_id) if restore is not None else None
                gang = self._gang()
                domains = [self._domains[node] for node in gang]
                self._fleet.start_gang(
                    fence,
                    gang,
                    restore=source,
                    dump_stacks=dump_stacks,
                    domains=domains,
                    record_bytes=self._desk.record_bytes(restore) if restore is not None else 0,
                )
            case Stop(fence=fence, reason=reason, dump_stacks=dump_stacks):
                self._fleet.stop_gang(fence, reason, dump_stacks=dump_stacks)

    def _apply_to_save(self, effect: Save | Agree | Commit | Abort) -> None:
        match effect:
            case Save(fence=fence, step=step, write_id=write_id, is_last=is_last):
                self._fleet.save(SaveAt(fence=fence, step=step, write_id=write_id, is_last=is_last))
            case Agree(fence=fence, write_id=write_id):
                self._fleet.agree(GoAhead(fence=fence, write_id=write_id))
            case Commit():
                self._commit(effect)
            case Abort(fence=fence, write_id=write_id, reason=reason):
                self._fleet.end_save(AbortSave(fence=fence, write_id=write_id, reason=reason))
                self._remove_rubbish()

    def _remove_rubbish(self) -> None:
        """Delete objects of saves that were given up now, not only at the next start, so that they do not fill the
        disk."""
        self._has_rubbish = True
        self._desk.clean(self._fleet.saves_in_flight)

    def _commit(self, effect: Commit) -> None:
        """Commits with the attempt of the write, which may be older than the gang's by now."""
        save = self._fleet.save_of(effect.write_id)
        if save is None:
            reason = "commit: its receipts went with a former coordinator"
            self._desk.give_up(effect.write_id, reason)
            return
        layout, receipts = save.receipts()
        self._desk.commit(
            step=effect.step, write_id=effect.write_id, attempt=save.attempt, layout=layout, receipts=receipts
        )

    def _gang(self) -> list[NodeId]:
        return [self._holders[slot] for slot in sorted(self._holders)]

    def _hold(self, slot: Slot, node: NodeId) -> None:
        for other, holder in self._holders.items():
            if holder == node and other != slot:
                raise Internal(f"node {node}: expected at most one slot, got {other} and {slot}", code="two-slots")
        self._holders[slot] = node
