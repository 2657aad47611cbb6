"""This node's part of one attempt: its workers from fork to exit, and where each of their messages goes.

It decides nothing about failures: an end that should not be is reported, and the coordinator starts a higher attempt.
Neighbours: `forkclient` starts and ends processes, `admission` lets workers in, `saves` follows saves,
`attempt_reports` keeps what the coordinator was told, `member` is one worker.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import os
import socket
import time
from collections.abc import Coroutine
from functools import partial
from typing import assert_never

from behemoth.agent.admission import Admission, wait_limit_us
from behemoth.agent.attempt_reports import AttemptReports
from behemoth.agent.channel import Channel
from behemoth.agent.forkwire import Exited, Spawn
from behemoth.agent.member import Member, beat_of, now_us
from behemoth.agent.node_services import NodeServices
from behemoth.agent.ranklog import log_path
from behemoth.base.errors import BehemothError
from behemoth.base.ids import Attempt, Slot
from behemoth.base.slots import ranks_of
from behemoth.wire.commands import StartGang
from behemoth.wire.reports import Beat, RanksFinished, WorkerEnded
from behemoth.wire.session import (
    DUMP_SIGNAL,
    FROM_WORKER,
    Armed,
    Declare,
    FromWorker,
    InPhase,
    Join,
    Missed,
    Report,
    Staged,
    Staging,
    StagingFailed,
    Stalled,
    Standing,
    StepsEnded,
)
from behemoth.wire.setup import CommandWork, EntrypointWork

DUMP_LIMIT_S = 3.0
"""Only of workers that cannot write their stacks: with all others it ends as soon as those are written."""
_DUMP_QUIET_S = 0.25
_POLL_S = 0.02

_log = logging.getLogger(__name__)


class Gang:
    """The workers of `table.fence.attempt` on the node that holds `slot`."""

    def __init__(self, services: NodeServices, table: StartGang, slot: Slot) -> None:
        self._services = services
        self._table = table
        self._slot = slot
        self._members = [
            Member(rank=rank, local_rank=local_rank, phase_since_us=now_us())
            for local_rank, rank in enumerate(ranks_of(slot, services.setup.ranks_per_node))
        ]
        self._tasks: set[asyncio.Task[None]] = set()
        self._reports = AttemptReports(services.send)
        self._admission = Admission(services, table, self._members, self._reports)
        self._last_slowest_us = 0
        self._is_ending = False

    @property
    def attempt(self) -> Attempt:
        return self._table.fence.attempt

    @property
    def is_slot_zero(self) -> bool:
        return self._slot == 0

    @property
    def has_workers(self) -> bool:
        return any(not member.is_gone for member in self._members)

    async def start(self) -> None:
        """Fork all workers of the node. A failure is reported as the end of the worker that it concerns."""
        self._services.saves.began(self._members)
        try:
            await self._services.forks.ready(timeout_s=wait_limit_us(self._services.setup.hang_floors) / 1e6)
        except (BehemothError, TimeoutError) as error:
            for member in self._members:
                self._failed(member, exit_code=1, signum=None, last_lines=f"{error}" or "its imports took too long")
            return
        await asyncio.gather(*(self._spawn(member) for member in self._members))

    async def end(self, *, dump_stacks: bool) -> None:
        """Kill the workers and everything they started, and wait for that. Raises Internal when the kernel keeps
        one."""
        self._is_ending = True
        if dump_stacks:
            await self._services.forks.replace_stuck()
            await self._dump()
        await self._services.forks.kill_all()
        self.close()

    def close(self) -> None:
        """Release what belongs to the attempt; its workers are gone. Idempotent."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        for member in self._members:
            self._release(member)
        self._services.saves.ended()

    def exited(self, report: Exited) -> None:
        """A worker's end, as the fork server tells it."""
        member = next((one for one in self._members if one.local_rank == report.local_rank), None)
        if report.attempt != self.attempt or member is None or member.is_gone:
            return
        if member.channel is not None:
            member.channel.drain()
        member.is_gone = True
        if self._is_ending:
            return
        if report.exit_code == 0 and member.has_ended_steps:
            self._release(member)
            self._reports.milestone(RanksFinished(attempt=self.attempt), [one.is_gone for one in self._members])
            return
        self._run(self._report_end(member, report), member, "end")

    def tell_again(self) -> None:
        """Send all reports of the attempt again, to a coordinator that has just taken over."""
        self._reports.again()

    def beat(self, *, port: int) -> Beat:
        """How far the node is. `port`: the one that is reserved for the next attempt. Each step time is told once."""
        beat = beat_of(
            self._members,
            self.attempt,
            floors=self._services.setup.hang_floors,
            port=port,
            last_slowest_us=self._last_slowest_us,
            now_us=now_us(),
        )
        # Keep that steps were made, but not their time: each sample is reported once.
        self._last_slowest_us = min(beat.slowest_step_us, 1)
        for member in self._members:
            member.slowest_step_us = 0
        return beat

    # Workers

    async def _spawn(self, member: Member) -> None:
        setup, attempt = self._services.setup, self.attempt
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        path = log_path(setup.log_dir, attempt, member.rank)
        member.pipe, writing = self._services.output.open(path, max_bytes=setup.max_log_bytes)
        member.channel = Channel(
            ours, FROM_WORKER, on_message=partial(self._take, member), on_end=partial(self._hung_up, member)
        )
        member.channel.open()
        work = setup.work
        order = Spawn(
            attempt=attempt,
            local_rank=member.local_rank,
            environment={
                **_torchrun_environment(member, self._table, slot=self._slot, ranks_per_node=setup.ranks_per_node),
                "PYTHONUNBUFFERED": setup.environment.get("PYTHONUNBUFFERED", "1"),
            },
            entrypoint=work.entrypoint if isinstance(work, EntrypointWork) else None,
            argv=work.argv if isinstance(work, CommandWork) else (),
        )
        try:
            with theirs:
                member.pid = await self._services.forks.spawn(order, output=writing, session=theirs.fileno())
        except (BehemothError, TimeoutError) as error:
            self._failed(member, exit_code=1, signum=None, last_lines=f"{error}" or "the fork server did not answer")
        finally:
            os.close(writing)

    async def _report_end(self, member: Member, report: Exited) -> None:
        last_lines = await self._services.output.last_lines(member.pipe) if member.pipe is not None else ""
        self._release(member)
        self._failed(member, exit_code=report.exit_code, signum=report.signal, last_lines=last_lines)

    def _failed(self, member: Member, *, exit_code: int | None, signum: int | None, last_lines: str) -> None:
        if member.is_failed or self._is_ending:
            return
        member.is_failed = member.is_gone = True
        ended = WorkerEnded(
            attempt=self.attempt,
            rank=member.rank,
            exit_code=exit_code,
            signal=signum,
            last_lines=last_lines,
        )
        _log.warning("attempt %d rank %d ended: exit %s signal %s", self.attempt, member.rank, exit_code, signum)
        self._services.beat()  # how far the node came goes first: the attempt is over with what follows
        self._reports.ended(member, ended)

    def _release(self, member: Member) -> None:
        if member.channel is not None:
            member.channel.close()
        if member.pipe is not None:
            self._services.output.release(member.pipe)
        member.channel, member.pipe = None, None

    async def _dump(self) -> None:
        """Let hung workers write their stacks: wait until the log of each has grown and all are quiet again."""
        pipes = [member.pipe for member in self._members if member.pipe is not None]
        before = [pipe.num_bytes for pipe in pipes]
        self._services.forks.signal_all(DUMP_SIGNAL)
        deadline = time.monotonic() + DUMP_LIMIT_S
        seen, quiet_since = before, time.monotonic()
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            now = [pipe.num_bytes for pipe in pipes]
            if now != seen:
                seen, quiet_since = now, time.monotonic()
            elif all(map(operator.gt, now, before)) and time.monotonic() - quiet_since > _DUMP_QUIET_S:
                return

    # What workers say

    def _take(self, member: Member, message: FromWorker) -> None:
        match message:
            case Join():
                self._admission.joined(member, message)
            case Declare():
                self._run(self._admission.prepare(member, message), member, "prepare")
            case Standing():
                self._admission.standing(member, message.step)
            case Report():
                self._completed(member, message)
            case InPhase():
                member.enter(message.phase, now_us())
            case Armed() | Missed() | Staging() | Staged() | StagingFailed():
                self._services.saves.take(member, message)
            case Stalled():
                member.stall_us += message.stall_us
            case StepsEnded():
                member.has_ended_steps = True
            case _:
                assert_never(message)

    def _hung_up(self, member: Member, reason: str) -> None:
        """The worker closed its session or broke the protocol. Its exit is reported apart; a worker that does not exit
        is found by the hang limits."""
        member.channel = None
        if not self._is_ending and not member.is_gone:
            _log.info("attempt %d rank %d: %s", self.attempt, member.rank, reason)

    def _completed(self, member: Member, report: Report) -> None:
        was_first = all(one.num_steps for one in self._members)
        member.completed(report, now_us())
        is_first = not was_first and all(one.num_steps for one in self._members)
        total_steps = self._services.setup.total_steps
        if is_first or (report.step == total_steps and all(one.step >= total_steps for one in self._members)):
            self._services.beat()

    def _run(self, work: Coroutine[None, None, None], member: Member, what: str) -> None:
        task = asyncio.create_task(work, name=f"{what}-rank-{member.rank}")
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended_task, member))

    def _ended_task(self, member: Member, task: asyncio.Task[None]) -> None:
        """An unexpected error in work for a rank ends the rank, which would otherwise wait forever."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("attempt %d: %s failed", self.attempt, task.get_name(), exc_info=error)
            self._failed(
                member, exit_code=1, signum=None, last_lines=f"{task.get_name()}: {type(error).__name__}: {error}"
            )


def _torchrun_environment(member: Member, table: StartGang, *, slot: int, ranks_per_node: int) -> dict[str, str]:
    """torchrun's contract. The user's own variables are in the fork server's environment already."""
    world_size, num_nodes = len(table.nodes) * ranks_per_node, len(table.nodes)
    return {
        "RANK": str(member.rank),
        "LOCAL_RANK": str(member.local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(ranks_per_node),
        "GROUP_RANK": str(slot),
        "GROUP_WORLD_SIZE": str(num_nodes),
        "ROLE_RANK": str(member.rank),
        "ROLE_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": table.master_host,
        "MASTER_PORT": str(table.master_port),
        "TORCHELASTIC_RUN_ID": table.fence.run_uid,
        "TORCHELASTIC_RESTART_COUNT": str(table.fence.attempt - 1),
    }
