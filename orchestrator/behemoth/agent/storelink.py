"""The agent's end of its store process, which does all checkpoint I/O so that the agent's loop only talks and beats.

A store process that dies costs the writes in flight (training goes on) and nothing else: preparations are sent again
to its successor. One that hangs is ended for that: it leaves an order that was given up unanswered for longer than a
limit.

Memory is safe meanwhile. An order is answered only when the process can touch no memory any more: by itself when the
job has ended, or here once the socket is at its end, which the kernel closes after every thread has left its last
system call. So a half is not filled again while a hung write may still send its bytes to the store. Nor could those
ever be committed: they go to paths that belong to the one write, whose receipt the dead process will not give.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from behemoth.agent.arenas import RankMemory
from behemoth.agent.channel import Channel
from behemoth.agent.child import Child
from behemoth.agent.storewire import (
    STORE_REPORTS,
    Budget,
    Cancel,
    ClearDisk,
    DiskCleared,
    Failed,
    KeepCopies,
    KeepOnDisk,
    KeptOnDisk,
    OpenStore,
    Prepare,
    Prepared,
    Pull,
    Pulled,
    RestoreSource,
    SeePeers,
    ShareMemory,
    StoreReport,
    Write,
    Written,
)
from behemoth.base.errors import Unavailable
from behemoth.base.ids import Attempt, Rank, Step, WriteId

_PREPARE_TRIES = 3
_RESTART_PAUSE_S = 1.0
_LOST = "the store process died"
ANSWER_LIMIT_S = 30.0
"""For an order that was given up: time to end a batch or an fsync on slow storage."""

_Report = TypeVar("_Report", Prepared, Written, Pulled, KeptOnDisk, DiskCleared)
Answer: TypeAlias = "asyncio.Future[StoreReport]"
_log = logging.getLogger(__name__)


class StoreLink:
    """Owns the store process from `start` to `close`."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        opening: OpenStore,
        for_peers: socket.socket | None = None,
        shared: Callable[[], Iterable[tuple[ShareMemory, int]]] = lambda: (),
        answer_limit_s: float = ANSWER_LIMIT_S,
    ) -> None:
        """`for_peers` is the listening socket that goes with `opening.peers`; the caller closes it. `shared` is the
        memory that a new process must know of, with its descriptors."""
        self._environment = environment
        self._opening = opening
        self._for_peers = for_peers if opening.peers is not None else None
        self._shared = shared
        self._peers: SeePeers | None = None
        self._answer_limit_s = answer_limit_s
        self._numbers = itertools.count(1)
        self._child: Child | None = None
        self._channel: Channel[StoreReport] | None = None
        self._answers: dict[int, Answer] = {}
        self._given_up: dict[int, asyncio.TimerHandle] = {}
        self._restart: asyncio.TimerHandle | None = None
        self._has_answered = False

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start a process, and tell it all that its predecessor knew. Raises OSError when the machine has no room."""
        self._restart = None
        self._has_answered = False
        self._child = Child.start("behemoth.wiring.store", environment=self._environment, own_session=False)
        self._channel = Channel(self._child.sock, STORE_REPORTS, on_message=self._take, on_end=self._lost)
        self._channel.open()
        self._channel.send(self._opening, [self._for_peers.fileno()] if self._for_peers is not None else [])
        if self._peers is not None:
            self._channel.send(self._peers)
        for share, fd in self._shared():
            self._channel.send(share, (fd,))

    def see_peers(self, peers: SeePeers) -> None:
        """The gang as it is from now on, for this store process and its successors."""
        self._peers = peers
        if self._channel is not None:
            self._channel.send(peers)

    def close(self) -> None:
        """Ends the store process by force: what it was writing is not committed and therefore rubbish."""
        if self._restart is not None:
            self._restart.cancel()
        self._forget_given_up()
        if self._channel is not None:
            self._channel.close()
        if self._child is not None:
            self._child.kill()
        self._channel, self._child = None, None

    async def prepare(
        self, memory: RankMemory, source: RestoreSource | None, *, budget: Budget | None = None
    ) -> Prepared | Failed:
        """Waits for as long as the store needs; the caller is cancelled when its attempt ends."""
        answer: Prepared | Failed = Failed(job=0, reason=_LOST, is_corrupt=False)
        for _ in range(_PREPARE_TRIES):
            order = Prepare(
                job=next(self._numbers),
                rank=memory.rank,
                layout=memory.declared.layout,
                is_new=memory.is_new,
                source=source,
                intake=memory.declared.intake,
                budget=budget,
            )
            answer = await self._ask(Prepared, order, memory.fd)
            if not isinstance(answer, Failed) or answer.reason != _LOST:
                break
            await asyncio.sleep(2 * _RESTART_PAUSE_S)
        return answer

    def new_job(self) -> int:
        """A number for `write` and `cancel`."""
        return next(self._numbers)

    async def write(
        self,
        job: int,
        memory: RankMemory,
        *,
        generation: int,
        attempt: Attempt,
        step: Step,
        write_id: WriteId,
        following: int | None,
        updated_step: Step | None,
    ) -> Written | Failed:
        """Until the rank's bytes are durable, or given up: only then may the generation be filled again.

        `following`: the sequence of a copy that is under way; the write ends with it, or when it is cancelled.
        `updated_step`: the last step in which the rank's program announced an update.
        """
        order = Write(
            job=job,
            rank=memory.rank,
            layout=memory.declared.layout,
            generation=generation,
            attempt=attempt,
            step=step,
            write_id=write_id,
            following=following,
            updated_step=updated_step,
            frozen=memory.declared.frozen,
        )
        return await self._ask(Written, order, memory.fd)

    async def pull(self, order: Pull, fd: int) -> Pulled | Failed:
        """Until the copy is whole or given up, which may take as long as a peer says nothing: nobody waits for it, and
        its memory is nobody else's."""
        return await self._ask(Pulled, order, fd, may_hang=True)

    async def keep_on_disk(self, order: KeepOnDisk, fd: int) -> KeptOnDisk | Failed:
        """Until the copy is durable or given up, which may take as long as a disk hangs: nobody waits for it."""
        return await self._ask(KeptOnDisk, order, fd, may_hang=True)

    async def clear_disk(self) -> DiskCleared | Failed:
        """Until nothing of the node is on its own disk, or that failed."""
        return await self._ask(DiskCleared, ClearDisk(job=self.new_job()), may_hang=True)

    def let_go(self, job: int) -> None:
        """Ask for the pull or the copy to disk to be given up; it is answered some time."""
        if self._channel is not None and job in self._answers:
            self._channel.send(Cancel(job=job))

    def keep_copies(self, ranks: Iterable[Rank]) -> None:
        """The memory for copies of all other ranks is closed."""
        if self._channel is not None:
            self._channel.send(KeepCopies(job=0, ranks=tuple(ranks)))

    def cancel(self, job: int) -> None:
        """Ask for the write to be given up; it is answered all the same, by force if need be."""
        if self._channel is not None and job in self._answers:
            self._channel.send(Cancel(job=job))
            self._give_up(job)

    async def _ask(
        self,
        kind: type[_Report],
        order: Prepare | Write | Pull | KeepOnDisk | ClearDisk,
        *fds: int,
        may_hang: bool = False,
    ) -> _Report | Failed:
        """What the process answers. Raises Unavailable for an answer of another kind."""
        answer = await self._answer(order, fds, may_hang=may_hang)
        if not isinstance(answer, (kind, Failed)):
            raise Unavailable(f"store process: expected {kind.__name__}, got {type(answer).__name__}")
        return answer

    async def _answer(
        self, order: Prepare | Write | Pull | KeepOnDisk | ClearDisk, fds: Sequence[int], *, may_hang: bool
    ) -> StoreReport:
        if self._channel is None:
            return Failed(job=order.job, reason=_LOST, is_corrupt=False)
        answer: Answer = asyncio.get_running_loop().create_future()
        self._answers[order.job] = answer
        self._channel.send(order, fds)
        try:
            return await answer
        except asyncio.CancelledError:
            # Nobody waits for it, but a process that hangs in it would fail the next one too.
            if answer.cancelled() and not may_hang:
                self._give_up(order.job)
            raise
        finally:
            self._answers.pop(order.job, None)

    def _give_up(self, job: int) -> None:
        """From now on the process has a limited time to answer this order."""
        if job not in self._given_up and self._child is not None:
            loop = asyncio.get_running_loop()
            self._given_up[job] = loop.call_later(self._answer_limit_s, self._end_hung, self._child)

    def _end_hung(self, child: Child) -> None:
        """The end of its socket tells the rest. A process that the kernel keeps in a call has it open until then."""
        _log.warning("store process: no answer for %g s to an order that was given up; ending it", self._answer_limit_s)
        child.end()

    def _forget_given_up(self) -> None:
        for timer in self._given_up.values():
            timer.cancel()
        self._given_up.clear()

    def _take(self, report: StoreReport) -> None:
        self._has_answered = True
        timer = self._given_up.pop(report.job, None)
        if timer is not None:
            timer.cancel()
        answer = self._answers.pop(report.job, None)
        if answer is not None and not answer.done():
            answer.set_result(report)

    def _lost(self, reason: str) -> None:
        _log.warning("store process: %s; starting another", reason)
        if self._child is not None:
            self._child.kill()
        self._channel, self._child = None, None
        self._forget_given_up()
        for job, answer in self._answers.items():
            if not answer.done():
                answer.set_result(Failed(job=job, reason=_LOST, is_corrupt=False))
        pause_s = 0.0 if self._has_answered else _RESTART_PAUSE_S
        self._restart = asyncio.get_running_loop().call_later(pause_s, self._start_again)

    def _start_again(self) -> None:
        """Training goes on without a store process, and the machine may have room for one in a moment."""
        try:
            self.start()
        except OSError as error:
            _log.warning("store process: cannot be started (%s); trying again", error.strerror)
            self._restart = asyncio.get_running_loop().call_later(_RESTART_PAUSE_S, self._start_again)
