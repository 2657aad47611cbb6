"""Foreign tensors as a committed checkpoint, in this process and array by array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.interop.ingest import import_layout, import_units, write_checkpoint
from behemoth.checkpoint.interop.object_uploads import ObjectUploads
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.interop.unit_writer import TensorSource, UnitWriter, Written
from behemoth.ports import SavesTo


def import_tensors(
    store: SavesTo, tensors: Mapping[str, Tensor], *, step: int = 5, write_id: str = "import-1"
) -> CommitRecord:
    layout = import_layout(tensors)
    made = Candidate(run="import:x", step=Step(step), write_id=WriteId(write_id), attempt=Attempt(1), committed_us=7)
    writer = UnitWriter(store, made.prefix, layout, TensorSource(layout, tensors))

    def spread(uploads: ObjectUploads) -> Iterator[Sequence[Written]]:
        for _, of_array in groupby(import_units(layout, store), key=lambda unit: unit.array):
            units = list(of_array)
            yield writer.write(units, [uploads.upload_id(unit) for unit in units])

    return write_checkpoint(store, made, layout, spread)
