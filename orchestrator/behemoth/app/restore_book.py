"""One row per attempt that restored a checkpoint, with the places that it came from: folded from the journal."""

from __future__ import annotations

from dataclasses import dataclass, field

from behemoth.base.ids import Attempt, Step
from behemoth.state.evidence import Evidence, GangRestored
from behemoth.state.observation import Observation

MAX_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRow:
    """One attempt that restored a checkpoint, as `summary.json` has it too: its ranks by the place that their state
    came from (`num_from_several`: parts of it from places of different kinds), the bytes that were read for it, and why
    something came from the store, where nearer places were asked."""

    attempt: Attempt
    step: Step
    num_from_memory: int
    num_from_peer: int
    num_from_disk: int
    num_from_several: int
    num_from_store: int
    peer_bytes: int
    disk_bytes: int
    store_bytes: int
    missed: str


@dataclass(slots=True)
class RestoreBook:
    """A witness of the loop. The oldest of more than MAX_ROWS rows are dropped."""

    rows: list[RestoreRow] = field(default_factory=list)

    def witness(self, evidence: Evidence, before: Observation | None, after: Observation) -> None:
        if not isinstance(evidence, GangRestored) or before is None or after.restore is None:
            return
        is_told = bool(self.rows) and self.rows[-1].attempt == evidence.attempt
        if evidence.attempt != before.attempt or is_told:
            return
        row = RestoreRow(
            attempt=evidence.attempt,
            step=evidence.step,
            num_from_memory=evidence.num_from_memory,
            num_from_peer=evidence.num_from_peer,
            num_from_disk=evidence.num_from_disk,
            num_from_several=evidence.num_from_several,
            num_from_store=num_from_store(evidence, after.num_ranks),
            peer_bytes=evidence.peer_bytes,
            disk_bytes=evidence.disk_bytes,
            store_bytes=evidence.store_bytes,
            missed=evidence.missed,
        )
        self.rows = [*self.rows, row][-MAX_ROWS:]


def num_from_store(told: GangRestored, num_ranks: int) -> int:
    """Number of ranks whose state came from the store alone: those that no node reported for a nearer place."""
    nearer = told.num_from_memory + told.num_from_peer + told.num_from_disk + told.num_from_several
    return num_ranks - nearer
