"""An import in batches: which chunks of which arrays, and the CRCs of what was written, as data.

What was written stays after a kill, under the same write id, and the same command goes on there. Neighbours:
`checkpoint.interop.ingest`, which commits, and `driving`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from behemoth.app.batches.driving import Progress, Sized, grouped, run_job
from behemoth.app.batches.jobs import ImportJob, encode_job
from behemoth.app.batches.record import Record
from behemoth.app.batches.tensors import Change, inward
from behemoth.base.errors import Conflict
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.interop.foreign import read_model
from behemoth.checkpoint.interop.ingest import Piece, import_layout, objects_of, pieces_of, write_pieces
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.receipt import WrittenSpan
from behemoth.ports import Batch, Executor, ObjectStore
from behemoth.storage.open import open_files, open_source

_pieces_decoder = msgspec.msgpack.Decoder(list[Piece])
_spans_decoder = msgspec.msgpack.Decoder(list[WrittenSpan])


class ImportWork:
    """A `Work`: source and target, opened once. `tensors` are those of the job where this process has them already;
    else the job must be one of safetensors."""

    def __init__(self, job: ImportJob, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._source, self._store = open_source(os.fsdecode(job.folder)), open_files(os.fsdecode(job.to))
        self._prefix = step_prefix(Step(job.step), WriteId(job.write_id))
        if tensors is None:
            model = read_model(self._source, file=os.fsdecode(job.file) or None, threads=job.threads)
            tensors = inward(model.tensors, job.change)
        self._tensors = tensors
        self._layout = import_layout(self._tensors)
        if self._layout.digest != job.layout_digest:
            raise Conflict(
                f"import of {os.fsdecode(job.folder)!r}: expected the tensors that the command saw, got others",
                hint="leave the files alone while they are imported, and give all nodes the same ones",
                code="import-source",
            )

    def run(self, data: bytes) -> bytes:
        pieces = _pieces_decoder.decode(data)
        return msgspec.msgpack.encode(write_pieces(self._store, self._prefix, self._layout, self._tensors, pieces))

    def close(self) -> None:
        self._source.close()
        self._store.close()


def import_job(
    folder: str,
    file: str,
    to: str,
    change: Change,
    layout: Layout,
    *,
    step: Step,
    files: Sequence[str],
    threads: int,
) -> ImportJob:
    """The job without its write id, which names its record: the same files, as far as names, sizes and times tell."""
    stats = [(name, (Path(folder) / name).stat()) for name in files]
    return ImportJob(
        folder=os.fsencode(folder),
        file=os.fsencode(file),
        to=os.fsencode(to),
        step=step,
        change=change,
        layout_digest=layout.digest,
        files=[(os.fsencode(name), stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        threads=threads,
    )


def require_written(store: ObjectStore, job: ImportJob, layout: Layout, record: Record, fresh: WriteId) -> WriteId:
    """The write id to go on with: that of the record, or `fresh` where an object of what is done is gone (`gc`)."""
    write_id = WriteId(record.note)
    batches = {one.batch.number: one.batch for one in batches_of(layout)}
    done = [piece for number in record.done() for piece in _pieces_decoder.decode(batches[number].data)]
    prefix = step_prefix(Step(job.step), write_id)
    listed = {info.key: info.size_bytes for info in store.list(prefix)} if done else {}
    if objects_of(prefix, layout, done).items() <= listed.items():
        return write_id
    record.forget(fresh)
    return fresh


def write_in_batches(
    executor: Executor, job: ImportJob, layout: Layout, record: Record, *, progress: Progress
) -> Callable[[Sequence[Piece]], Iterator[list[WrittenSpan]]]:
    """What `import_tensors` wants of its `spread`."""

    def spread(_pieces: Sequence[Piece]) -> Iterator[list[WrittenSpan]]:
        for result in run_job(executor, encode_job(job), batches_of(layout), record, progress=progress):
            yield _spans_decoder.decode(result.data)

    return spread


def batches_of(layout: Layout) -> list[Sized]:
    """Pieces in order, some together."""
    return [
        Sized(
            batch=Batch(number=number, data=msgspec.msgpack.encode(group)),
            num_bytes=sum(piece.num_bytes for piece in group),
        )
        for number, group in enumerate(grouped(pieces_of(layout), lambda piece: piece.num_bytes))
    ]
