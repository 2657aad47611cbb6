"""Writes tensors as safetensors files, one block at a time, so that no reader ever meets a half of anything.

A file is written aside, made durable, and moved to its name; the index that names several files comes last. What was
moved is whole, so an export that was killed is told again and goes on behind its last whole file. Neighbours: `header`
(the format), `foreign` (the way back), `tensors`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Invalid, NotFound
from behemoth.checkpoint.interop.header import HeadTensor, encode_header
from behemoth.checkpoint.interop.tensors import Tensor, blocks, num_bytes, read_box
from behemoth.checkpoint.layout import DTYPES
from behemoth.ports import MovesObjects, ObjectStore, Part, WritesRanges

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
UNFINISHED = ".unfinished-"
"""Beginning of the folders in which files grow."""
BLOCK_BYTES = 64 << 20
"""Bytes of a tensor that are held at a time. A transposed tensor is read once for each such block."""

Progress = Callable[[int, int], None]
"""Told bytes done and bytes to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """One file: its head, and each tensor with the place of its first byte in the file."""

    name: str
    header: bytes
    tensors: tuple[tuple[Tensor, int], ...]
    size_bytes: int


Spread = Callable[[Sequence[FilePlan]], Iterable[str]]
"""Has files written wherever it wants, and tells their names, in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What will be written. `index` is None when one file holds everything, as transformers has it."""

    files: tuple[FilePlan, ...]
    index: bytes | None
    num_tensors: int
    data_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files) + len(self.index or b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Names of the files that were written, and of those that an earlier export had left whole."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


def plan_export(tensors: Mapping[str, Tensor], *, max_file_bytes: int, metadata: Mapping[str, str]) -> ExportPlan:
    """Share tensors out to files, in their order; one that is larger than `max_file_bytes` gets a file of its own.

    Reads nothing. The same arguments give the same plan. `metadata` goes into every file. Raises Invalid for no tensor
    at all, and for a dtype that safetensors does not know.
    """
    if not tensors:
        raise Invalid("export: expected at least one tensor, got none", hint="look at --select", code="export-empty")
    groups = _groups(tensors, max_file_bytes)
    files = []
    for number, names in enumerate(groups, start=1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        files.append(_file(name, {key: tensors[key] for key in names}, metadata))
    data_bytes = sum(num_bytes(tensor) for tensor in tensors.values())
    holders = {key: file.name for file, names in zip(files, groups, strict=True) for key in names}
    index = {"metadata": {"total_size": data_bytes}, "weight_map": dict(sorted(holders.items()))}
    return ExportPlan(
        files=tuple(files),
        index=json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n" if len(files) > 1 else None,
        num_tensors=len(tensors),
        data_bytes=data_bytes,
    )


def kept_files(store: ObjectStore, plan: ExportPlan) -> tuple[str, ...]:
    """Files of this plan that stand in the folder already, whole. Reads their heads.

    Raises Conflict when anything else lies there: another export, or files of somebody.
    """
    planned = {file.name: file for file in plan.files}
    kept = []
    for info in store.list(""):
        if info.key.startswith(UNFINISHED):
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
                f"export: expected an empty folder, or one that this very export began to fill, got {info.key} in it",
                hint="name another folder, or remove what lies there",
                code="export-folder",
            )
    return tuple(kept)


def export(
    store: WritesRanges,
    plan: ExportPlan,
    *,
    progress: Progress | None = None,
    unfinished: str = "",
    spread: Spread | None = None,
) -> Exported:
    """Write the plan's files to the top of `store`. Blocks for reading all tensors, some twice (float8). Files are
    written one by one, unless `spread` has that done below the folder `unfinished` (`unfinished_folder` makes a name).

    Cut off anywhere, it may be called again with the same plan and goes on; a file counts as whole by its head, which
    names all tensors and, in its metadata, their source. Raises Conflict for a folder with other files, Corrupt for a
    damaged source; no file of a damaged tensor gets its name.
    """
    _mover(store)
    kept = kept_files(store, plan)
    _clear(store)
    left = [file for file in plan.files if file.name not in kept]
    folder = unfinished or unfinished_folder()
    with _removed(store, folder):
        written = _write_here(store, folder, plan, left, progress) if spread is None else spread(left)
        names = set(written)
    if plan.index is not None:
        with suppress(Conflict):  # it stands already, and `kept_files` has compared it
            store.create(INDEX, plan.index)
    return Exported(written=tuple(file.name for file in left if file.name in names), kept=kept)


def unfinished_folder() -> str:
    """A new name. Each export has a folder of its own, so that two never write one file."""
    return f"{UNFINISHED}{secrets.token_hex(8)}"


def write_file(store: WritesRanges, folder: str, file: FilePlan) -> Iterator[int]:
    """Write a file below `folder` and give it its name; yields bytes as they are written. Idempotent: whoever finds the
    file there, whole, has nothing to do. Raises Conflict for another one of that name."""
    mover = _mover(store)
    if _is_there(store, file):
        return
    key = f"{folder}/{secrets.token_hex(4)}-{file.name}"  # of its own, should two workers write the same file
    yield from _write(store, key, file)
    try:
        mover.move(key, file.name)
    except Conflict:
        if not _is_there(store, file):
            raise


def _write_here(
    store: WritesRanges, folder: str, plan: ExportPlan, files: Sequence[FilePlan], progress: Progress | None
) -> Iterator[str]:
    done_bytes = plan.size_bytes - len(plan.index or b"") - sum(file.size_bytes for file in files)
    for file in files:
        for count in write_file(store, folder, file):
            done_bytes += count
            if progress is not None:
                progress(done_bytes, plan.size_bytes)
        yield file.name


def _mover(store: WritesRanges) -> MovesObjects:
    if not isinstance(store, MovesObjects):
        hint = "export to a folder of this machine and copy it"
        raise Invalid("export: expected a folder of files, got another kind of store", hint=hint, code="export-store")
    return store


def _is_there(store: ObjectStore, file: FilePlan) -> bool:
    with suppress(NotFound, Corrupt):
        return _has(store, file.name, file.size_bytes, file.header, file.size_bytes)
    return False


def _groups(tensors: Mapping[str, Tensor], max_file_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = []
    filled = 0
    for name, tensor in tensors.items():
        size = num_bytes(tensor)
        if not groups or filled + size > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _file(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FilePlan:
    """Larger elements come first, so that every tensor begins at a multiple of its element's size."""
    order = sorted(tensors, key=lambda key: -DTYPES[tensors[key].dtype].itemsize)
    heads, end = [], 0
    for key in order:
        tensor = tensors[key]
        heads.append(HeadTensor(name=key, dtype=tensor.dtype, shape=tensor.shape, offset_bytes=end))
        end += num_bytes(tensor)
    header = encode_header(heads, metadata)
    placed = ((tensors[head.name], len(header) + head.offset_bytes) for head in heads)
    return FilePlan(name=name, header=header, tensors=tuple(placed), size_bytes=len(header) + end)


def _has(store: ObjectStore, key: str, size_bytes: int, first: bytes, expected_bytes: int) -> bool:
    """Whether an object has that size and begins with these bytes."""
    if size_bytes != expected_bytes:
        return False
    data = bytearray(len(first))
    store.read_into(key, offset_bytes=0, into=data)
    return data == first


def _clear(store: ObjectStore) -> None:
    """Remove what exports that were cut off left."""
    store.delete([info.key for info in store.list("") if info.key.startswith(UNFINISHED)])


@contextmanager
def _removed(store: ObjectStore, folder: str) -> Iterator[None]:
    """Whatever is in a folder of unfinished files goes at the end: of files that failed, or that two wrote."""
    try:
        yield
    except BaseException:
        with suppress(BehemothError):  # what is going on already matters more
            _remove(store, folder)
        raise
    _remove(store, folder)


def _remove(store: ObjectStore, folder: str) -> None:
    store.delete([info.key for info in store.list(folder)])


def _write(store: WritesRanges, key: str, file: FilePlan) -> Iterator[int]:
    """Write and seal a file; yields bytes as they are written."""
    _put(store, key, file, 0, [file.header])
    yield len(file.header)
    for tensor, begin in file.tensors:
        offset_bytes = begin
        for box in blocks(tensor, limit_bytes=BLOCK_BYTES):
            data = read_box(tensor, box).reshape(-1).view("u1").data
            _put(store, key, file, offset_bytes, [data])
            offset_bytes += data.nbytes
            yield data.nbytes
    store.seal([key])
    _check_still_there(store, key, file)


def _put(
    store: WritesRanges, key: str, file: FilePlan, offset_bytes: int, buffers: Sequence[bytes | memoryview]
) -> None:
    store.write_parts(key, size_bytes=file.size_bytes, parts=[Part(offset_bytes=offset_bytes, buffers=buffers)])


def _check_still_there(store: ObjectStore, key: str, file: FilePlan) -> None:
    """Another export may have cleared the file away while it grew; a new one began then, without its head."""
    with suppress(NotFound, Corrupt):
        if _has(store, key, file.size_bytes, file.header, file.size_bytes):
            return
    raise Conflict(
        f"export of {file.name}: expected the file that was being written, got another",
        hint="somebody else exports into this folder: name another one",
        code="export-folder",
    )
