"""This node's part of each save: which ranks know of it, have copied, have written; one report per node and stage.

The order for one rank: due, armed, granted (a generation to copy into), staged, written. The writing of a large state
begins with its copy, else after it; either way it counts only once all is staged. A write outlives the workers that
staged it, since the agent owns the copies. Every write ends with the coordinator's word: committed or given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from behemoth.agent.arenas import Arenas, RankMemory
from behemoth.agent.member import Member
from behemoth.agent.storelink import StoreLink
from behemoth.agent.storewire import Failed, Written
from behemoth.base.ids import Attempt, Rank, WriteId
from behemoth.wire.commands import GoAhead, SaveAt
from behemoth.wire.reports import ReceiptBatch, Report, SaveBroken, SaveMissed, SaveReached
from behemoth.wire.session import (
    Armed,
    Grant,
    Missed,
    Proceed,
    SaveDue,
    SaveOff,
    SaveSafe,
    Staged,
    Staging,
    StagingFailed,
)

MAX_BATCH_BYTES = 8 << 20
"""Receipts of many chunks go up in several frames."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class NodeSave:
    """One write, on this node."""

    command: SaveAt
    attempt: Attempt
    num_ranks: int
    is_slot_zero: bool
    granted: set[Rank] = field(default_factory=set)
    armed: set[Rank] = field(default_factory=set)
    staged: set[Rank] = field(default_factory=set)
    writing: set[Rank] = field(default_factory=set)
    receipts: dict[Rank, bytes] = field(default_factory=dict)
    jobs: dict[Rank, int] = field(default_factory=dict)
    layout: bytes | None = None
    broken: str = ""
    is_over: bool = False

    def is_given_up(self) -> bool:
        return self.is_over or self.broken != ""

    def stage_of(self, rank: Rank) -> str:
        """How far a rank is, for people."""
        if rank in self.receipts:
            return "written"
        if rank in self.staged:
            return "writing"
        return "staging" if rank in self.granted else "without a half of the staging memory"

    @property
    def write_id(self) -> WriteId:
        return self.command.write_id


