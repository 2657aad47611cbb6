"""This node's part of one attempt: its workers from fork to exit, and what they say, counted into one message each.

It decides nothing about failures: an end that should not be is reported, and the coordinator starts a higher attempt.
Neighbours: `forkclient` starts and ends processes, `saves` follows saves, `member` is one worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import msgspec

from behemoth.agent.arenas import Arenas, restored_step
from behemoth.agent.channel import Channel
from behemoth.agent.copies import Copies
from behemoth.agent.forkclient import ForkClient
from behemoth.agent.forkwire import Exited, Spawn
from behemoth.agent.member import Member, beat_of
from behemoth.agent.output import Output
from behemoth.agent.ranklog import log_path
from behemoth.agent.saves import Saves
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import Failed
from behemoth.base.errors import BehemothError, Invalid
from behemoth.base.ids import Attempt, Rank
from behemoth.wire.frames import PROTOCOL_MAJOR
from behemoth.wire.messages import (
    Beat,
    CommandWork,
    EntrypointWork,
    ProgramRefused,
    RanksFinished,
    RanksRestored,
    RanksUp,
    RestoreRefused,
    Setup,
    StartGang,
    WorkerEnded,
)
from behemoth.wire.messages import (
    Report as NodeReport,
)
from behemoth.wire.session import (
    DUMP_SIGNAL,
    FROM_WORKER,
    Armed,
    Assigned,
    Declare,
    FromWorker,
    InPhase,
    Join,
    Missed,
    Ready,
    Refusal,
    Report,
    Staged,
    Staging,
    StagingFailed,
    Stalled,
    Standing,
    StepsEnded,
)

DUMP_LIMIT_S = 1.0
_DUMP_QUIET_S = 0.1
_POLL_S = 0.02
_WAIT_FLOORS = 10
"""A rank waits this many times the longest hang floor for its agent: the coordinator calls the hang long before."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a gang works with; all of it outlives the gang."""

    setup: Setup
    forks: ForkClient
    store: StoreLink
    output: Output
    arenas: Arenas
    saves: Saves
    copies: Copies
    send: Callable[[NodeReport], None]
    beat: Callable[[], None]
    """Send a beat at once."""


