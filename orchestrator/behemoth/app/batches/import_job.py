"""An import in batches: files of other programs become a checkpoint.

Neighbours: `writing` (how), `checkpoint.interop.foreign` (safetensors), `behemoth.dcp` (torch's DCP, which this module
must not import: it is passed in as a `Read`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from behemoth.app.batches.jobs import ImportJob, Work, decode_job
from behemoth.app.batches.tensors import inward
from behemoth.app.batches.writing import Closes, WriteWork, Writing
from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.interop.foreign import read_model
from behemoth.checkpoint.interop.ingest import import_layout, import_units
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.interop.unit_writer import TensorSource, UnitWriter
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.ports import ObjectInfo, ObjectStore, SavesTo
from behemoth.storage.open import is_s3, open_source, open_store, path_of
from behemoth.storage.os_errors import named_errors

Read: TypeAlias = Callable[[ObjectStore, ImportJob], Mapping[str, Tensor]]
"""Opens the files of a job's source: their tensors by name, which are read later."""


def read_safetensors(store: ObjectStore, job: ImportJob) -> Mapping[str, Tensor]:
    """The `Read` of safetensors. Raises Invalid for a job of another kind, and as `read_model` does."""
    if job.kind != "safetensors":
        raise Invalid(f"import: expected a source of safetensors, got {job.kind}", code="import-kind")
    return read_model(store, file=os.fsdecode(job.file) or None, threads=1).tensors


def open_import(job: ImportJob, read: Read = read_safetensors) -> WriteWork:
    """The work of a job on a machine that has opened nothing yet. Raises Conflict where the source has changed."""
    source, target = open_source(os.fsdecode(job.source)), open_store(os.fsdecode(job.to))
    tensors = inward(read(source, job), job.change)
    layout = import_layout(tensors)
    if layout.digest != job.layout_digest:
        raise Conflict(
            f"import of {os.fsdecode(job.source)!r}: expected the tensors that the command saw, got others",
            hint="leave the files alone while they are imported, and give all nodes the same ones",
            code="import-source",
        )
    return _work(job, target, tensors, import_writing(layout, target), source, target)


def import_writing(layout: Layout, store: SavesTo) -> Writing:
    """What an import writes to a store: its units in batches."""
    return Writing(layout=layout, units=import_units(layout, store))


def opened_here(store: SavesTo, tensors: Mapping[str, Tensor], writing: Writing) -> Callable[[bytes], Work]:
    """What opens an import in the process that has source and target open, and the tensors read."""

    def open_work(data: bytes) -> Work:
        job = decode_job(data)
        assert isinstance(job, ImportJob)
        return _work(job, store, tensors, writing)

    return open_work


def files_of(source: str, files: Iterable[ObjectInfo]) -> list[tuple[bytes, int, str]]:
    """Names, sizes and versions (etag, or time of change) of a job's files: a later call whose files differ is another
    job."""
    return [(os.fsencode(info.key), info.size_bytes, _version(source, info)) for info in files]


def require_unchanged(source: str, store: ObjectStore, files: Sequence[tuple[bytes, int, str]]) -> None:
    """Raises Conflict unless a job's files are still those of `files_of`. They have no checksums: of one that somebody
    wrote anew while it was read, a part of each would make a checkpoint without a fault."""
    listed = {os.fsencode(info.key): info for info in store.list("")}
    now = files_of(source, [listed[name] for name, _, _ in files if name in listed])
    changed = [name for name, size_bytes, version in files if (name, size_bytes, version) not in now]
    if changed:
        raise Conflict(
            f"import of {source!r}: expected its files to stay as they were, got {os.fsdecode(changed[0])!r} changed "
            "while it was read",
            hint="nothing was imported; leave the files alone and give the command again",
            code="import-source",
        )


def _work(
    job: ImportJob, store: SavesTo, tensors: Mapping[str, Tensor], writing: Writing, *opened: Closes
) -> WriteWork:
    prefix = step_prefix(Step(job.step), WriteId(job.write_id))
    stopped, source = threading.Event(), TensorSource(writing.layout, tensors)
    writer = UnitWriter(store, prefix, writing.layout, source, cancelled=stopped.is_set)
    return WriteWork(writing.units, writer, stopped, *opened)


def _version(source: str, info: ObjectInfo) -> str:
    """The etag in a bucket, in a folder the time of change in ns."""
    if is_s3(source):
        return info.etag
    path = Path(path_of(source), info.key)
    with named_errors(f"file {info.key}"):
        return str(path.stat(follow_symlinks=path.exists()).st_mtime_ns)  # a link may lead nowhere
