"""Safetensors files as lazy tensors: one file, or those that the `model.safetensors.index.json` of a folder names.

Headers are read and checked completely, data only on demand. The format has no checksums, so damage within the data
cannot be detected, except for a BOOL that is neither 0 nor 1: readers of a checkpoint would interpret it differently.
Neighbours: `header` (the format), `stored` (the same for checkpoints of ours).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import msgspec
import numpy as np

from behemoth.base.decoding import decode_json, told
from behemoth.base.errors import Corrupt, Invalid, NotFound
from behemoth.checkpoint.interop.header import HeadTensor, decode_head_metadata, decode_header, decode_length
from behemoth.checkpoint.interop.tensors import Chunked, Raw, Tensor, raw_dtype
from behemoth.checkpoint.layout import DTYPES
from behemoth.ports import ObjectStore
from behemoth.spec.safetensors_header import LENGTH_BYTES

INDEX_SUFFIX = ".safetensors.index.json"
FILE_SUFFIX = ".safetensors"
MAX_INDEX_BYTES = 64 << 20
CHUNK_BYTES = 8 << 20
"""Read at once; as large as the chunks of a checkpoint."""
_PARTS = "DCP_SHARDING_INFO"
"""In the metadata of files of torch's HuggingFaceStorageWriter: where in its tensor each one begins. The part of the
first rank looks like a whole file."""
_RANKS_FILE = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
_SOLE_FILE = re.compile(r"model-0*1-of-0*1\.safetensors")
"""As that writer calls the one file of a rank that has all tensors whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """What a folder holds, by name, and the files that it came from in order."""

    tensors: Mapping[str, Tensor]
    files: tuple[str, ...]


def read_model(store: ObjectStore, *, file: str | None = None, threads: int, source: str = "import") -> ForeignModel:
    """Find the files at the top of `store` (or just `file`), or those that the index there names, and check their
    heads. Raises NotFound when there is none, Invalid when it is not told which of several belong together, Corrupt for
    damage. `source` is what people call the store."""
    listed = {info.key: info.size_bytes for info in store.list("")}
    top = [key for key in listed if "/" not in key]
    indexes = [key for key in top if key.endswith(INDEX_SUFFIX)] if file is None else []
    if len(indexes) > 1:
        raise Invalid(
            f"{source}: expected one {INDEX_SUFFIX} file, got {', '.join(indexes)}",
            hint="make a folder of links to one of them and to the files that it names: each may be a model of its own",
            code="safetensors-index",
        )
    expected = _read_index(store, indexes[0], listed[indexes[0]]) if indexes else None
    files = sorted(set(expected.values())) if expected is not None else [_only_file(source, top, file)]
    tensors: dict[str, Tensor] = {}
    holders: dict[str, str] = {}
    for name in files:
        if name not in listed:
            raise Corrupt(
                f"{indexes[0]}: expected the file {name!r:.300} beside it, or in a folder there, got none",
                hint="only files below the folder of the index are read, by the paths that it names",
                code="safetensors-missing",
            )
        for key, tensor in _read_file(store, name, listed[name], threads, is_whole=expected is not None).items():
            if key in holders:
                raise Corrupt(f"tensor {key!r}: expected it in one file, got it in {holders[key]} and {name}")
            tensors[key], holders[key] = tensor, name
    if expected is not None and expected != holders:
        raise _unlike_index(indexes[0], expected, holders)
    return ForeignModel(tensors=tensors, files=tuple(files))


class _Index(msgspec.Struct, frozen=True):
    """Other fields, such as `metadata`, say nothing that the files do not. Files may lie in folders below, since
    transformers joins what is named to the path of the folder; no more than the listing has is ever opened."""

    weight_map: Annotated[dict[str, str], msgspec.Meta(min_length=1)]


def _read_index(store: ObjectStore, key: str, size_bytes: int) -> dict[str, str]:
    if size_bytes > MAX_INDEX_BYTES:
        raise Corrupt(f"{key}: expected at most {MAX_INDEX_BYTES} bytes, got {size_bytes}", code="safetensors-index")
    try:
        return decode_json(_read(store, key, 0, size_bytes), _Index).weight_map
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Corrupt(f"{key}: expected a safetensors index, got: {told(error)}", code="safetensors-index") from error


def _only_file(source: str, listed: Sequence[str], file: str | None) -> str:
    found = (
        [key for key in listed if key.endswith(FILE_SUFFIX)] if file is None else [key for key in listed if key == file]
    )
    if not found:
        raise NotFound(
            f"{source}: expected {file or 'safetensors files'}, got none there",
            hint="name a .safetensors file, or a folder with one or with its index",
            code="safetensors-not-found",
        )
    if len(found) > 1 and all(_RANKS_FILE.match(key) for key in found):
        raise _ranks_part(found[0])
    if len(found) > 1:
        raise Invalid(
            f"{source}: expected one file or an index that names several, got {len(found)} files: "
            f"{', '.join(found[:3])}{' ..' if len(found) > 3 else ''}",
            hint="the index is written last: without it the export may not have ended; or name one of the files",
            code="safetensors-index",
        )
    return found[0]