class Gang:
    """The workers of `table.fence.attempt` on the node that holds `slot`."""

    def __init__(self, parts: Parts, table: StartGang, slot: int) -> None:
        self._parts = parts
        self._table = table
        self._slot = slot
        count = parts.setup.ranks_per_node
        self._members = [
            Member(rank=Rank(slot * count + local), local_rank=local, phase_since_us=_now_us())
            for local in range(count)
        ]
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: list[tuple[Member, WorkerEnded]] = []
        self._refused: RestoreRefused | ProgramRefused | None = None
        self._told: set[str] = set()
        self._last_slowest_us = 0
        self._digest = ""
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
        self._parts.saves.began(self._members)
        try:
            await self._parts.forks.ready(timeout_s=self._wait_limit_us() / 1e6)
        except (BehemothError, TimeoutError) as error:
            for member in self._members:
                self._failed(member, exit_code=1, signum=None, last_lines=f"{error}" or "its imports took too long")
            return
        await asyncio.gather(*(self._spawn(member) for member in self._members))

    async def end(self, *, dump_stacks: bool) -> None:
        """Until nothing of the workers is left, by force. Raises Internal when the kernel keeps one."""
        self._is_ending = True
        if dump_stacks:
            await self._parts.forks.replace_stuck()
            await self._dump()
        await self._parts.forks.kill_all()
        self.close()

    def close(self) -> None:
        """Release what belongs to the attempt; its workers are gone. Idempotent."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        for member in self._members:
            self._release(member)
        self._parts.saves.ended()

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
            self._tell_once("finished", RanksFinished(attempt=self.attempt), [one.is_gone for one in self._members])
            return
        self._run(self._report_end(member, report), member, "end")

    def tell_again(self) -> None:
        """How things stand, for a coordinator that has just come."""
        told, self._told = self._told, set()
        if "up" in told:
            self._tell_up()
        if "restored" in told:
            self._tell_restored()
        if "finished" in told:
            self._tell_once("finished", RanksFinished(attempt=self.attempt), [True])
        for member, ended in self._ended:
            self._tell_ended(member, ended)
        if self._refused is not None:
            self._parts.send(self._refused)

    def beat(self, *, port: int) -> Beat:
        beat = beat_of(
            self._members,
            self.attempt,
            floors=self._parts.setup.hang_floors,
            port=port,
            last_slowest_us=self._last_slowest_us,
            now_us=_now_us(),
        )
        # That steps were made, without their time: it has been told, and each sample counts once.
        self._last_slowest_us = min(beat.slowest_step_us, 1)
        for member in self._members:
            member.slowest_step_us = 0
        return beat

    # Workers

    async def _spawn(self, member: Member) -> None:
        setup, attempt = self._parts.setup, self.attempt
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        path = log_path(setup.log_dir, attempt, member.rank)
        member.pipe, writing = self._parts.output.open(path, max_bytes=setup.max_log_bytes)
        member.channel = Channel(
            ours, FROM_WORKER, on_message=partial(self._take, member), on_end=partial(self._hung_up, member)
        )
        member.channel.open()
        work = setup.work
        order = Spawn(
            attempt=attempt,
            local_rank=member.local_rank,
            environment=self._environment(member),
            entrypoint=work.entrypoint if isinstance(work, EntrypointWork) else None,
            argv=work.argv if isinstance(work, CommandWork) else (),
        )
        try:
            with theirs:
                member.pid = await self._parts.forks.spawn(order, output=writing, session=theirs.fileno())
        except (BehemothError, TimeoutError) as error:
            self._failed(member, exit_code=1, signum=None, last_lines=f"{error}" or "the fork server did not answer")
        finally:
            os.close(writing)

    def _environment(self, member: Member) -> dict[str, str]:
        """torchrun's contract. The user's own variables are in the fork server's environment already."""
        table, count = self._table, self._parts.setup.ranks_per_node
        return {
            "RANK": str(member.rank),
            "LOCAL_RANK": str(member.local_rank),
            "WORLD_SIZE": str(len(table.nodes) * count),
            "LOCAL_WORLD_SIZE": str(count),
            "GROUP_RANK": str(self._slot),
            "GROUP_WORLD_SIZE": str(len(table.nodes)),
            "ROLE_RANK": str(member.rank),
            "ROLE_WORLD_SIZE": str(len(table.nodes) * count),
            "MASTER_ADDR": table.master_host,
            "MASTER_PORT": str(table.master_port),
            "TORCHELASTIC_RUN_ID": table.fence.run_uid,
            "TORCHELASTIC_RESTART_COUNT": str(self.attempt - 1),
            "PYTHONUNBUFFERED": self._parts.setup.environment.get("PYTHONUNBUFFERED", "1"),
        }

    async def _report_end(self, member: Member, report: Exited) -> None:
        last_lines = await self._parts.output.last_lines(member.pipe) if member.pipe is not None else ""
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
        self._ended.append((member, ended))
        self._parts.beat()  # how far the node came goes first: the attempt is over with what follows
        self._tell_ended(member, ended)

    def _tell_ended(self, member: Member, ended: WorkerEnded) -> None:
        self._parts.send(msgspec.structs.replace(ended, quiet_us=max(0, _now_us() - member.phase_since_us)))

    def _release(self, member: Member) -> None:
        if member.channel is not None:
            member.channel.close()
        if member.pipe is not None:
            self._parts.output.release(member.pipe)
        member.channel, member.pipe = None, None

    async def _dump(self) -> None:
        """Give hung workers the time to write their stacks: until their logs grew and are quiet again."""
        pipes = [member.pipe for member in self._members if member.pipe is not None]
        before = sum(pipe.num_bytes for pipe in pipes)
        self._parts.forks.signal_all(DUMP_SIGNAL)
        deadline = time.monotonic() + DUMP_LIMIT_S
        seen, quiet_since = before, time.monotonic()
        while time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            now = sum(pipe.num_bytes for pipe in pipes)
            if now != seen:
                seen, quiet_since = now, time.monotonic()
            elif now > before and time.monotonic() - quiet_since > _DUMP_QUIET_S:
                return

    # What workers say

    def _take(self, member: Member, message: FromWorker) -> None:
        match message:
            case Join():
                self._joined(member, message)
            case Declare():
                self._run(self._prepare(member, message), member, "prepare")
            case Standing():
                member.step, member.is_standing = message.step, True
                self._tell_restored()
            case Report():
                self._completed(member, message)
            case InPhase():
                member.enter(message.phase, _now_us())
            case Armed() | Missed() | Staging() | Staged() | StagingFailed():
                self._parts.saves.take(member, message)
            case Stalled():
                member.stall_us += message.stall_us
            case StepsEnded():
                member.has_ended_steps = True
            case _:
                assert_never(message)

    def _hung_up(self, member: Member, reason: str) -> None:
        """The worker closed its session or talked rubbish. Its exit tells the rest; without one the hang limits do."""
        member.channel = None
        if not self._is_ending and not member.is_gone:
            _log.info("attempt %d rank %d: %s", self.attempt, member.rank, reason)

    def _joined(self, member: Member, join: Join) -> None:
        assert member.channel is not None
        if join.major != PROTOCOL_MAJOR:
            reason = f"session: expected protocol {PROTOCOL_MAJOR}, got {join.major}"
            member.channel.send(Refusal(reason=reason, hint="install the agent's release of behemoth for the program"))
            return
        setup = self._parts.setup
        member.channel.send(
            Assigned(
                rank=member.rank,
                world_size=len(self._table.nodes) * setup.ranks_per_node,
                local_rank=member.local_rank,
                attempt=self.attempt,
                mesh=setup.mesh,
                args=setup.args,
                total_steps=setup.total_steps,
                wait_limit_us=self._wait_limit_us(),
                sharding=setup.sharding,
            )
        )
        member.has_joined = True
        member.enter("restore", _now_us())
        self._tell_up()

    def _completed(self, member: Member, report: Report) -> None:
        was_first = all(one.num_steps for one in self._members)
        member.completed(report, _now_us())
        is_first = not was_first and all(one.num_steps for one in self._members)
        total_steps = self._parts.setup.total_steps
        if is_first or (report.step == total_steps and all(one.step >= total_steps for one in self._members)):
            self._parts.beat()

    async def _prepare(self, member: Member, declared: Declare) -> None:
        """Give the worker its staging memory, with the checkpoint to restore in it."""
        try:
            self._check_layout(member, declared)
            memory = self._parts.arenas.declare(member.local_rank, member.rank, declared)
        except Invalid as error:
            self._refuse_program(f"{error.message}; {error.hint}")
            return
        except BehemothError as error:
            if member.channel is not None:
                member.channel.send(Refusal(reason=error.message, hint=error.hint))
            return
        self._parts.copies.declared(declared)
        restore = self._table.restore
        source = memory.source(restore) if restore is not None else None
        if source is not None:
            holders, record_bytes = self._parts.copies.asked(), self._table.record_bytes
            source = msgspec.structs.replace(source, holders=holders, record_bytes=record_bytes)
        if source is not None and declared.must_read:
            source = msgspec.structs.replace(source, held_in=None, must_read=True)
        budget = self._parts.copies.budget([one.rank for one in self._members])
        answer = await self._parts.store.prepare(memory, source, budget=budget)
        if isinstance(answer, Failed):
            self._restore_refused(member, answer)
            return
        memory.is_new = False
        if restore is not None and answer.generation is not None:
            memory.restored(answer.generation, None if answer.left_out else restore.write_id)
        member.was_prepared(answer)
        if member.channel is not None:
            ready = Ready(
                step=restored_step(restore),
                generation=answer.generation,
                folder=answer.folder,
                is_cold=answer.is_cold,
                is_checked=answer.origin in ("peer", "store"),
                threads=max(1, self._parts.setup.io_threads // self._parts.setup.ranks_per_node),
                left_out=answer.left_out,
            )
            member.channel.send(ready, (memory.fd,))
        self._parts.saves.grant()

    def _check_layout(self, member: Member, declared: Declare) -> None:
        """Ranks that disagree about the arrays would write a checkpoint that nobody can read."""
        digest = self._digest or declared.digest
        if declared.digest != digest:
            raise Invalid(
                f"rank {member.rank}: expected the layout {digest[:12]} of its peers, got {declared.digest[:12]}",
                hint="every rank declares the same arrays with the same shapes; only the local pieces differ",
                code="layout-differs",
            )
        self._digest = digest

    def _restore_refused(self, member: Member, answer: Failed) -> None:
        restore = self._table.restore
        reason = f"rank {member.rank}: {answer.reason}"
        if answer.is_over_budget:
            self._refuse_program(reason)
            return
        if restore is None:
            if member.channel is not None:
                member.channel.send(Refusal(reason=f"staging memory: {answer.reason}"))
            return
        _log.warning("attempt %d: restore from %s refused: %s", self.attempt, restore.write_id, reason)
        self._refuse(
            RestoreRefused(
                attempt=self.attempt,
                write_id=restore.write_id,
                reason=reason,
                is_corrupt=answer.is_corrupt,
                is_unfit=answer.is_unfit,
            )
        )

    def _refuse_program(self, reason: str) -> None:
        """The ranks are not told: they would end by themselves, and their ends would look like the failure."""
        _log.warning("attempt %d: program refused: %s", self.attempt, reason)
        self._refuse(ProgramRefused(attempt=self.attempt, reason=reason))

    def _refuse(self, report: RestoreRefused | ProgramRefused) -> None:
        """The first one: the others are the same, or follow from it."""
        if self._refused is None:
            self._refused = report
            self._parts.send(report)

    def _tell_up(self) -> None:
        self._tell_once("up", RanksUp(attempt=self.attempt), [member.has_joined for member in self._members])

    def _tell_restored(self) -> None:
        prepared = {member.rank: member.prepared for member in self._members if member.prepared is not None}
        report = RanksRestored(
            attempt=self.attempt,
            step=restored_step(self._table.restore),
            num_from_memory=sum(one.origin == "memory" for one in prepared.values()),
            layout=self._digest,
            num_from_peer=sum(one.origin == "peer" for one in prepared.values()),
            peer_bytes=sum(one.peer_bytes for one in prepared.values()),
            store_bytes=sum(one.store_bytes for one in prepared.values()),
            missed=next((one.missed for one in prepared.values() if one.missed), ""),
        )
        self._tell_once("restored", report, [member.is_standing for member in self._members])

    def _tell_once(self, what: str, report: NodeReport, answers: Sequence[bool]) -> None:
        if all(answers) and what not in self._told:
            self._told.add(what)
            self._parts.send(report)

    def _wait_limit_us(self) -> int:
        floors = self._parts.setup.hang_floors
        return _WAIT_FLOORS * max(floors.start_us, floors.restore_us, floors.save_us, floors.step_us)

    def _run(self, work: Coroutine[None, None, None], member: Member, what: str) -> None:
        task = asyncio.create_task(work, name=f"{what}-rank-{member.rank}")
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended_task, member))

    def _ended_task(self, member: Member, task: asyncio.Task[None]) -> None:
        """Work for a rank that fails in a way nobody thought of ends the rank: it would wait for ever."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("attempt %d: %s failed", self.attempt, task.get_name(), exc_info=error)
            self._failed(
                member, exit_code=1, signum=None, last_lines=f"{task.get_name()}: {type(error).__name__}: {error}"
            )


def _now_us() -> int:
    return time.monotonic_ns() // 1000
