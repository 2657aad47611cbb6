"""Writes tensors as safetensors files, one block at a time; a reader never sees an incomplete file.

In a folder a file is written under a temporary name, made durable, and renamed; in a bucket it appears when its upload
is completed. The index that names several files comes last. A file under its final name is complete, so that an export
that was killed can be repeated, and goes on behind its last complete file. Neighbours: `export_plan` (what is written),
`foreign` (the way back).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Invalid, NotFound
from behemoth.checkpoint.filling import ObjectPiece, filling_of, least_bytes
from behemoth.checkpoint.gc import KeepsLeftovers
from behemoth.checkpoint.interop.export_plan import ExportPlan, FilePart, FilePlan
from behemoth.checkpoint.interop.tensors import read_box
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.paths import probe_began_s
from behemoth.checkpoint.small_objects import create_same
from behemoth.checkpoint.threads import each_result
from behemoth.ports import MovesObjects, ObjectStore, Part, SavesTo, UploadsParts, WritesRanges

INDEX = "model.safetensors.index.json"
UNFINISHED = ".unfinished-"
"""How the names of folders begin in which files are being written."""
UPLOAD_THREADS = 2
"""Parts of a file that are under way: the next part is read while one is sent."""

Progress = Callable[[int, int], None]
"""Told bytes done and bytes to do."""
Spread = Callable[[Sequence[FilePlan]], Iterable[str]]
"""Writes files on other threads or machines; returns the names of written files in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Names of the files that were written, and of those that an earlier export had left whole."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


def kept_files(store: ObjectStore, plan: ExportPlan) -> tuple[str, ...]:
    """The files of this plan that exist already, complete. Reads their headers.

    Raises Conflict when the place holds anything else: files of another export, or of somebody else. What a killed
    export leaves is neither: unfinished files, and the object with which it probed its bucket.
    """
    planned = {file.name: file for file in plan.files}
    kept = []
    for info in store.list(""):
        if info.key.startswith(UNFINISHED) or probe_began_s(info.key) is not None:
            continue
        if info.key == INDEX and plan.index is not None:
            is_ours = _has(store, info.key, info.size_bytes, plan.index, len(plan.index))
        elif info.key in planned:
            file = planned[info.key]
            is_ours = _has(store, info.key, info.size_bytes, file.header, file.size_bytes)
            kept.append(info.key)
        else:
            is_ours = False
        if not is_ours:
            raise Conflict(
                f"export: expected an empty place, or one that this very export began to fill, got {info.key} in it",
                hint="name another one, or remove what lies there",
                code="export-folder",
            )
    return tuple(kept)


def export(
    store: SavesTo,
    plan: ExportPlan,
    *,
    progress: Progress | None = None,
    unfinished: str = "",
    spread: Spread | None = None,
) -> Exported:
    """Write the plan's files to the top of `store`. Blocks for reading all tensors, some twice (see
    `casts.Scale`). Files are written one by one, unless `spread` has that done below the folder `unfinished`
    (`unfinished_folder` makes a name).

    Cut off anywhere, it may be called again with the same plan and goes on; a file counts as whole by its head, which
    names all tensors and, in its metadata, their source. Raises Conflict for a place with other files, Corrupt for a
    damaged source; no file of a damaged tensor gets its name.
    """
    _check_kind(store)
    kept = kept_files(store, plan)
    _clear(store, plan, UNFINISHED)
    left = [file for file in plan.files if file.name not in kept]
    folder = unfinished or unfinished_folder()
    with _cleared_after(store, plan, folder):
        written = _write_here(store, folder, plan, left, progress) if spread is None else spread(left)
        names = set(written)
    kept_files(store, plan)  # again: another export may have begun in the same empty place
    if plan.index is not None:
        create_same(store, INDEX, plan.index)
    return Exported(written=tuple(file.name for file in left if file.name in names), kept=kept)


def unfinished_folder() -> str:
    """A new name. Each export has a folder of its own, so that two never write one file."""
    return f"{UNFINISHED}{secrets.token_hex(8)}"


def write_file(store: SavesTo, folder: str, file: FilePlan) -> Iterator[int]:
    """Write a file and give it its name; yields bytes as they are written. Idempotent: whoever finds the file there,
    whole, has nothing to do. Files grow below `folder`, where a store shows what is unfinished. Raises Conflict for
    another one of that name."""
    _check_kind(store)
    if _is_there(store, file.name, file):
        return
    try:
        if isinstance(store, MovesObjects):
            key = f"{folder}/{secrets.token_hex(4)}-{file.name}"  # of its own, should two workers write the same file
            yield from _write(store, key, file)
            _check_still_there(store, key, file)
            store.move(key, file.name)
        else:
            yield from _write(store, file.name, file)
    except Conflict:
        if not _is_there(store, file.name, file):
            raise


def _write_here(
    store: SavesTo, folder: str, plan: ExportPlan, files: Sequence[FilePlan], progress: Progress | None
) -> Iterator[str]:
    done_bytes = plan.size_bytes - len(plan.index or b"") - sum(file.size_bytes for file in files)
    for file in files:
        for count in write_file(store, folder, file):
            done_bytes += count
            if progress is not None:
                progress(done_bytes, plan.size_bytes)
        yield file.name


