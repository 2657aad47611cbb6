"""The model's training: workers that come up, restore, make steps along a line, stand for saves, and end.

What bends the line is an event: a save's step, a fault, the end. One object plays all attempts in turn, because at most
one attempt acts: `start` ends the former one. Neighbours: `gang` has the line; `cluster` checks fences and knows the
holders; `store` keeps what saves leave.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from behemoth.base.ids import Attempt, NodeId, Rank, Step, WriteId
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.facts import Facts
from behemoth.simulation.gang import Gang, SaveTry
from behemoth.simulation.store import Store
from behemoth.simulation.timing import Timing
from behemoth.state.effect import CommitRef
from behemoth.state.evidence import (
    GangFinished,
    GangGone,
    GangRestored,
    GangUp,
    Progress,
    RestoreFailed,
    SaveArmed,
    SaveFailed,
    SavePassed,
    SaveStaged,
    SaveWritten,
    WorkerFailed,
)


class Training:
    """The gang and its saves. `is_fit()` says whether every holder's agent answers; `tick()` reports progress."""

    def __init__(
        self,
        *,
        agenda: Agenda,
        facts: Facts,
        store: Store,
        timing: Timing,
        total_steps: Step,
        num_ranks: int,
        is_fit: Callable[[], bool],
        tick: Callable[[], None],
    ) -> None:
        self.gang: Gang | None = None
        self.saves: dict[WriteId, SaveTry] = {}
        self.furthest_step = 0
        self.num_write_faults = 0
        self.missing_restores: list[CommitRef] = []
        self._called: set[WriteId] = set()
        self._agenda = agenda
        self._facts = facts
        self._store = store
        self._timing = timing
        self._total_steps = total_steps
        self._num_ranks = num_ranks
        self._is_fit = is_fit
        self._tick = tick

    # What the brain's effects do.

    def start(self, attempt: Attempt, restore: CommitRef | None, node: NodeId, *, is_whole: bool) -> None:
        """End the former attempt and begin this one. `is_whole` is false when a holder has no agent: such a gang never
        comes up. `node` is the one that reports a bad restore."""
        self._end_gang()
        for write_id in [w for w, save in self.saves.items() if save.is_with_workers]:
            del self.saves[write_id]
        if restore is not None and not self._store.holds(restore):
            self.missing_restores.append(restore)
        gang = self.gang = Gang(attempt=attempt, restore=restore, is_broken=not is_whole)
        gang.phase_since_us = self._agenda.now_us
        self._milestone(gang, self._timing.command_us + self._timing.start_us, partial(self._up, gang, node))

    def stop(self, attempt: Attempt) -> None:
        gang = self.gang
        if gang is None or gang.attempt > attempt:
            return
        self._end_gang()
        self._agenda.after(self._timing.command_us, partial(self._gone, self.gang))

    def save(self, save: SaveTry) -> None:
        if save.write_id in self._called:
            return
        self._called.add(save.write_id)
        self.saves[save.write_id] = save
        self._agenda.after(self._timing.command_us, partial(self._arm, save))

    def agree(self, write_id: WriteId) -> None:
        self._agenda.after(self._timing.command_us, partial(self._agreed, write_id))

    def abort(self, write_id: WriteId) -> None:
        save = self.saves.pop(write_id, None)
        self._facts.forget("save", write_id)
        self._store.forget(write_id)
        if save is not None:
            self._release()

    # What faults do.

    def fail_worker(self, node: NodeId, rank: Rank, *, exit_code: int | None, signal: int | None) -> None:
        """A worker ends now; the body hears of it after its report time. Does nothing when no gang runs."""
        gang = self.gang
        if gang is None or gang.is_over:
            return
        self._halt(gang)
        gang.is_broken = True
        self._agenda.after(self._timing.exit_report_us, partial(self._report_exit, gang, node, rank, exit_code, signal))

    def hang(self) -> None:
        """No rank makes a step any more, and nothing says why."""
        if self.gang is not None and not self.gang.is_over:
            self._halt(self.gang)
            self.gang.is_hung = True
            self._tick()

    def holder_gone(self) -> None:
        """A holder's agent ended: the gang is broken, and saves that it had not written are lost."""
        if self.gang is not None and not self.gang.is_over:
            self._halt(self.gang)
            self.gang.is_broken = True
        for save in [save for save in self.saves.values() if save.state in ("staging", "staged")]:
            self._fail_save(save, "a node that held a part of it is lost", told_in_us=self._timing.loss_report_us)

    def holders_changed(self) -> None:
        """A holder fell silent or answers again."""
        gang = self.gang
        if gang is None or gang.is_over:
            return
        if not self._is_fit():
            self._halt(gang)
            return
        deferred, gang.deferred = gang.deferred, []
        for action in deferred:
            action()
        self._release()

    def end_everything(self) -> None:
        """All agents are gone, with their memory."""
        self._end_gang()
        for save in list(self.saves.values()):
            if save.state != "written":
                del self.saves[save.write_id]
                self._facts.forget("save", save.write_id)

    # What the body reads.

    def progress(self) -> Progress | None:
        """Where the line stands now; None before the state is back."""
        gang = self.gang
        if gang is None or gang.is_over or not gang.has_state:
            return None
        step = self.step_now()
        gang.reported_us = self._agenda.now_us
        at_us = min(self._agenda.now_us, gang.at_us + max(0, step - gang.step) * self._timing.step_us)
        return Progress(
            attempt=gang.attempt,
            step=step,
            furthest_step=step,
            at_us=at_us,
            phase=gang.phase,
            phase_since_us=gang.phase_since_us,
            slowest_step_us=self._timing.step_us if gang.has_stepped else 0,
            stall_us=gang.stall_us,
            next_report_by_us=self._promise_us(gang),
        )

    def is_running(self) -> bool:
        """Whether workers run that have not failed."""
        return self.gang is not None and self.gang.is_able

    def step_now(self) -> Step:
        return Step(0) if self.gang is None else self.gang.step_at(self._agenda.now_us, self._timing.step_us)

    def _promise_us(self, gang: Gang) -> int | None:
        """A line that moves is reported again by then; one that stands promises nothing."""
        if not gang.is_moving:
            return None
        return self._agenda.now_us + self._timing.report_us + self._timing.stage_us + self._timing.step_us

    # Coming up.

    def _milestone(self, gang: Gang, delay_us: int, action: Callable[[], None]) -> None:
        self._agenda.after(delay_us, partial(self._pass, gang, action))

    def _pass(self, gang: Gang, action: Callable[[], None]) -> None:
        if gang is not self.gang or not gang.is_able:
            return
        if not self._is_fit():
            gang.deferred.append(partial(self._pass, gang, action))
            return
        action()

    def _up(self, gang: Gang, node: NodeId) -> None:
        gang.enter("restore", self._agenda.now_us)
        self._facts.tell(GangUp(attempt=gang.attempt), "gang", "", "up")
        if gang.restore is not None and gang.restore.write_id in self._store.corrupt:
            gang.is_broken = True
            failed = RestoreFailed(
                attempt=gang.attempt,
                node=node,
                write_id=gang.restore.write_id,
                reason="a chunk does not match its CRC",
                is_corrupt=True,
            )
            self._facts.tell(failed, "gang", "", "restore-failed")
            return
        self._milestone(gang, self._timing.restore_us, partial(self._restored, gang))

    def _restored(self, gang: Gang) -> None:
        step = gang.restore.step if gang.restore is not None else Step(0)
        gang.enter("first_step", self._agenda.now_us)
        gang.step, gang.at_us = step, self._agenda.now_us
        self._facts.tell(GangRestored(attempt=gang.attempt, step=step, num_from_memory=0), "gang", "", "restored")
        self._move(gang, self._agenda.now_us + self._timing.first_step_us - self._timing.step_us)
        self._agenda.after(self._timing.report_us, partial(self._report, gang))

    def _report(self, gang: Gang) -> None:
        if gang is not self.gang or gang.is_over:
            return
        due_us = gang.reported_us + self._timing.report_us
        if due_us <= self._agenda.now_us:
            if gang.is_moving:
                self._tick()
            due_us = self._agenda.now_us + self._timing.report_us
        self._agenda.at(due_us, partial(self._report, gang))

    # The line.

    def _move(self, gang: Gang, at_us: int) -> None:
        """The line goes on from `gang.step`, taken as completed at `at_us`, to the next step with something due."""
        gang.goes_on(at_us)
        stops = [save.step for save in self.saves.values() if save.state == "armed" and save.step > gang.step]
        if not gang.has_stepped:
            stops.append(Step(gang.step + 1))
        stop = min([*stops, self._total_steps])
        due_us = at_us + max(0, stop - gang.step) * self._timing.step_us
        self._agenda.at(max(due_us, self._agenda.now_us), partial(self._stop_at, gang, gang.line_id, stop))

    def _halt(self, gang: Gang) -> None:
        gang.halt(self._agenda.now_us, self._timing.step_us)
        self.furthest_step = max(self.furthest_step, gang.step)

    def _stop_at(self, gang: Gang, line_id: int, step: Step) -> None:
        if gang is not self.gang or gang.line_id != line_id:
            return
        self._halt(gang)
        gang.step, gang.at_us = step, self._agenda.now_us
        self.furthest_step = max(self.furthest_step, step)
        is_first, gang.has_stepped = not gang.has_stepped, True
        if is_first:
            gang.enter("step", self._agenda.now_us)
            self._tick()
        self._release()

    def _release(self) -> None:
        """Let a standing gang do what is due at its step: save, wait, or go on."""
        gang = self.gang
        if gang is None or not gang.is_able or not gang.has_state or gang.is_moving or not self._is_fit():
            return
        save = self._save_here(gang)
        if save is not None:
            self._hold_for(gang, save)
            return
        if gang.step < self._total_steps:
            if gang.phase == "save":
                gang.enter("step", self._agenda.now_us)
            self._move(gang, self._agenda.now_us)
            return
        self._stand(gang)

    def _save_here(self, gang: Gang) -> SaveTry | None:
        for save in self.saves.values():
            if save.attempt == gang.attempt and save.step == gang.step and save.is_held:
                return save
        return None

    def _stand(self, gang: Gang) -> None:
        if gang.phase == "save":
            return
        gang.enter("save", self._agenda.now_us)
        self._tick()

    # Saves.

    def _arm(self, save: SaveTry) -> None:
        gang = self.gang
        if self.saves.get(save.write_id) is not save or gang is None or gang.attempt != save.attempt:
            return
        if not gang.has_state:
            self._milestone(gang, self._timing.restore_us, partial(self._arm, save))
            return
        step = self.step_now()
        stands = step == save.step == self._total_steps and not gang.is_moving
        if step >= save.step and not stands:
            del self.saves[save.write_id]
            passed = SavePassed(attempt=save.attempt, write_id=save.write_id, step=step)
            self._facts.tell(passed, "save", save.write_id, "passed")
            return
        save.state = "armed"
        self._facts.tell(SaveArmed(attempt=save.attempt, write_id=save.write_id), "save", save.write_id, "armed")
        if gang.is_moving:
            gang.advance(self._agenda.now_us, self._timing.step_us)
            self._move(gang, gang.at_us)
        self._release()

    def _hold_for(self, gang: Gang, save: SaveTry) -> None:
        if save.state != "armed":
            return
        if save.is_last and not save.is_agreed:
            self._stand(gang)
            return
        save.state = "staging"
        gang.enter("save", self._agenda.now_us)
        self._milestone(gang, self._timing.stage_us, partial(self._staged, gang, save))

    def _agreed(self, write_id: WriteId) -> None:
        save = self.saves.get(write_id)
        if save is not None and save.state in ("coming", "armed"):
            save.is_agreed = True
            self._release()

    def _staged(self, gang: Gang, save: SaveTry) -> None:
        if self.saves.get(save.write_id) is not save or save.state != "staging":
            return
        save.state = "staged"
        gang.stall_us += self._timing.stage_us * self._num_ranks
        self._facts.tell(SaveStaged(attempt=save.attempt, write_id=save.write_id), "save", save.write_id, "staged")
        self._agenda.after(self._timing.write_us, partial(self._written, save))
        if save.is_last and self._timing.last_leaves_when == "staged":
            self._finish(gang)
            return
        self._release()
        self._tick()

    def _written(self, save: SaveTry) -> None:
        if self.saves.get(save.write_id) is not save or save.state != "staged":
            return
        if not self._is_fit():
            self._agenda.after(self._timing.write_us, partial(self._written, save))
            return
        if self.num_write_faults > 0:
            self.num_write_faults -= 1
            self._fail_save(save, "the store did not take it", told_in_us=0)
            return
        save.state = "written"
        self._store.written(save.step, save.write_id)
        self._facts.tell(SaveWritten(attempt=save.attempt, write_id=save.write_id), "save", save.write_id, "written")
        gang = self.gang
        if save.is_last and gang is not None and gang.attempt == save.attempt and not gang.is_broken:
            self._finish(gang)
        if not save.is_last:
            del self.saves[save.write_id]

    def _fail_save(self, save: SaveTry, reason: str, *, told_in_us: int) -> None:
        self.saves.pop(save.write_id, None)
        self._facts.forget("save", save.write_id)
        failed = SaveFailed(write_id=save.write_id, reason=reason)
        self._agenda.after(told_in_us, partial(self._facts.tell, failed, "save", save.write_id, "failed"))
        self._release()

    # Ends.

    def _finish(self, gang: Gang) -> None:
        if gang.is_over or gang.is_hung:
            return
        self._halt(gang)
        gang.is_over = True
        self._facts.tell(GangFinished(attempt=gang.attempt), "gang", "", "finished")

    def _end_gang(self) -> None:
        if self.gang is None:
            return
        self._halt(self.gang)
        self.gang.is_over = True
        self._facts.forget("gang", "")

    def _gone(self, gang: Gang | None) -> None:
        if gang is not None and gang is self.gang:
            self._facts.tell(GangGone(attempt=gang.attempt), "gang", "", "gone")

    def _report_exit(self, gang: Gang, node: NodeId, rank: Rank, exit_code: int | None, signal: int | None) -> None:
        failed = WorkerFailed(
            node=node, attempt=gang.attempt, rank=rank, exit_code=exit_code, signal=signal, last_lines="simulated fault"
        )
        if gang is not self.gang:
            self._facts.say(failed)
            return
        self._tick()
        self._facts.tell(failed, "gang", "", f"failed {rank}")
