"""Admits the ranks of one attempt: answers a Join with the rank's place, a Declare with staging memory and checkpoint.

A rank that is refused is not reported as a failed worker: the report says what is wrong with the program or the
checkpoint. Neighbours: `gang` starts and ends the workers, `preparing` fills their memory in the store process.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from behemoth.agent.attempt_reports import AttemptReports
from behemoth.agent.member import Member, now_us
from behemoth.agent.node_services import NodeServices
from behemoth.agent.storewire import Failed, RestoreSource
from behemoth.base.errors import BehemothError, Invalid
from behemoth.base.ids import Step
from behemoth.state.config import HangFloors
from behemoth.wire.commands import RestoreFrom, StartGang
from behemoth.wire.frames import PROTOCOL_MAJOR
from behemoth.wire.reports import ProgramRefused, RanksRestored, RanksUp, RestoreRefused
from behemoth.wire.session import Assigned, Declare, Join, Ready, Refusal

_WAIT_FLOORS = 10
"""A rank waits this many times the longest hang floor for its agent; the coordinator detects a hang long before."""

_log = logging.getLogger(__name__)


class Admission:
    """Admits `members`, the workers of the attempt of `table` on this node."""

    def __init__(
        self, services: NodeServices, table: StartGang, members: Sequence[Member], reports: AttemptReports
    ) -> None:
        self._services = services
        self._table = table
        self._members = members
        self._reports = reports
        self._attempt = table.fence.attempt
        self._digest = ""

    def joined(self, member: Member, join: Join) -> None:
        """Tell a worker its place, or refuse one that speaks another protocol."""
        assert member.channel is not None
        if join.major != PROTOCOL_MAJOR:
            reason = f"session: expected protocol {PROTOCOL_MAJOR}, got {join.major}"
            member.channel.send(Refusal(reason=reason, hint="install the agent's release of behemoth for the program"))
            return
        setup = self._services.setup
        member.channel.send(
            Assigned(
                rank=member.rank,
                world_size=len(self._table.nodes) * setup.ranks_per_node,
                local_rank=member.local_rank,
                attempt=self._attempt,
                mesh=setup.mesh,
                args=setup.args,
                total_steps=setup.total_steps,
                wait_limit_us=wait_limit_us(setup.hang_floors),
                sharding=setup.sharding,
            )
        )
        member.has_joined = True
        member.enter("restore", now_us())
        self._reports.milestone(RanksUp(attempt=self._attempt), [one.has_joined for one in self._members])

    async def prepare(self, member: Member, declared: Declare) -> None:
        """Give the worker its staging memory, with the checkpoint to restore in it."""
        services, restore = self._services, self._table.restore
        try:
            self._check_layout(declared)
            memory = services.arenas.declare(member.local_rank, member.rank, declared)
        except Invalid as error:
            self._refuse_program(f"rank {member.rank}, declaring its arrays: {error.message}; {error.hint}")
            return
        except BehemothError as error:
            if member.channel is not None:
                reason = f"rank {member.rank}, declaring its arrays: {error.message}"
                member.channel.send(Refusal(reason=reason, hint=error.hint))
            return
        services.copies.declared(declared)
        source = self._source(memory.source(restore), declared) if restore is not None else None
        budget = services.copies.budget([one.rank for one in self._members])
        answer = await services.store.prepare(memory, source, budget=budget)
        if isinstance(answer, Failed):
            self._restore_refused(member, answer)
            return
        memory.is_new = False
        if answer.disk_trouble:
            services.keeping.health.unreadable(f"rank {member.rank}, restoring: {answer.disk_trouble}")
        if restore is not None:
            if answer.generation is not None:
                memory.restored(answer.generation, None if answer.left_out else restore.write_id)
            services.keeping.restored(memory.rank)
        member.was_prepared(answer)
        if member.channel is not None:
            ready = Ready(
                step=_restored_step(restore),
                generation=answer.generation,
                folder=answer.folder,
                is_cold=answer.is_cold,
                is_checked=answer.origin in ("peer", "disk", "several", "store"),
                threads=max(1, services.setup.io_threads // services.setup.ranks_per_node),
                left_out=answer.left_out,
            )
            member.channel.send(ready, (memory.fd,))
        services.saves.grant()

    def standing(self, member: Member, step: Step) -> None:
        """The worker has restored its state and stands at `step`."""
        member.step, member.is_standing = step, True
        of_ranks = [(one.rank, one.prepared) for one in self._members if one.prepared is not None]
        prepared = [told for _, told in of_ranks]
        report = RanksRestored(
            attempt=self._attempt,
            step=_restored_step(self._table.restore),
            num_from_memory=sum(one.origin == "memory" for one in prepared),
            layout=self._digest,
            num_from_peer=sum(one.origin == "peer" for one in prepared),
            num_from_disk=sum(one.origin == "disk" for one in prepared),
            num_from_several=sum(one.origin == "several" for one in prepared),
            peer_bytes=sum(one.peer_bytes for one in prepared),
            disk_bytes=sum(one.disk_bytes for one in prepared),
            store_bytes=sum(one.store_bytes for one in prepared),
            missed=next((f"rank {rank}: {told.missed}" for rank, told in of_ranks if told.missed), ""),
        )
        self._reports.milestone(report, [one.is_standing for one in self._members])

    def _source(self, source: RestoreSource, declared: Declare) -> RestoreSource:
        holders, record_bytes = self._services.copies.asked(), self._table.record_bytes
        source = msgspec.structs.replace(source, holders=holders, record_bytes=record_bytes)
        return msgspec.structs.replace(source, must_read=declared.must_read)

    def _check_layout(self, declared: Declare) -> None:
        """Ranks that disagree about the arrays would write a checkpoint that nobody can read."""
        digest = self._digest or declared.digest
        if declared.digest != digest:
            raise Invalid(
                f"layout: expected {digest[:12]} as on its peers, got {declared.digest[:12]}",
                hint="every rank declares the same arrays with the same shapes; only the local pieces differ",
                code="layout-differs",
            )
        self._digest = digest

    def _restore_refused(self, member: Member, answer: Failed) -> None:
        restore = self._table.restore
        reason = f"rank {member.rank}, restoring: {answer.reason}"
        if answer.is_over_budget:
            self._refuse_program(reason)
            return
        if restore is None:
            if member.channel is not None:
                member.channel.send(Refusal(reason=f"rank {member.rank}, preparing its memory: {answer.reason}"))
            return
        _log.warning("attempt %d: restore from %s refused: %s", self._attempt, restore.write_id, reason)
        self._reports.refused(
            RestoreRefused(
                attempt=self._attempt,
                write_id=restore.write_id,
                reason=reason,
                is_corrupt=answer.is_corrupt,
                is_unfit=answer.is_unfit,
            )
        )

    def _refuse_program(self, reason: str) -> None:
        """Report it to the coordinator only: ranks that are told would end, and their ends would look like the
        failure."""
        _log.warning("attempt %d: program refused: %s", self._attempt, reason)
        self._reports.refused(ProgramRefused(attempt=self._attempt, reason=reason))


def wait_limit_us(floors: HangFloors) -> int:
    """How long a rank waits for an answer of its agent, in microseconds."""
    return _WAIT_FLOORS * max(floors.start_us, floors.restore_us, floors.save_us, floors.step_us)


def _restored_step(restore: RestoreFrom | None) -> Step:
    """Where a rank stands after the restore."""
    return restore.step if restore is not None else Step(0)