class Saves:
    """All writes that the coordinator has not ended yet. Owns the tasks that wait for the store process."""

    def __init__(self, *, arenas: Arenas, store: StoreLink, send: Callable[[Report], None]) -> None:
        self._arenas = arenas
        self._store = store
        self._send = send
        self._saves: dict[WriteId, NodeSave] = {}
        self._members: Sequence[Member] = ()
        self._tasks: set[asyncio.Task[None]] = set()

    def began(self, members: Sequence[Member]) -> None:
        """A new attempt's workers are here."""
        self._members = members

    def ended(self) -> None:
        """The workers are gone. Writes that all of them had staged go on; others cannot complete any more."""
        ranks = {member.rank for member in self._members}
        self._members = ()
        self._arenas.drop_granted()
        for save in self._saves.values():
            if len(save.staged) < save.num_ranks:
                missing = ", ".join(map(str, sorted(ranks - save.staged)))
                self._break(
                    save, f"rank {missing}, staging: the node's workers ended before all had copied their state"
                )

    def announce(self, command: SaveAt, *, attempt: Attempt, is_slot_zero: bool) -> None:
        """Tell the workers; a repeated command changes nothing."""
        if command.write_id in self._saves:
            return
        save = NodeSave(command=command, attempt=attempt, num_ranks=len(self._members), is_slot_zero=is_slot_zero)
        self._saves[command.write_id] = save
        due = SaveDue(step=command.step, write_id=command.write_id, is_last=command.is_last)
        self._tell_workers(due)
        self.grant()

    def go_ahead(self, command: GoAhead) -> None:
        self._tell_workers(Proceed(write_id=command.write_id))

    def grant(self) -> None:
        """Give out generations that are free to ranks that wait for one."""
        for save in self._saves.values():
            if not save.broken:
                self._grant_to_all(save)

    def committed(self, write_id: WriteId) -> None:
        """The snapshots in memory are the ones to restore from."""
        self._saves.pop(write_id, None)
        self._arenas.committed(write_id)
        self._tell_workers(SaveSafe(write_id=write_id))
        self.grant()

    def abort(self, write_id: WriteId, reason: str) -> None:
        """Give the write up. A generation that is still being read is freed when its job is answered."""
        save = self._saves.pop(write_id, None)
        if save is None:
            return
        save.is_over = True
        if not save.broken:  # the coordinator's reason names no rank: only this node knows what its own were about
            ranks = sorted({member.rank for member in self._members} | save.staged)
            stages = ", ".join(f"rank {rank} {save.stage_of(rank)}" for rank in ranks)
            _log.warning("save %s of step %d given up: %s; %s", write_id, save.command.step, reason, stages)
        self._cancel(save)
        self._tell_workers(SaveOff(write_id=write_id, reason=reason))

    def tell_receipts(self, write_id: WriteId) -> None:
        """Send the node's receipts once all of its ranks have staged and written."""
        save = self._saves.get(write_id)
        if save is not None and len(save.staged) == len(save.receipts) == save.num_ranks:
            self._send_receipts(save)

    def tell_again(self) -> None:
        """Send the reports of all open writes again, to a coordinator that has just taken over."""
        for save in self._saves.values():
            if save.broken:
                self._send(SaveBroken(attempt=save.attempt, write_id=save.write_id, reason=save.broken))
                continue
            if len(save.armed) == save.num_ranks:
                self._send(SaveReached(attempt=save.attempt, write_id=save.write_id, stage="armed"))
            if len(save.staged) == save.num_ranks:
                self._send(SaveReached(attempt=save.attempt, write_id=save.write_id, stage="staged"))
            self.tell_receipts(save.write_id)

    def take(self, member: Member, message: Armed | Missed | Staging | Staged | StagingFailed) -> None:
        """What a worker says of a save; of one that is over it says nothing new."""
        save = self._saves.get(message.write_id)
        if save is None or save.broken:
            return
        match message:
            case Armed():
                save.armed.add(member.rank)
                if len(save.armed) == save.num_ranks:
                    self._send(SaveReached(attempt=save.attempt, write_id=save.write_id, stage="armed"))
            case Missed():
                self._send(SaveMissed(attempt=save.attempt, write_id=save.write_id, step=message.step))
            case Staging():
                self._start_write(save, member, message, following=message.sequence)
            case Staged():
                self._staged(save, member, message)
            case StagingFailed():
                self._break(save, f"rank {member.rank}, staging: {message.reason}")

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    def _grant_to_all(self, save: NodeSave) -> None:
        for member in self._members:
            memory = self._arenas.of(member.local_rank)
            if memory is None or member.rank in save.granted or member.channel is None:
                continue
            generation = memory.grant(save.write_id)
            if generation is not None:
                save.granted.add(member.rank)
                member.channel.send(Grant(write_id=save.write_id, generation=generation))

    def _staged(self, save: NodeSave, member: Member, told: Staged) -> None:
        memory = self._arenas.of(member.local_rank)
        if memory is None or member.rank in save.staged:
            return
        memory.staged(save.write_id)
        save.staged.add(member.rank)
        save.layout = memory.declared.layout
        if len(save.staged) == save.num_ranks:
            self._send(SaveReached(attempt=save.attempt, write_id=save.write_id, stage="staged"))
        self._start_write(save, member, told, following=None)
        self.tell_receipts(save.write_id)

    def _start_write(self, save: NodeSave, member: Member, told: Staging | Staged, *, following: int | None) -> None:
        memory = self._arenas.of(member.local_rank)
        if memory is None or member.rank in save.writing:
            return
        save.writing.add(member.rank)
        save.jobs[member.rank] = self._store.new_job()
        name = f"write-{save.write_id}-rank-{member.rank}"
        task = asyncio.create_task(self._write(save, memory, told, following), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, save: NodeSave, memory: RankMemory, told: Staging | Staged, following: int | None) -> None:
        if save.is_given_up():  # before this task had its turn: nobody could cancel the job yet
            self._end_write(save, memory)
            return
        memory.reading(save.write_id, is_read=True)
        answer = await self._store.write(
            save.jobs[memory.rank],
            memory,
            generation=told.generation,
            attempt=save.attempt,
            step=save.command.step,
            write_id=save.write_id,
            following=following,
            updated_step=told.updated_step,
        )
        memory.reading(save.write_id, is_read=False)
        if isinstance(answer, Failed) and not save.is_over:
            self._break(save, f"rank {memory.rank}, writing: {answer.reason}")
        if save.is_given_up():
            self._end_write(save, memory)
        elif isinstance(answer, Written):
            del save.jobs[memory.rank]
            save.receipts[memory.rank] = answer.receipt
            self.tell_receipts(save.write_id)

    def _end_write(self, save: NodeSave, memory: RankMemory) -> None:
        """End the write of a save that was given up: free its generation."""
        del save.jobs[memory.rank]
        memory.drop(save.write_id)
        self.grant()

    def _break(self, save: NodeSave, reason: str) -> None:
        if save.broken:
            return
        _log.warning("save %s of step %d given up: %s", save.write_id, save.command.step, reason)
        save.broken = reason
        self._cancel(save)
        self._send(SaveBroken(attempt=save.attempt, write_id=save.write_id, reason=reason))

    def _cancel(self, save: NodeSave) -> None:
        for job in save.jobs.values():
            self._store.cancel(job)
        for memory in self._arenas.all():
            if memory.rank not in save.jobs:
                memory.drop(save.write_id)
        self.grant()

    def _send_receipts(self, save: NodeSave) -> None:
        batch: list[bytes] = []
        layout = save.layout if save.is_slot_zero else None
        for receipt in save.receipts.values():
            if batch and sum(map(len, batch)) + len(receipt) > MAX_BATCH_BYTES:
                self._send_batch(save, batch, layout)
                batch, layout = [], None
            batch.append(receipt)
        self._send_batch(save, batch, layout)

    def _send_batch(self, save: NodeSave, receipts: Sequence[bytes], layout: bytes | None) -> None:
        self._send(
            ReceiptBatch(
                attempt=save.attempt,
                write_id=save.write_id,
                num_ranks=save.num_ranks,
                receipts=tuple(receipts),
                layout=layout,
            )
        )

    def _tell_workers(self, message: SaveDue | Proceed | SaveOff | SaveSafe) -> None:
        """Saves are called once the gang has its state; what is said before that is about a former attempt's, which
        workers that still restore know nothing of."""
        for member in self._members:
            if member.channel is not None and member.is_standing:
                member.channel.send(message)
