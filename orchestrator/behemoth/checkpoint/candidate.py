"""A write that is to become a checkpoint: what its commit record will say of it beyond what receipts prove.

Value only. Neighbours: `proof`, which holds receipts against it, and `commit`, which makes a record of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.paths import step_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`run` says where it comes from, `attempt` which start of the gang writes it. `committed_us` is wall time, kept
    for people and for retention; 0 when nobody tells."""

    run: str
    step: Step
    write_id: WriteId
    attempt: Attempt
    committed_us: int = 0

    @property
    def prefix(self) -> str:
        """Folder of the write's objects below the run's root."""
        return step_prefix(self.step, self.write_id)
