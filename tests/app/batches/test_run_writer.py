"""Batches that need much memory are written one after the other, each to its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
from typing_extensions import override

from behemoth.app.batches.run_writer import RunWriter
from behemoth.app.batches.scaled_units import ScaledUnits, UnitRun
from behemoth.checkpoint.interop.resharded import MAX_BATCH_BYTES
from behemoth.checkpoint.interop.unit_writer import TensorSource, UnitWriter, Written
from behemoth.checkpoint.interop.units import UnitPiece, WriteUnit
from behemoth.checkpoint.layout import Layout
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore

KEPT_S, LIMIT_S = 0.1, 30.0
"""For another batch: that is kept waiting, as far as one can see, and that nothing keeps."""
NO_LAYOUT = Layout(mesh=Mesh(), arrays=())


def batch(array: int) -> list[WriteUnit]:
    pieces = [UnitPiece(array, 0, number, number + 1, ((number, number + 1),), 1) for number in range(2)]
    return [WriteUnit(array=array, shard=0, number=one.last, num_parts=2, pieces=(one,)) for one in pieces]


class Noting(UnitWriter):
    """Writes nothing; notes array, number and threads. Its first write begins `other` on another thread."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), "", NO_LAYOUT, TensorSource(NO_LAYOUT, {}))
        self.written: list[tuple[int, int, int]] = []
        self.other: threading.Thread | None = None

    @override
    def write(self, units: Sequence[WriteUnit], upload_ids: Sequence[str], *, threads: int = 1) -> list[Written]:
        self.written += [(one.array, one.number, threads) for one in units]
        if self.other is not None and self.other.ident is None:
            self.other.start()
        return [Written(one.array, one.shard, one.number, [], 1, 0, "", "") for one in units]


class Gaps(list[UnitRun]):
    """Runs of a batch; between two of them `other` may come to its end if nothing keeps it."""

    def __init__(self, runs: Sequence[UnitRun], writer: Noting) -> None:
        super().__init__(runs)
        self._writer = writer
        self._wait_s = KEPT_S if any(run.held_bytes > MAX_BATCH_BYTES for run in runs) else LIMIT_S

    @override
    def __iter__(self) -> Iterator[UnitRun]:
        for run in super().__iter__():
            yield run
            other = self._writer.other
            if other is not None and other.ident is not None and other is not threading.current_thread():
                other.join(self._wait_s)


class EachAlone(ScaledUnits):
    """A run of so many bytes for each unit."""

    writer: Noting
    held_bytes: int

    @override
    def runs(self, units: Sequence[WriteUnit]) -> list[UnitRun]:
        return Gaps([UnitRun([one], self.held_bytes) for one in units], self.writer)


@pytest.mark.parametrize(
    ("held_bytes", "expected"),
    [
        (MAX_BATCH_BYTES + 1, [(0, 1, 8), (0, 2, 8), (1, 1, 8), (1, 2, 8)]),
        (MAX_BATCH_BYTES, [(0, 1, 1), (1, 1, 1), (1, 2, 1), (0, 2, 1)]),
    ],
    ids=["large", "small"],
)
def test_a_batch_with_large_runs_is_written_to_its_end_before_the_next_such_batch_begins(
    held_bytes: int, expected: list[tuple[int, int, int]]
) -> None:
    """So each gives its result as early as it can, and a kill costs one of them and not all that wait."""
    scaled = EachAlone(saved=NO_LAYOUT, layout=NO_LAYOUT, found=[], run_bytes=1, limit_bytes=1)
    noting = Noting()
    vars(scaled).update(writer=noting, held_bytes=held_bytes)
    writer = RunWriter(noting, scaled)
    other = noting.other = threading.Thread(
        target=lambda: writer.write(batch(1), ["", ""], threads=8), name="other-batch"
    )
    found = writer.write(batch(0), ["", ""], threads=8)
    other.join(LIMIT_S)
    assert noting.written == expected
    assert [(one.array, one.number) for one in found] == [(0, 1), (0, 2)]
