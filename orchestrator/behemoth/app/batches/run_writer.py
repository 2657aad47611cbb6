"""Writes a batch of a reshard run after run; of batches that need much memory one at a time in a process.

Neighbours: `scaled_units`, which says what a run is, `checkpoint.interop.unit_writer`, which writes one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext

from behemoth.app.batches.scaled_units import ScaledUnits
from behemoth.checkpoint.interop.resharded import MAX_BATCH_BYTES
from behemoth.checkpoint.interop.unit_writer import UnitWriter, Written
from behemoth.checkpoint.interop.units import Unit


class RunWriter:
    """Writes a batch run after run. Thread-safe: a batch that needs much memory is done alone, on all threads of its
    order, and to its end: if such batches took turns run by run, none had a result, or anything to go on with after a
    kill, before all that are under way are nearly done."""

    def __init__(self, writer: UnitWriter, scaled: ScaledUnits) -> None:
        self._writer = writer
        self._scaled = scaled
        self._large = threading.Lock()

    def write(self, units: Sequence[Unit], upload_ids: Sequence[str], *, threads: int) -> list[Written]:
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
