"""The model's training: workers that come up, restore, make steps along a line, stand for saves, and end.

What bends the line is an event: a save's step, a fault, the end. One object plays all attempts in turn, because at most
one attempt acts: `start` ends the former one. Neighbours: `gang` has the line; `saves` plays the saves; `cluster`
checks fences and knows the holders.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from behemoth.base.ids import Attempt, NodeId, Rank, Step
from behemoth.simulation.gang import Gang
from behemoth.simulation.saves import Parts, Saves
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import (
    GangFinished,
    GangGone,
    GangRestored,
    GangUp,
    Progress,
    RestoreFailed,
    WorkerFailed,
)


class Training:
    """The gang and its saves."""

    def __init__(self, parts: Parts) -> None:
        self.gang: Gang | None = None
        self.furthest_step = 0
        self.missing_restores: list[CommitRef] = []
        self.saves = Saves(self, parts)
        self._parts = parts

    # What the brain's effects do.

    def start(self, attempt: Attempt, restore: CommitRef | None, node: NodeId, *, is_whole: bool) -> None:
        """End the former attempt and begin this one. `is_whole` is false when a holder has no agent: such a gang never
        comes up. `node` is the one that reports a bad restore."""
        self._end_gang()
        self.saves.attempt_ended()
        if restore is not None and not self._parts.store.holds(restore):
            self.missing_restores.append(restore)
        gang = self.gang = Gang(attempt=attempt, restore=restore, is_broken=not is_whole)
        gang.phase_since_us = self._parts.agenda.now_us
        self.milestone(gang, self._parts.timing.command_us + self._parts.timing.start_us, partial(self._up, gang, node))

    def stop(self, attempt: Attempt) -> None:
        gang = self.gang
        if gang is None or gang.attempt > attempt:
            return
        self._end_gang()
        self._parts.agenda.after(self._parts.timing.command_us, partial(self._gone, self.gang))

    # What faults do.

    def fail_worker(self, node: NodeId, rank: Rank, *, exit_code: int | None, signal: int | None) -> None:
        """A worker ends now; the body hears of it after its report time. Does nothing when no gang runs."""
        gang = self.gang
        if gang is None or gang.is_over:
            return
        self._halt(gang)
        gang.is_broken = True
        self._parts.agenda.after(
            self._parts.timing.exit_report_us, partial(self._report_exit, gang, node, rank, exit_code, signal)
        )

    def hang(self) -> None:
        """No rank makes a step any more, and nothing says why."""
        if self.gang is not None and not self.gang.is_over:
            self._halt(self.gang)
            self.gang.is_hung = True
            self._parts.tick()

    def holder_gone(self) -> None:
        """A holder's agent ended: the gang is broken, and saves that it had not written are lost."""
        if self.gang is not None and not self.gang.is_over:
            self._halt(self.gang)
            self.gang.is_broken = True
        self.saves.holder_gone()

    def holders_changed(self) -> None:
        """A holder fell silent or answers again."""
        gang = self.gang
        if gang is None or gang.is_over:
            return
        if not self._parts.is_fit():
            self._halt(gang)
            return
        deferred, gang.deferred = gang.deferred, []
        for action in deferred:
            action()
        self.release()

    def end_everything(self) -> None:
        """All agents are gone, with their memory."""
        self._end_gang()
        self.saves.memory_lost()

    # What the body reads.

    def progress(self) -> Progress | None:
        """Where the line stands now; None before the state is back."""
        gang = self.gang
        if gang is None or gang.is_over or not gang.has_state:
            return None
        step = self.step_now()
        gang.reported_us = self._parts.agenda.now_us
        at_us = min(self._parts.agenda.now_us, gang.at_us + max(0, step - gang.step) * self._parts.timing.step_us)
        return Progress(
            attempt=gang.attempt,
            step=step,
            furthest_step=step,
            at_us=at_us,
            phase=gang.phase,
            phase_since_us=gang.phase_since_us,
            slowest_step_us=self._parts.timing.step_us if gang.has_stepped else 0,
            stall_us=gang.stall_us,
            next_report_by_us=self._promise_us(gang),
        )

    def is_running(self) -> bool:
        """Whether workers run that have not failed."""
        return self.gang is not None and self.gang.is_able

    def step_now(self) -> Step:
        return (
            Step(0) if self.gang is None else self.gang.step_at(self._parts.agenda.now_us, self._parts.timing.step_us)
        )

    def _promise_us(self, gang: Gang) -> int | None:
        """A line that moves is reported again by then; one that stands promises nothing."""
        if not gang.is_moving:
            return None
        return (
            self._parts.agenda.now_us
            + self._parts.timing.report_us
            + self._parts.timing.stage_us
            + self._parts.timing.step_us
        )

    # Coming up.

    def milestone(self, gang: Gang, delay_us: int, action: Callable[[], None]) -> None:
        """Do this a while later, once the holders are fit, unless the gang has ended or failed by then."""
        self._parts.agenda.after(delay_us, partial(self._pass, gang, action))

    def _pass(self, gang: Gang, action: Callable[[], None]) -> None:
        if gang is not self.gang or not gang.is_able:
            return
        if not self._parts.is_fit():
            gang.deferred.append(partial(self._pass, gang, action))
            return
        action()

    def _up(self, gang: Gang, node: NodeId) -> None:
        gang.enter("restore", self._parts.agenda.now_us)
        self._parts.facts.tell(GangUp(attempt=gang.attempt), "gang", "", "up")
        if gang.restore is not None and gang.restore.write_id in self._parts.store.corrupt:
            gang.is_broken = True
            failed = RestoreFailed(
                attempt=gang.attempt,
                node=node,
                write_id=gang.restore.write_id,
                reason="a chunk does not match its CRC",
                is_corrupt=True,
            )
            self._parts.facts.tell(failed, "gang", "", "restore-failed")
            return
        self.milestone(gang, self._parts.timing.restore_us, partial(self._restored, gang))

    def _restored(self, gang: Gang) -> None:
        step = gang.restore.step if gang.restore is not None else Step(0)
        gang.enter("first_step", self._parts.agenda.now_us)
        gang.step, gang.at_us = step, self._parts.agenda.now_us
        self._parts.facts.tell(GangRestored(attempt=gang.attempt, step=step, num_from_memory=0), "gang", "", "restored")
        self._move(gang, self._parts.agenda.now_us + self._parts.timing.first_step_us - self._parts.timing.step_us)
        self._parts.agenda.after(self._parts.timing.report_us, partial(self._report, gang))

    def _report(self, gang: Gang) -> None:
        if gang is not self.gang or gang.is_over:
            return
        due_us = gang.reported_us + self._parts.timing.report_us
        if due_us <= self._parts.agenda.now_us:
            if gang.is_moving:
                self._parts.tick()
            due_us = self._parts.agenda.now_us + self._parts.timing.report_us
        self._parts.agenda.at(due_us, partial(self._report, gang))

    # The line.

    def _move(self, gang: Gang, at_us: int) -> None:
        """The line goes on from `gang.step`, taken as completed at `at_us`, to the next step with something due."""
        gang.goes_on(at_us)
        stops = self.saves.due_after(gang.step)
        if not gang.has_stepped:
            stops.append(Step(gang.step + 1))
        stop = min([*stops, self._parts.total_steps])
        due_us = at_us + max(0, stop - gang.step) * self._parts.timing.step_us
        self._parts.agenda.at(max(due_us, self._parts.agenda.now_us), partial(self._stop_at, gang, gang.line_id, stop))

    def look_again(self, gang: Gang) -> None:
        """Something may be due sooner than the moving line knows."""
        if gang.is_moving:
            gang.advance(self._parts.agenda.now_us, self._parts.timing.step_us)
            self._move(gang, gang.at_us)

    def _halt(self, gang: Gang) -> None:
        gang.halt(self._parts.agenda.now_us, self._parts.timing.step_us)
        self.furthest_step = max(self.furthest_step, gang.step)

    def _stop_at(self, gang: Gang, line_id: int, step: Step) -> None:
        if gang is not self.gang or gang.line_id != line_id:
            return
        self._halt(gang)
        gang.step, gang.at_us = step, self._parts.agenda.now_us
        self.furthest_step = max(self.furthest_step, step)
        is_first, gang.has_stepped = not gang.has_stepped, True
        if is_first:
            gang.enter("step", self._parts.agenda.now_us)
            self._parts.tick()
        self.release()

    def release(self) -> None:
        """Let a standing gang do what is due at its step: save, wait, or go on."""
        gang = self.gang
        if gang is None or not gang.is_able or not gang.has_state or gang.is_moving or not self._parts.is_fit():
            return
        save = self.saves.here(gang)
        if save is not None:
            self.saves.hold(gang, save)
            return
        if gang.step < self._parts.total_steps:
            if gang.phase == "save":
                gang.enter("step", self._parts.agenda.now_us)
            self._move(gang, self._parts.agenda.now_us)
            return
        self.stand(gang)

    def stand(self, gang: Gang) -> None:
        """Wait at this step for a save."""
        if gang.phase == "save":
            return
        gang.enter("save", self._parts.agenda.now_us)
        self._parts.tick()

    # Ends.

    def finish(self, gang: Gang) -> None:
        """All workers end well."""
        if gang.is_over or gang.is_hung:
            return
        self._halt(gang)
        gang.is_over = True
        self._parts.facts.tell(GangFinished(attempt=gang.attempt), "gang", "", "finished")

    def _end_gang(self) -> None:
        if self.gang is None:
            return
        self._halt(self.gang)
        self.gang.is_over = True
        self._parts.facts.forget("gang", "")

    def _gone(self, gang: Gang | None) -> None:
        if gang is not None and gang is self.gang:
            self._parts.facts.tell(GangGone(attempt=gang.attempt), "gang", "", "gone")

    def _report_exit(self, gang: Gang, node: NodeId, rank: Rank, exit_code: int | None, signal: int | None) -> None:
        failed = WorkerFailed(
            node=node, attempt=gang.attempt, rank=rank, exit_code=exit_code, signal=signal, last_lines="simulated fault"
        )
        if gang is not self.gang:
            self._parts.facts.say(failed)
            return
        self._parts.tick()
        self._parts.facts.tell(failed, "gang", "", f"failed {rank}")
