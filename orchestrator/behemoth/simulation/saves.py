"""The model's saves: called, armed, staged while the gang stands, written behind its back, or lost.

A save outlives its attempt once it is staged. Where the gang stands and when it goes on is the business of the
neighbour `training`, whose line this bends; `store` keeps what saves leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from behemoth.base.ids import Step, WriteId
from behemoth.simulation.agenda import Agenda
from behemoth.simulation.facts import Facts
from behemoth.simulation.gang import Gang, SaveTry
from behemoth.simulation.store import Store
from behemoth.simulation.timing import Timing
from behemoth.state.evidence import SaveArmed, SaveFailed, SavePassed, SaveStaged, SaveWritten


class Line(Protocol):
    """What a save does to the gang's line, and asks of it: one attempt after the other, None before the first."""

    gang: Gang | None

    def step_now(self) -> Step: ...

    def milestone(self, gang: Gang, delay_us: int, action: Callable[[], None]) -> None:
        """Do this a while later, once the holders are fit, unless the gang has ended or failed by then."""
        ...

    def look_again(self, gang: Gang) -> None:
        """Something may be due sooner than the moving line knows."""
        ...

    def release(self) -> None:
        """Let a standing gang do what is due at its step."""
        ...

    def stand(self, gang: Gang) -> None:
        """Wait at this step for a save."""
        ...

    def finish(self, gang: Gang) -> None:
        """All workers end well."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the gang and its saves act in."""

    agenda: Agenda
    facts: Facts
    store: Store
    timing: Timing
    total_steps: Step
    num_ranks: int
    is_fit: Callable[[], bool]
    """Whether every holder's agent answers."""
    tick: Callable[[], None]
    """Reports progress."""


class Saves:
    """`tries` are those under way, and the last one. The next `num_write_faults` writes fail."""

    def __init__(self, line: Line, parts: Parts) -> None:
        self.tries: dict[WriteId, SaveTry] = {}
        self.num_write_faults = 0
        self._line = line
        self._called: set[WriteId] = set()
        self._parts = parts

    # What the brain's effects do.

    def call(self, save: SaveTry) -> None:
        if save.write_id in self._called:
            return
        self._called.add(save.write_id)
        self.tries[save.write_id] = save
        self._parts.agenda.after(self._parts.timing.command_us, partial(self._arm, save))

    def agree(self, write_id: WriteId) -> None:
        self._parts.agenda.after(self._parts.timing.command_us, partial(self._agreed, write_id))

    def abort(self, write_id: WriteId) -> None:
        save = self.tries.pop(write_id, None)
        self._parts.facts.forget("save", write_id)
        self._parts.store.forget(write_id)
        if save is not None:
            self._line.release()

    # What happens to the gang.

    def attempt_ended(self) -> None:
        """What only its workers had is lost."""
        for write_id in [w for w, save in self.tries.items() if save.is_with_workers]:
            del self.tries[write_id]

    def holder_gone(self) -> None:
        """A node is lost, with its part of what it had not written."""
        for save in [save for save in self.tries.values() if save.state in ("staging", "staged")]:
            self._fail(save, "a node that held a part of it is lost", told_in_us=self._parts.timing.loss_report_us)

    def memory_lost(self) -> None:
        """All agents are gone."""
        for save in list(self.tries.values()):
            if save.state != "written":
                del self.tries[save.write_id]
                self._parts.facts.forget("save", save.write_id)

    # What the line asks.

    def due_after(self, step: int) -> list[Step]:
        """The steps at which the gang must stop for a save."""
        return [save.step for save in self.tries.values() if save.state == "armed" and save.step > step]

    def here(self, gang: Gang) -> SaveTry | None:
        """The save for which a gang stands at its step."""
        for save in self.tries.values():
            if save.attempt == gang.attempt and save.step == gang.step and save.is_held:
                return save
        return None

    def hold(self, gang: Gang, save: SaveTry) -> None:
        """The gang stands at the save's step: stage, or wait until all know of it."""
        if save.state != "armed":
            return
        if save.is_last and not save.is_agreed:
            self._line.stand(gang)
            return
        save.state = "staging"
        gang.enter("save", self._parts.agenda.now_us)
        self._line.milestone(gang, self._parts.timing.stage_us, partial(self._staged, gang, save))

    # Its way.

    def _arm(self, save: SaveTry) -> None:
        gang = self._line.gang
        if self.tries.get(save.write_id) is not save or gang is None or gang.attempt != save.attempt:
            return
        if not gang.has_state:
            self._line.milestone(gang, self._parts.timing.restore_us, partial(self._arm, save))
            return
        step = self._line.step_now()
        stands = step == save.step == self._parts.total_steps and not gang.is_moving
        if step >= save.step and not stands:
            del self.tries[save.write_id]
            passed = SavePassed(attempt=save.attempt, write_id=save.write_id, step=step)
            self._parts.facts.tell(passed, "save", save.write_id, "passed")
            return
        save.state = "armed"
        self._parts.facts.tell(SaveArmed(attempt=save.attempt, write_id=save.write_id), "save", save.write_id, "armed")
        self._line.look_again(gang)
        self._line.release()

    def _agreed(self, write_id: WriteId) -> None:
        save = self.tries.get(write_id)
        if save is not None and save.state in ("coming", "armed"):
            save.is_agreed = True
            self._line.release()

    def _staged(self, gang: Gang, save: SaveTry) -> None:
        if self.tries.get(save.write_id) is not save or save.state != "staging":
            return
        save.state = "staged"
        gang.stall_us += self._parts.timing.stage_us * self._parts.num_ranks
        self._parts.facts.tell(
            SaveStaged(attempt=save.attempt, write_id=save.write_id), "save", save.write_id, "staged"
        )
        self._parts.agenda.after(self._parts.timing.write_us, partial(self._written, save))
        if save.is_last and self._parts.timing.last_leaves_when == "staged":
            self._line.finish(gang)
            return
        self._line.release()
        self._parts.tick()

    def _written(self, save: SaveTry) -> None:
        if self.tries.get(save.write_id) is not save or save.state != "staged":
            return
        if not self._parts.is_fit():
            self._parts.agenda.after(self._parts.timing.write_us, partial(self._written, save))
            return
        if self.num_write_faults > 0:
            self.num_write_faults -= 1
            self._fail(save, "the store did not take it", told_in_us=0)
            return
        save.state = "written"
        self._parts.store.written(save.step, save.write_id)
        self._parts.facts.tell(
            SaveWritten(attempt=save.attempt, write_id=save.write_id), "save", save.write_id, "written"
        )
        gang = self._line.gang
        if save.is_last and gang is not None and gang.attempt == save.attempt and not gang.is_broken:
            self._line.finish(gang)
        if not save.is_last:
            del self.tries[save.write_id]

    def _fail(self, save: SaveTry, reason: str, *, told_in_us: int) -> None:
        self.tries.pop(save.write_id, None)
        self._parts.facts.forget("save", save.write_id)
        failed = SaveFailed(write_id=save.write_id, reason=reason)
        self._parts.agenda.after(told_in_us, partial(self._parts.facts.tell, failed, "save", save.write_id, "failed"))
        self._line.release()
