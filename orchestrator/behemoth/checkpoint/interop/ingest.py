"""Makes a committed checkpoint out of tensors from elsewhere, a block at a time: the way in.

It writes what one rank alone would write, through the same grid, proof and commit, so that a checkpoint which was
imported is like any other; restoring it on another mesh is resharding's business. Neighbours: `foreign` (where tensors
come from), `checkpoint.writer` (the same for a rank's arena), `checkpoint.commit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from behemoth.base.errors import BehemothError, Conflict, Invalid
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.boxes import Box
from behemoth.checkpoint.commit import CommitRecord, commit
from behemoth.checkpoint.commit_log import BadCommit, commits, reject
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.interop.tensors import Tensor, blocks_of, read_box
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


class Piece(NamedTuple):
    """Chunks [first, last) of an array, which counts in the layout's order: what is read and written at a time. `box`
    is what they hold, and `num_bytes` its size."""

    array: int
    first: int
    last: int
    box: Box
    num_bytes: int


Spread = Callable[[Sequence[Piece]], Iterable[Sequence[WrittenSpan]]]
"""Has pieces written wherever it wants, and tells what was, in any order."""


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
    spread: Spread | None = None,
    keeps_unfinished: bool = False,
) -> CommitRecord:
    """Write and commit `tensors` as the checkpoint of `step`. Blocks for reading them all. Pieces are written one by
    one, unless `spread` has that done (and tells its own progress).

    Cut off, it leaves no checkpoint, and objects below the write's own prefix, which a run that takes the store
    removes; called again, with another `write_id`, it starts over. After an error it has removed them, unless it
    `keeps_unfinished` for a caller who goes on there. Raises what `check_free` and `import_layout` do, and the errors
    of the tensors' sources.
    """
    layout = import_layout(tensors)
    check_free(store, step)
    prefix = step_prefix(step, write_id)
    pieces = pieces_of(layout)
    with nullcontext() if keeps_unfinished else _removed_on_failure(store, step, write_id):
        written = _write_here(store, prefix, layout, tensors, pieces, progress) if spread is None else spread(pieces)
        spans = sorted(span for of_pieces in written for span in of_pieces)
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


def pieces_of(layout: Layout) -> list[Piece]:
    """Every chunk of every array, in order: a closed form of the layout, which lies on one rank."""
    found = []
    for position, grid in enumerate(grids(layout)):
        first, spec, chunk = 0, grid.spec, grid.chunk_shape
        limit_bytes = max(BLOCK_BYTES, grid.payload_bytes)
        for box in blocks_of(spec.shape, spec.itemsize, limit_bytes=limit_bytes, grain=chunk.__getitem__):
            sizes = [stop - start for start, stop in box]
            last = first + math.prod(-(-size // each) for size, each in zip(sizes, chunk, strict=True))
            found.append(Piece(position, first, last, box, math.prod(sizes) * spec.itemsize))
            first = last
    return found


def write_pieces(
    store: WritesRanges, prefix: str, layout: Layout, tensors: Mapping[str, Tensor], pieces: Sequence[Piece]
) -> list[WrittenSpan]:
    """Write some chunks below the prefix of a write, and what follows from the shapes of their arrays; what was
    written, durable then. Idempotent, and several processes may do so at once. Blocks for reading their tensors."""
    spans: list[WrittenSpan] = []
    keys: dict[str, None] = {}
    for piece in pieces:
        spans += _write_unsealed(store, prefix, layout, tensors, piece, keys)
    seal_all(store, list(keys))
    return spans


def objects_of(prefix: str, layout: Layout, pieces: Iterable[Piece]) -> dict[str, int]:
    """The objects in which pieces lie, with their sizes."""
    arrays = {piece.array for piece in pieces}
    of_array = ((layout.paths[array], grids(layout)[array]) for array in arrays)
    return {f"{prefix}/{path}/{grid.shard_key(_SHARD)}": grid.file_bytes for path, grid in of_array}


def _write_here(
    store: WritesRanges,
    prefix: str,
    layout: Layout,
    tensors: Mapping[str, Tensor],
    pieces: Sequence[Piece],
    progress: Progress | None,
) -> Iterator[list[WrittenSpan]]:
    """Every object from front to back, and sealed once: a store may want it so."""
    done_bytes, total_bytes = 0, sum(piece.num_bytes for piece in pieces)
    for _, of_array in groupby(pieces, key=lambda piece: piece.array):
        keys: dict[str, None] = {}
        for piece in of_array:
            yield _write_unsealed(store, prefix, layout, tensors, piece, keys)
            done_bytes += piece.num_bytes
            if progress is not None:
                progress(done_bytes, total_bytes)
        seal_all(store, list(keys))


def _write_unsealed(
    store: WritesRanges,
    prefix: str,
    layout: Layout,
    tensors: Mapping[str, Tensor],
    piece: Piece,
    keys: dict[str, None],
) -> list[WrittenSpan]:
    """Adds the keys of what was written to `keys`."""
    grid = grids(layout)[piece.array]
    folder = f"{prefix}/{layout.paths[piece.array]}"
    if piece.first == 0:
        metadata = grid.zarr_json()
        parts = [Part(offset_bytes=0, buffers=[metadata])]
        store.write_parts(f"{folder}/{METADATA}", size_bytes=len(metadata), parts=parts)
        keys[f"{folder}/{METADATA}"] = None
    key = f"{folder}/{grid.shard_key(_SHARD)}"
    keys[key] = None
    return _write_piece(store, key, grid, tensors[grid.spec.name], piece)


def _write_piece(store: WritesRanges, key: str, grid: Grid, tensor: Tensor, piece: Piece) -> list[WrittenSpan]:
    data = read_box(tensor, piece.box)
    parts: list[Part] = []
    spans: list[WrittenSpan] = []
    for number in range(piece.first, piece.last):
        chunk = np.ascontiguousarray(data[_place(grid, number, piece.box)]).reshape(-1).view(np.uint8)
        span = _span(piece.array, number, chunk)
        tail = chunk_tail(grid, span.crc, span.length)
        parts.append(Part(offset_bytes=grid.chunk_offset_bytes(number), buffers=[chunk.data, tail]))
        spans.append(span)
    if piece.last == grid.num_chunks:
        parts.append(Part(offset_bytes=grid.index_offset_bytes, buffers=[grid.index()]))
    store.write_parts(key, size_bytes=grid.file_bytes, parts=parts)
    return spans


def _place(grid: Grid, number: int, box: Box) -> tuple[slice, ...]:
    """Where a chunk lies in a block. On one rank a chunk is never cut by a block: chunks are rows of whole trailing
    dims, and blocks end at multiples of them."""
    return tuple(
        slice(part.start - start, part.stop - start)
        for part, (start, _) in zip(grid.chunk_box(number), box, strict=True)
    )


def _span(position: int, number: int, data: npt.NDArray[np.uint8]) -> WrittenSpan:
    crc = crc32c(data.data)
    is_blank = is_zero(data.data, crc)
    return WrittenSpan(array=position, chunk=number, offset=0, length=data.nbytes, crc=crc, is_zero=is_blank)
