"""Makes a committed checkpoint out of tensors from elsewhere, a block at a time: the way in.

It writes what one rank alone would write, through the same grid, proof and commit, so that a checkpoint which was
imported is like any other; restoring it on another mesh is resharding's business. Neighbours: `foreign` (where tensors
come from), `checkpoint.writer` (the same for a rank's arena), `checkpoint.commit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import BehemothError, Conflict, Invalid
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.boxes import Box
from behemoth.checkpoint.commit import CommitRecord, commit
from behemoth.checkpoint.commit_log import BadCommit, commits, reject
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.interop.tensors import Tensor, blocks, read_box
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.owner import read_owner
from behemoth.checkpoint.paths import METADATA, step_prefix
from behemoth.checkpoint.receipt import Receipt, WrittenSpan
from behemoth.checkpoint.writer import chunk_tail, seal_all
from behemoth.checkpoint.zeros import is_zero
from behemoth.ports import ObjectStore, Part, WritesRanges
from behemoth.spec.mesh import Mesh

BLOCK_BYTES = 64 << 20
"""Bytes of an array that are held at a time."""

_SHARD = 0
"""On one rank an array is one shard."""

Progress = Callable[[int, int], None]
"""Told bytes done and bytes to do."""


def import_layout(tensors: Mapping[str, Tensor]) -> Layout:
    """The layout of a checkpoint of these tensors, on one rank. Raises Invalid for a name, dtype or shape that a
    checkpoint cannot hold, and for no tensor at all."""
    if not tensors:
        raise Invalid("import: expected at least one tensor, got none", code="import-empty")
    try:
        specs = [ArraySpec(name=name, dtype=tensor.dtype, shape=tensor.shape) for name, tensor in tensors.items()]
    except Invalid as error:
        hint = "rename it by a map" if error.code == "array-name" else error.hint
        raise Invalid(f"import: {error.message}", hint=hint, code=error.code) from error
    return Layout(mesh=Mesh(), arrays=tuple(specs))


def check_free(store: ObjectStore, step: Step) -> None:
    """Raises Conflict when the store belongs to a run, which would not know what it finds, or has the step. Reads."""
    _refuse_owned(store)
    if any(one.step == step for one in commits(store)):
        raise Conflict(
            f"import: expected no checkpoint of step {step}, got one",
            hint="name another step with --step, or another folder",
            code="import-taken",
        )


def _refuse_owned(store: ObjectStore) -> None:
    owner = read_owner(store)
    if owner is not None:
        raise Conflict(
            f"import: expected a store that belongs to no run, got that of run/{owner.name} in {owner.directory}",
            hint="import into a folder of its own",
            code="import-owned",
        )


def import_tensors(
    store: WritesRanges,
    tensors: Mapping[str, Tensor],
    *,
    run: str,
    step: Step,
    write_id: WriteId,
    committed_us: int,
    progress: Progress | None = None,
) -> CommitRecord:
    """Write and commit `tensors` as the checkpoint of `step`. Blocks for reading them all.

    Cut off, it leaves no checkpoint, and objects below the write's own prefix, which a run that takes the store
    removes; called again, with another `write_id`, it starts over. After an error it has removed them. Raises what
    `check_free` and `import_layout` do, and the errors of the tensors' sources.
    """
    layout = import_layout(tensors)
    check_free(store, step)
    prefix = step_prefix(step, write_id)
    with _removed_on_failure(store, step, write_id):
        spans: list[WrittenSpan] = []
        total = sum(array.num_bytes for array in layout.arrays)
        done = 0
        for position, grid in enumerate(grids(layout)):
            folder = f"{prefix}/{layout.paths[position]}"
            for written in _write_array(store, folder, position, grid, tensors[grid.spec.name]):
                spans += written
                done += sum(span.length for span in written)
                if progress is not None:
                    progress(done, total)
            seal_all(store, [f"{folder}/{grid.shard_key(_SHARD)}", f"{folder}/{METADATA}"])
        receipt = Receipt(
            rank=Rank(0),
            attempt=Attempt(1),
            step=step,
            write_id=write_id,
            layout_digest=layout.digest,
            spans=tuple(spans),
        )
        check_free(store, step)  # a run may have taken the store since
        record = commit(
            store,
            run=run,
            layout=layout,
            step=step,
            write_id=write_id,
            attempt=Attempt(1),
            receipts=[receipt],
            previous=None,
            committed_us=committed_us,
        )
        _take_back_if_owned(store, record)
        return record


def _take_back_if_owned(store: ObjectStore, record: CommitRecord) -> None:
    """A run that takes a store first says so, then reads which commits there are, and removes what belongs to none.
    So one that cannot have seen this commit is seen here: what it names may be gone."""
    try:
        _refuse_owned(store)
    except Conflict:
        reject(store, record.ref, "a run took the store while it was imported")
        raise


@contextmanager
def _removed_on_failure(store: ObjectStore, step: Step, write_id: WriteId) -> Iterator[None]:
    """What was written goes again, unless its commit stands, the answer lost, or one that cannot be read."""
    try:
        yield
    except BaseException:
        with suppress(BehemothError):
            standing = [one for one in commits(store) if one.step == step]
            if not any(isinstance(one, BadCommit) or one.write_id == write_id for one in standing):
                store.delete([info.key for info in store.list(step_prefix(step, write_id))])
        raise


def _write_array(
    store: WritesRanges, folder: str, position: int, grid: Grid, tensor: Tensor
) -> Iterator[list[WrittenSpan]]:
    """Write an array's chunks, a block at a time, and what follows from its shape; yields what was written of each
    block."""
    key, metadata = f"{folder}/{grid.shard_key(_SHARD)}", grid.zarr_json()
    store.write_parts(
        f"{folder}/{METADATA}", size_bytes=len(metadata), parts=[Part(offset_bytes=0, buffers=[metadata])]
    )
    limit_bytes = max(BLOCK_BYTES, grid.payload_bytes)
    number = 0
    for box in blocks(tensor, limit_bytes=limit_bytes, grain=lambda dim: grid.chunk_shape[dim]):
        data = read_box(tensor, box)
        parts: list[Part] = []
        spans: list[WrittenSpan] = []
        while number < grid.num_chunks and (place := _place(grid, number, box)) is not None:
            chunk = np.ascontiguousarray(data[place]).reshape(-1).view(np.uint8)
            span = _span(position, number, chunk)
            parts.append(
                Part(
                    offset_bytes=grid.chunk_offset_bytes(number),
                    buffers=[chunk.data, chunk_tail(grid, span.crc, span.length)],
                )
            )
            spans.append(span)
            number += 1
        if number == grid.num_chunks:
            parts.append(Part(offset_bytes=grid.index_offset_bytes, buffers=[grid.index()]))
        store.write_parts(key, size_bytes=grid.file_bytes, parts=parts)
        yield spans


def _place(grid: Grid, number: int, box: Box) -> tuple[slice, ...] | None:
    """Where a chunk lies in a block; None when it lies in a later one. On one rank a chunk is never cut by a block:
    chunks are rows of whole trailing dims, and blocks end at multiples of them."""
    place = []
    for part, (start, stop) in zip(grid.chunk_box(number), box, strict=True):
        if not start <= part.start < stop:
            return None
        place.append(slice(part.start - start, part.stop - start))
    return tuple(place)


def _span(position: int, number: int, data: npt.NDArray[np.uint8]) -> WrittenSpan:
    crc = crc32c(data.data)
    is_blank = is_zero(data.data, crc)
    return WrittenSpan(array=position, chunk=number, offset=0, length=data.nbytes, crc=crc, is_zero=is_blank)