def _check_kind(store: SavesTo) -> None:
    if not isinstance(store, MovesObjects | UploadsParts):
        hint = "export to a folder of this machine and copy it"
        raise Invalid(
            "export: expected a folder of files or a bucket, got another store", hint=hint, code="export-store"
        )


def _write(store: SavesTo, key: str, file: FilePlan) -> Iterator[int]:
    """Write and seal a file; yields bytes as they are written. Holds a part for each thread."""
    if isinstance(store, WritesRanges):
        yield from _write_tiles(store, key, file)
        return
    filling = filling_of(store)
    parts = list(enumerate(file.parts(least_bytes(store, file.size_bytes)), start=1))

    def put(numbered: tuple[int, FilePart]) -> None:
        number, part = numbered
        piece = ObjectPiece(
            key=key,
            size_bytes=file.size_bytes,
            number=number,
            num_pieces=len(parts),
            offset_bytes=part.offset_bytes,
        )
        filling.put(piece, _buffers(part))

    try:
        for some in _turns(file, parts):
            for (_, part), _done in each_result(put, some, threads=UPLOAD_THREADS, name="ckpt-export"):
                yield part.num_bytes
        filling.seal([key])
    finally:
        filling.end()


def _write_tiles(store: WritesRanges, key: str, file: FilePlan) -> Iterator[int]:
    """Into a file bytes may come in any order: in that in which they are stored, each is read once."""
    store.write_parts(key, size_bytes=file.size_bytes, parts=[Part(offset_bytes=0, buffers=[file.header])])
    yield len(file.header)
    for tile in file.tiles():
        data = read_box(tile.tensor, tile.box).reshape(-1).view(np.uint8).data
        begins, run_bytes = tile.runs()
        pieces = (data[at : at + run_bytes] for at in range(0, data.nbytes, run_bytes))
        parts = [Part(offset_bytes=begin, buffers=[piece]) for begin, piece in zip(begins, pieces, strict=True)]
        store.write_parts(key, size_bytes=file.size_bytes, parts=parts)
        yield data.nbytes
    store.seal([key])


def _turns(file: FilePlan, parts: list[tuple[int, FilePart]]) -> tuple[list[tuple[int, FilePart]], ...]:
    """Parts of the smallest elements alone, and then the rest: scales stand in front of float8 values, and are known
    when these have been read."""
    least = min(DTYPES[tensor.dtype].itemsize for tensor, _ in file.tensors)
    behind, rest = list[tuple[int, FilePart]](), list[tuple[int, FilePart]]()
    for numbered in parts:
        is_small = all(DTYPES[block.tensor.dtype].itemsize == least for block in numbered[1].blocks)
        (behind if is_small else rest).append(numbered)
    return behind, rest


def _buffers(part: FilePart) -> list[Buffer]:
    """In order; the last blocks are read first, as in `_turns`."""
    found: list[Buffer] = [
        read_box(block.tensor, block.box).reshape(-1).view("u1").data for block in reversed(part.blocks)
    ]
    return [*([part.head] if part.head else []), *reversed(found)]


def _is_there(store: ObjectStore, key: str, file: FilePlan) -> bool:
    with suppress(NotFound, Corrupt):
        return _has(store, key, file.size_bytes, file.header, file.size_bytes)
    return False


def _has(store: ObjectStore, key: str, size_bytes: int, first: bytes, expected_bytes: int) -> bool:
    """Whether an object has that size and begins with these bytes."""
    if size_bytes != expected_bytes:
        return False
    data = bytearray(len(first))
    store.read_into(key, offset_bytes=0, into=data)
    return data == first


@contextmanager
def _cleared_after(store: SavesTo, plan: ExportPlan, folder: str) -> Iterator[None]:
    """Remove unfinished files at the end, also after an error: of files that failed, or that two workers wrote."""
    try:
        yield
    except BaseException:
        with suppress(BehemothError):  # what is going on already matters more
            _clear(store, plan, folder)
        raise
    _clear(store, plan, folder)


def _clear(store: SavesTo, plan: ExportPlan, unfinished: str) -> None:
    """Remove what exports that were cut off left: folders whose names begin so, an index that was not yet in place, and
    uploads of the plan's files."""
    if not isinstance(store, UploadsParts):
        store.delete([info.key for info in store.list("") if info.key.startswith(unfinished)])
        if isinstance(store, KeepsLeftovers):
            left = [name for name in store.leftovers() if name.startswith(unfinished) or not name.endswith("/")]
            store.delete_leftovers(left)
        return
    names = {file.name for file in plan.files}
    for upload in list(store.list_uploads("")):
        if upload.key in names:
            store.abort_upload(upload.key, upload.upload_id)


def _check_still_there(store: ObjectStore, key: str, file: FilePlan) -> None:
    """Another export may have cleared the file away while it grew; a new one began then, without its head."""
    if _is_there(store, key, file):
        return
    raise Conflict(
        f"export of {file.name}: expected the file that was being written, got another",
        hint="somebody else exports into this place: name another one",
        code="export-folder",
    )