def _unlike_index(index: str, expected: Mapping[str, str], got: Mapping[str, str]) -> Corrupt:
    name = min(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    told, found = expected.get(name, "no file"), got.get(name, "no file")
    return Corrupt(
        f"{index}: tensor {name!r}: expected it in {told}, got it in {found}",
        hint="files of two exports lie in one folder, or one is missing",
        code="safetensors-index",
    )


def _ranks_part(key: str) -> Invalid:
    return Invalid(
        f"{key}: expected whole tensors, got one rank's part of them, as torch's HuggingFaceStorageWriter writes with "
        "save_distributed=True",
        hint="load the folder with torch's HuggingFaceStorageReader and save it with BehemothWriter: the files do not "
        "say how many there were",
        code="safetensors-parts",
    )


def _others_lost(key: str) -> Invalid:
    return Invalid(
        f"{key}: expected whole tensors, got the part of one of several ranks, which all wrote a file of this name",
        hint="torch's HuggingFaceStorageWriter does so without save_distributed=True: save again with it",
        code="safetensors-parts",
    )


class _Begin(msgspec.Struct, frozen=True):
    saved_offsets: list[int]


def _begins_within(parts: str) -> bool:
    """Whether a tensor of the file begins within the one that was saved; no, where nobody can tell."""
    try:
        begins = decode_json(parts.encode(), dict[str, _Begin])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return any(any(begin.saved_offsets) for begin in begins.values())


def _read_file(store: ObjectStore, key: str, size_bytes: int, threads: int, *, is_whole: bool) -> dict[str, Tensor]:
    """`is_whole`: an index names the file, as torch writes for whole tensors alone."""
    first = _read(store, key, 0, min(LENGTH_BYTES, size_bytes))
    length = decode_length(first, source=key, file_bytes=size_bytes)
    begin = LENGTH_BYTES + length
    body = _read(store, key, LENGTH_BYTES, length)
    heads = decode_header(body, source=key, data_bytes=size_bytes - begin)
    parts = decode_head_metadata(body).get(_PARTS)
    if parts is not None and _begins_within(parts):
        raise _others_lost(key) if is_whole or _SOLE_FILE.fullmatch(key) else _ranks_part(key)
    if parts is not None and not is_whole and not _SOLE_FILE.fullmatch(key):
        raise _ranks_part(key)
    own = threading.local()
    return {head.name: _tensor(store, key, begin, head, own, threads) for head in heads}


def _read(store: ObjectStore, key: str, offset_bytes: int, num_bytes: int) -> bytes:
    data = bytearray(num_bytes)
    if num_bytes:  # a store reads into a buffer that can be written, which an empty one is not
        store.read_into(key, offset_bytes=offset_bytes, into=data)
    return bytes(data)


def _tensor(store: ObjectStore, key: str, begin: int, head: HeadTensor, own: threading.local, threads: int) -> Tensor:
    chunk_shape = _chunk_shape(head)
    chunks = _Chunks(
        store=store, key=key, offset_bytes=begin + head.offset_bytes, head=head, chunk_shape=chunk_shape, own=own
    )
    return Chunked(
        dtype=head.dtype,
        shape=head.shape,
        chunk_shape=chunk_shape,
        load=partial(_Chunks.load, chunks),
        threads=threads,
    )


def _chunk_shape(head: HeadTensor) -> tuple[int, ...]:
    """Whole rows, as many as fit: contiguous in the file. A row may be cut, for one may be a whole tensor."""
    chunk = [1] * len(head.shape)
    behind_bytes = DTYPES[head.dtype].itemsize
    for dim in reversed(range(len(chunk))):
        chunk[dim] = max(1, min(head.shape[dim], CHUNK_BYTES // behind_bytes))
        if chunk[dim] < head.shape[dim]:
            break
        behind_bytes *= max(1, head.shape[dim])  # a dim of 0 makes no row
    return tuple(chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunks:
    store: ObjectStore
    key: str
    offset_bytes: int
    head: HeadTensor
    chunk_shape: tuple[int, ...]
    own: threading.local

    def load(self, number: int) -> Raw:
        """The elements of a chunk, in this thread's buffer, which all tensors of a file share."""
        grid = [-(-full // size) for full, size in zip(self.head.shape, self.chunk_shape, strict=True)]
        indexes = np.unravel_index(number, grid) if grid else ()
        starts = [int(index) * size for index, size in zip(indexes, self.chunk_shape, strict=True)]
        sizes = [
            min(size, full - start) for start, size, full in zip(starts, self.chunk_shape, self.head.shape, strict=True)
        ]
        first = 0
        for start, full in zip(starts, self.head.shape, strict=True):
            first = first * full + start
        dtype = raw_dtype(self.head.dtype)
        room = self._room(int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize)
        self.store.read_into(self.key, offset_bytes=self.offset_bytes + first * dtype.itemsize, into=room)
        elements = np.frombuffer(room, dtype)
        if self.head.dtype == "bool":
            self._require_bools(elements, first)
        return elements.reshape(sizes)

    def _require_bools(self, elements: Raw, first: int) -> None:
        others = np.flatnonzero(elements > 1)
        if others.size:
            at = int(others[0])
            raise Corrupt(
                f"{self.key}: tensor {self.head.name!r}: expected 0 or 1 for each BOOL, got {elements[at]} for element "
                f"{first + at}",
                hint="the file is damaged, or its writer stored something else as BOOL: write the tensor again as U8, "
                "or leave it out by a map",
                code="safetensors-bool",
            )

    def _room(self, num_bytes: int) -> memoryview:
        buffer: memoryview = getattr(self.own, "buffer", memoryview(b""))
        if buffer.nbytes < num_bytes:
            buffer = self.own.buffer = memoryview(bytearray(num_bytes))
        return buffer[:num_bytes]
