"""Obeys the coordinator's fenced commands and owns the node's gang: at most one, that of the newest attempt.

A command that is older than what was seen is refused, a repeated one answered again. Neighbours: `main` hears the
commands, `gang` has the workers of one attempt, `saves` follows each save.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TypeAlias, assert_never

from behemoth.agent.forkwire import Exited
from behemoth.agent.gang import Gang
from behemoth.agent.member import idle_beat
from behemoth.agent.node_services import NodeServices
from behemoth.agent.rendezvous import Reservation
from behemoth.agent.storewire import SeePeers
from behemoth.base.ids import Attempt, Epoch, NodeId, RunUid, Slot
from behemoth.state.fence import Fence
from behemoth.wire.commands import AbortSave, CommitSeen, GoAhead, RestoreFrom, SaveAt, StartGang, StopGang
from behemoth.wire.reports import Beat, RanksGone, Refused

Order: TypeAlias = StartGang | StopGang | SaveAt | GoAhead | CommitSeen | AbortSave

_log = logging.getLogger(__name__)


class Orders:
    """`run` starts a task of the agent; the agent ends when the task fails."""

    def __init__(
        self,
        node: NodeId,
        run_uid: RunUid,
        *,
        services: NodeServices,
        reservation: Reservation,
        run: Callable[[Coroutine[None, None, None], str], asyncio.Task[None]],
    ) -> None:
        self._node = node
        self._services = services
        self._reservation = reservation
        self._run = run
        self._seen = Fence(run_uid=run_uid, epoch=Epoch(0), attempt=Attempt(0))
        self._gang: Gang | None = None
        self._change: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def running(self) -> Attempt:
        """The attempt whose workers run here; 0 without any."""
        return self._gang.attempt if self._gang is not None and self._gang.has_workers else Attempt(0)

    def welcomed(self, epoch: Epoch) -> None:
        """What a coordinator of an earlier term still sends is stale from now on."""
        self._seen = Fence(run_uid=self._seen.run_uid, epoch=max(self._seen.epoch, epoch), attempt=self._seen.attempt)

    def tell_again(self) -> None:
        """Send all reports again, to a coordinator that has just taken over."""
        if self._gang is not None:
            self._gang.tell_again()
        self._services.saves.tell_again()

    def obey(self, order: Order) -> None:
        """Begin what the coordinator wants, or refuse it as stale, and say so. Returns at once."""
        if order.fence.is_stale_against(self._seen):
            self._refuse(order, "its fence is older than what this agent has seen")
            return
        saves = self._services.saves
        match order:
            case StartGang():
                self._start(order)
            case StopGang():
                self._stop(order)
            case SaveAt():
                self._save(order)
            case GoAhead():
                saves.go_ahead(order)
            case CommitSeen():
                saves.committed(order.write_id)
                write = RestoreFrom(step=order.step, write_id=order.write_id)
                self._services.copies.committed(write)
                self._services.keeping.committed(write)
            case AbortSave():
                saves.abort(order.write_id, order.reason)
            case _:
                assert_never(order)

    def exited(self, report: Exited) -> None:
        """A worker's end, as the fork server tells it."""
        if self._gang is not None:
            self._gang.exited(report)

    def beat(self) -> Beat:
        if self._gang is not None:
            return self._gang.beat(port=self._reservation.port)
        return idle_beat(self._seen.attempt, port=self._reservation.port)

    async def stopped(self, *, timeout_s: float) -> None:
        """Wait until the last StopGang is done, for at most `timeout_s`."""
        if self._stopping is not None:
            await asyncio.wait([self._stopping], timeout=timeout_s)

    def close(self) -> None:
        """Release what belongs to the gang; its workers are gone."""
        if self._gang is not None:
            self._gang.close()

    def _start(self, order: StartGang) -> None:
        is_repeated = order.fence.attempt == self._seen.attempt
        self._seen = order.fence
        if is_repeated:
            if self._gang is not None:
                self._gang.tell_again()
            return
        self._change_to(self._replace_gang(order), f"start-attempt-{order.fence.attempt}")

    def _stop(self, order: StopGang) -> None:
        self._seen = order.fence
        self._change_to(self._end_gang(order.fence.attempt, order.dump_stacks), "stop-gang")
        self._stopping = self._change

    def _save(self, order: SaveAt) -> None:
        gang = self._gang
        if gang is None or gang.attempt != order.fence.attempt:
            self._refuse(order, "no workers of that attempt run here")
            return
        self._services.saves.announce(order, attempt=gang.attempt, is_slot_zero=gang.is_slot_zero)

    def _refuse(self, order: Order, reason: str) -> None:
        _log.info("refused %s: %s", type(order).__name__, reason)
        self._services.send(Refused(command=type(order).__name__, fence=self._seen, reason=reason))

    def _change_to(self, work: Coroutine[None, None, None], name: str) -> None:
        """A newer command about the gang replaces the work on an older one: ending workers is safe to repeat."""
        if self._change is not None:
            self._change.cancel()
        self._change = self._run(work, name)

    async def _replace_gang(self, order: StartGang) -> None:
        former, services = self._gang, self._services
        if former is not None:
            await self._end_gang(former.attempt, order.dump_stacks)
        services.keeping.began(order.restore)
        if self._node not in order.nodes:
            services.copies.began(order, None)
            return
        slot = Slot(order.nodes.index(self._node))
        services.store.see_peers(SeePeers(job=0, slot=slot, nodes=order.nodes, places=order.peers))
        services.copies.began(order, slot)
        if slot == 0:
            self._reservation.renew()  # lets go of the announced port, which rank 0 binds now
        self._gang = Gang(services, order, slot)
        await self._gang.start()

    async def _end_gang(self, attempt: Attempt, dump_stacks: bool) -> None:
        gang = self._gang
        if gang is not None:
            await gang.end(dump_stacks=dump_stacks)
            self._gang = None
        self._services.send(RanksGone(attempt=attempt))
