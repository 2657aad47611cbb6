"""Writes a batch of a reshard, one run of units after another; only one batch that needs much memory at a time.

Neighbours: `scaled_units`, which says what a run is, `checkpoint.interop.unit_writer`, which writes one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext

from behemoth.app.batches.scaled_units import ScaledUnits
from behemoth.checkpoint.interop.resharded import MAX_BATCH_BYTES
from behemoth.checkpoint.interop.unit_writer import UnitWriter, Written
from behemoth.checkpoint.interop.units import WriteUnit


class RunWriter:
    """Writes a batch, one run of units after another. Thread-safe. A batch that needs much memory holds a lock until it
    is complete, and uses all its threads: if such batches alternated run by run, none would complete, and none would be
    recorded, until nearly all were done."""

    def __init__(self, writer: UnitWriter, scaled: ScaledUnits) -> None:
        self._writer = writer
        self._scaled = scaled
        self._large = threading.Lock()

    def write(self, units: Sequence[WriteUnit], upload_ids: Sequence[str], *, threads: int) -> list[Written]:
        """See `UnitWriter`."""
        ids = {(unit.array, unit.shard, unit.number): id_ for unit, id_ in zip(units, upload_ids, strict=True)}
        found: list[Written] = []
        runs = self._scaled.runs(units)
        is_large = any(run.held_bytes > MAX_BATCH_BYTES for run in runs)
        with self._large if is_large else nullcontext():
            for run in runs:
                of_run = [ids[unit.array, unit.shard, unit.number] for unit in run.units]
                found += self._writer.write(run.units, of_run, threads=threads if is_large else 1)
        return found
