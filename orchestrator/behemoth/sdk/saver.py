"""The rank's side of a save: when it acknowledges one, when it copies, and what it waits for at its last step.

Commands of the agent are read at step boundaries and while waiting, on the program's own thread: so the training loop
cannot get past a step whose save the rank has acknowledged (`Armed`). It costs one step of latency, which the
coordinator's choice of a step well ahead covers. The neighbours are `run` and `behemoth.checkpoint.staging`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import assert_never

from behemoth.base.errors import BehemothError, Internal, Invalid, Timeout
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.staging import CAN_BE_FOLLOWED, Stager
from behemoth.sdk.state import BoundState
from behemoth.state.config import WorkPhase
from behemoth.wire.ends import Peer
from behemoth.wire.session import (
    Armed,
    Assigned,
    Grant,
    Missed,
    Proceed,
    Ready,
    Refusal,
    SaveDue,
    SaveOff,
    SaveSafe,
    Staged,
    Staging,
    StagingFailed,
    Stalled,
    ToWorker,
)

INLINE_BYTES = 64 << 20
"""States up to this size are copied inside `save` (about 10 ms); larger ones by a thread until `fence`, and written out
meanwhile."""

MEMORY_WAIT_S = 0.5
"""Longest wait of a save for staging memory, except at the last step; less than the smallest hang limit (1 s)."""


@dataclass(slots=True, eq=False)
class _Copying:
    """A copy that goes on until `fence`. `done_step`: a later step that was done without a fence; the copy may then
    hold bytes of both steps, even if it was complete before that step was reported."""

    step: Step
    updated_step: Step
    write_id: WriteId
    generation: int
    stager: Stager
    thread: threading.Thread | None
    error: Exception | None = None
    done_step: Step | None = None

    def run(self) -> None:
        try:
            self.stager.copy()
        except Exception as error:  # noqa: BLE001  # supervisor of a background copy: told at the fence
            self.error = error


class Saver:
    """One per rank, used by the program's thread only.

    `wait_limit_s` bounds each wait for the agent; up to `threads` threads copy the state out.
    """

    def __init__(
        self,
        peer: Peer[ToWorker],
        bound: BoundState,
        arena: Arena,
        *,
        first: Step,
        total_steps: int,
        wait_limit_s: float,
        threads: int,
        within: Callable[[WorkPhase], AbstractContextManager[None]],
    ) -> None:
        self._peer = peer
        self._bound = bound
        self._arena = arena
        self._total_steps = total_steps
        self._wait_limit_s = wait_limit_s
        self._threads = threads
        self._within = within
        self._passed = first
        self._has_update = False
        self._updated_step = first
        self._due: SaveDue | None = None
        self._generation: int | None = None
        self._may_proceed = False
        self._safe: WriteId | None = None
        self._off: WriteId | None = None
        self._copying: _Copying | None = None
        self.has_ended = False
        """The last save is committed: the program makes no further step."""

    def poll(self) -> None:
        """Handle the messages of the agent that have arrived. Never blocks."""
        while (message := self._peer.poll()) is not None:
            self._hear(message)

    def pass_step(self, step: Step) -> None:
        """`step` is over and can no longer be saved; a save that was due by then is reported as failed."""
        self._done(step)
        self._passed = max(self._passed, step)  # first, so that no save of a past step is acknowledged
        self.poll()
        due = self._due
        if due is not None and due.step <= step:
            self._fail(due.write_id, f"the program went past step {step} without calling save for it")

    def save(self, step: Step) -> None:
        """Copy the state if it is due at `step`. Blocks for the copy, and at the last step until the save is safe."""
        self._done(step)
        if self._has_update:
            self._has_update, self._updated_step = False, step
        self.pass_step(Step(step - 1))  # a program without steps() passes them here
        due, is_end = self._due, step >= self._total_steps
        if not is_end and (due is None or due.step != step):
            return
        with self._within("save"):
            if is_end or (due is not None and due.is_last):
                self._save_last(step)
            else:
                self._save_in_passing(step)

    def fence(self, *, is_update: bool = True) -> None:
        """Block until the copy that `save` began is complete. `is_update`: the state is about to change."""
        self._has_update = self._has_update or is_update
        self._end_copy()

    def note_done(self, step: Step) -> None:
        """`step` is done, so what changed in it has changed. Never blocks: an open copy is given up soon after."""
        copying = self._copying
        if copying is not None and step > copying.step and copying.done_step is None:
            copying.done_step = step

    def _done(self, step: Step) -> None:
        """As `note_done`, and gives up a copy that has no fence now. Blocks until its thread ends."""
        self.note_done(step)
        if self._copying is not None and self._copying.done_step is not None:
            self._end_copy()

    def _end_copy(self) -> None:
        copying = self._copying
        if copying is None:
            return
        started_ns = time.monotonic_ns()
        self._copying = None
        if copying.thread is not None:
            copying.thread.join(self._wait_limit_s)
            if copying.thread.is_alive():
                raise Internal(
                    f"rank {self._bound.plan.rank}, staging: the copy of save {copying.write_id} did not end within "
                    f"{self._wait_limit_s} s"
                )
        self._seal(copying)
        self._tell_stall(started_ns)

    def _save_in_passing(self, step: Step) -> None:
        started_ns = time.monotonic_ns()
        self._stage(step)
        self._tell_stall(started_ns)

    def _stage(self, step: Step) -> None:
        self._wait_for_memory()
        due, generation = self._due, self._generation
        if due is None:
            return
        if generation is None:
            self._fail(due.write_id, _no_memory(step))
            return
        copying = self._begin(step, due.write_id, generation)
        if copying is None:
            return
        if self._bound.num_bytes > INLINE_BYTES:
            copying.thread = threading.Thread(target=copying.run, name="behemoth-copy", daemon=True)
            copying.thread.start()
            self._copying = copying
            return
        copying.run()
        self._seal(copying)

    def _wait_for_memory(self) -> None:
        """Wait up to MEMORY_WAIT_S for the grant of a half of the staging memory. One is free when a save is announced,
        unless the write of an earlier save, which was given up, still reads it. That ends soon, or storage hangs, and
        training must not wait for that."""
        deadline_s = time.monotonic() + MEMORY_WAIT_S
        with suppress(Timeout):
            while self._due is not None and self._generation is None:
                left_s = deadline_s - time.monotonic()
                self._hear(self._peer.receive(timeout_s=left_s, what="a free half of the staging memory"))

    def _save_last(self, step: Step) -> None:
        started_ns = time.monotonic_ns()
        self._save_until_committed(step)
        self._tell_stall(started_ns)

    def _save_until_committed(self, step: Step) -> None:
        """Wait until all ranks are at the step (`Proceed`), save, and wait for the commit. A write that is given up is
        followed by another at the same step, or, before the run's end, by more training."""
        is_end = step >= self._total_steps
        while not self.has_ended:
            due = self._due
            if due is None or due.step != step:
                if not is_end:
                    return
                self._wait("the save of the last step")
            elif self._generation is None or (due.is_last and not self._may_proceed):
                self._wait("the word to go through with the last save")
            else:
                self._stage_last(step, due.write_id, self._generation)

    def _stage_last(self, step: Step, write_id: WriteId, generation: int) -> None:
        copying = self._begin(step, write_id, generation)
        if copying is None:
            return
        copying.run()
        staged = self._seal(copying)
        while staged and self._due is None and write_id not in (self._safe, self._off):
            self._wait("the commit of the last save")
        self.has_ended = self._safe == write_id

    def _begin(self, step: Step, write_id: WriteId, generation: int) -> _Copying | None:
        """Copy what may change before the fence. When the state does not fit what was declared, the agent is told, and
        None is returned."""
        self._due, self._generation = None, None
        try:
            self._bound.write_records()
            stager = Stager(
                self._arena,
                self._bound.plan,
                self._bound.sources(),
                write_id=write_id,
                step=step,
                threads=self._threads,
            )
            stager.begin(generation=generation)
            if self._bound.num_bytes > INLINE_BYTES and CAN_BE_FOLLOWED:
                self._tell(
                    Staging(
                        write_id=write_id,
                        generation=generation,
                        sequence=stager.sequence,
                        updated_step=self._updated_step,
                    )
                )
            stager.copy(self._bound.early_names())
        except BehemothError as error:
            self._fail(write_id, error.message)
            return None
        return _Copying(
            step=step,
            updated_step=self._updated_step,
            write_id=write_id,
            generation=generation,
            stager=stager,
            thread=None,
        )

    def _seal(self, copying: _Copying) -> bool:
        if self._off == copying.write_id:
            return False
        if copying.error is not None:
            self._fail(copying.write_id, f"copy of the state: {type(copying.error).__name__}: {copying.error}")
            return False
        if copying.done_step is not None:
            self._fail(copying.write_id, _unfenced(copying.step, copying.done_step))
            return False
        copying.stager.seal()
        self._tell(
            Staged(
                write_id=copying.write_id,
                generation=copying.generation,
                updated_step=copying.updated_step,
            )
        )
        return True

    def _fail(self, write_id: WriteId, reason: str) -> None:
        self._forget(write_id)
        self._off = write_id
        self._tell(StagingFailed(write_id=write_id, reason=reason))

    def _hear(self, message: ToWorker) -> None:
        match message:
            case SaveDue():
                self._hear_of(message)
            case Grant():
                if self._due is not None and self._due.write_id == message.write_id:
                    self._generation = message.generation
            case Proceed():
                self._may_proceed = self._due is not None and self._due.write_id == message.write_id
            case SaveOff():
                self._forget(message.write_id)
                self._off = message.write_id
            case SaveSafe():
                self._safe = message.write_id
            case Refusal():
                raise Invalid(message.reason, hint=message.hint)
            case Assigned() | Ready():
                raise Internal(f"session: {type(message).__name__} came twice")
            case _:
                assert_never(message)

    def _hear_of(self, due: SaveDue) -> None:
        if due.step <= self._passed:
            self._tell(Missed(write_id=due.write_id, step=self._passed))
            return
        self._due, self._generation, self._may_proceed = due, None, False
        self._tell(Armed(write_id=due.write_id))

    def _forget(self, write_id: WriteId) -> None:
        if self._due is not None and self._due.write_id == write_id:
            self._due, self._generation, self._may_proceed = None, None, False

    def _tell_stall(self, started_ns: int) -> None:
        """Report the time that the program did not train, whether or not the save succeeded."""
        self._tell(Stalled(stall_us=(time.monotonic_ns() - started_ns) // 1000))

    def _wait(self, what: str) -> None:
        self._hear(self._peer.receive(timeout_s=self._wait_limit_s, what=what))

    def _tell(self, message: object) -> None:
        self._peer.send(message, timeout_s=self._wait_limit_s)


def _no_memory(step: Step) -> str:
    return (
        f"no half of the staging memory is free at step {step}: expected the writes of earlier saves to have ended, "
        "got one that was given up and still goes on; the store of this node is slow or hangs"
    )


def _unfenced(step: Step, done_step: Step) -> str:
    return (
        f"step {done_step} was done while the state of step {step} was still being copied, without run.fence() in "
        "between: the copy may hold bytes of both; call run.fence() in every step before the state changes, "
        "run.fence(updates=False) in one that changes nothing"
    )
