"""One row per save that was committed, with its times: folded from the journal like the ledger, for people only."""

from __future__ import annotations

from dataclasses import dataclass, field

from behemoth.base.ids import Step, WriteId
from behemoth.state.effect import Abort, Save
from behemoth.state.evidence import Committed, Decided, Evidence
from behemoth.state.observation import Observation

MAX_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveRow:
    """Times in Unix microseconds. None: an earlier process measured it, and the journal does not keep it."""

    step: Step
    write_id: WriteId
    size_bytes: int
    reached_us: int | None
    """When the gang was first known to stand at its step; the save begins there."""
    committed_us: int


@dataclass(slots=True)
class SaveBook:
    """A witness of the loop. The oldest of more than MAX_ROWS rows are dropped."""

    rows: list[SaveRow] = field(default_factory=list)
    _reached_us: dict[WriteId, int | None] = field(default_factory=dict)

    def witness(self, evidence: Evidence, _before: Observation | None, after: Observation) -> None:
        match evidence:
            case Decided(effects=effects):
                for effect in effects:
                    if isinstance(effect, Save):
                        self._reached_us[effect.write_id] = None
                    elif isinstance(effect, Abort):
                        self._reached_us.pop(effect.write_id, None)
            case Committed(commit=commit):
                row = SaveRow(
                    step=commit.step,
                    write_id=commit.write_id,
                    size_bytes=commit.size_bytes,
                    reached_us=self._reached_us.pop(commit.write_id, None),
                    committed_us=after.now_us,
                )
                self.rows = [*self.rows, row][-MAX_ROWS:]
        self._note_reached(after)

    def _note_reached(self, after: Observation) -> None:
        save = after.save
        if save is None or save.reached_us is None or save.write_id not in self._reached_us:
            return
        if self._reached_us[save.write_id] is None:
            self._reached_us[save.write_id] = save.reached_us
