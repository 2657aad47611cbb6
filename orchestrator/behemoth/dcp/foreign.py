"""torch's own DCP checkpoints as tensors, for an import: read a range at a time, whatever ranks wrote them.

An item of a DCP file is what torch.save made: an archive that holds a tensor's storage as it is. torch reads only its
head, and says where the storage begins; from there on ranges are read as from any file. DCP has no checksums, so damage
within the data cannot be seen. Neighbours: `metadata_file` (what lies where), `checkpoint.interop.ingest`, which takes
the tensors.
"""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Corrupt, Invalid, NotFound
from behemoth.checkpoint.box import Box, num_elements, shape_of, slices_of, slices_within
from behemoth.checkpoint.interop.tensors import Raw, Tensor, raw_dtype
from behemoth.checkpoint.layout import DTYPES
from behemoth.checkpoint.records import Value
from behemoth.checkpoint.small_objects import find_listed
from behemoth.checkpoint.threads import run_all
from behemoth.dcp.contents import CONTENTS_ARRAY, Contents, Empty
from behemoth.dcp.dtypes import torch_dtype
from behemoth.dcp.metadata_file import (
    MAX_METADATA_BYTES,
    METADATA_FILE,
    DcpMetadata,
    Extent,
    StoredTensor,
    decode_metadata,
)
from behemoth.dcp.plain_load import load_plain
from behemoth.dcp.values import to_record
from behemoth.ports import ObjectStore

_ARCHIVE = b"PK\x03\x04"
_HEAD_BYTES = 9
"""First bytes of an item that are looked at: the magic of an archive, or the length and the first bracket of a
safetensors header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignState:
    """The tensors of a DCP checkpoint by key, with the record of all that is no tensor as one of them, and the keys of
    values that were left out."""

    tensors: Mapping[str, Tensor]
    skipped: tuple[str, ...]


def read_dcp(store: ObjectStore, *, threads: int, skips_pickles: bool = False) -> ForeignState:
    """Reads metadata and values; tensors only as they are asked for. Raises as `decode_metadata` does, NotFound without
    it, and Invalid naming values that only pickle could load, unless they are to be skipped."""
    metadata = decode_metadata(_read_metadata(store))
    reader = _Items(store)
    values, pickled = _values(metadata, reader)
    if pickled and not skips_pickles:
        raise Invalid(
            f"DCP checkpoint: expected no pickled values, got {len(pickled)}: {', '.join(pickled[:3])}",
            hint="--skip-pickled leaves them out",
            code="dcp-value",
        )
    full = {key: one for key, one in metadata.tensors.items() if 0 not in one.shape}
    empty = {key: Empty(dtype=one.dtype, shape=one.shape) for key, one in metadata.tensors.items() if key not in full}
    kept = metadata.tensors.keys() | values.keys()
    paths = {key: path for key, path in metadata.paths.items() if key in kept}
    contents = Contents(values=values, empty=empty, paths=paths)
    tensors: dict[str, Tensor] = {
        key: _Boxes(name=key, stored=stored, items=reader, threads=threads) for key, stored in full.items()
    }
    tensors[CONTENTS_ARRAY] = _Held(np.frombuffer(contents.encode(), dtype=np.uint8))
    return ForeignState(tensors=tensors, skipped=tuple(pickled))


def _read_metadata(store: ObjectStore) -> bytes:
    info = find_listed(store, "", METADATA_FILE)
    if info is None:
        raise NotFound(
            f"DCP checkpoint: expected a file {METADATA_FILE}, got none",
            hint="name the folder with .metadata and *.distcp; a save that was cut off has none",
            code="dcp-not-found",
        )
    if not 0 < info.size_bytes <= MAX_METADATA_BYTES:
        raise Corrupt(f"{METADATA_FILE}: expected 1 .. {MAX_METADATA_BYTES} bytes, got {info.size_bytes}")
    data = bytearray(info.size_bytes)
    store.read_into(METADATA_FILE, offset_bytes=0, into=data)
    return bytes(data)


def _values(metadata: DcpMetadata, items: _Items) -> tuple[dict[str, Value], list[str]]:
    """Typed values by key, and the keys of those that have no typed form."""
    values: dict[str, Value] = {}
    pickled: list[str] = []
    for key, extent in metadata.values.items():
        try:
            values[key] = to_record(items.value(key, extent), key)
        except Invalid:
            pickled.append(key)
    return values, sorted(pickled)


class _Storage(NamedTuple):
    """Where a tensor's elements lie: `offset_bytes` in the file, of its first one; strides in elements. torch saves a
    lazy conjugate or negative as what it was made of, and a note of that."""

    offset_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_conj: bool
    is_neg: bool


class _Items:
    """Items of the files. Thread-safe."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def value(self, key: str, extent: Extent) -> object:
        """A value that loads without running code of its pickle. Raises Invalid for another."""
        with io.BufferedReader(_Range(self._store, extent)) as file:
            try:
                return load_plain(file)
            except BehemothError:
                raise
            except Exception as error:  # torch and zipfile raise anything for damaged or foreign bytes
                raise Invalid(f"value {key!r}: {error!s:.200}", code="dcp-value") from error

    def storage(self, key: str, extent: Extent, dtype: str) -> _Storage:
        """Where an item's elements are in the file. Raises Corrupt for an item that is not a plain tensor of this
        dtype."""
        with io.BufferedReader(_Range(self._store, extent)) as file, FakeTensorMode():
            _require_archive(key, extent, file.peek(_HEAD_BYTES)[:_HEAD_BYTES])
            try:
                tensor = torch.load(file, weights_only=True)
                first = tensor.untyped_storage()._checkpoint_offset  # where torch's own tools for such archives look
            except BehemothError:
                raise
            except pickle.UnpicklingError as error:  # torch's own message tells people to let the code run
                raise _no_tensor(key, extent, "what only code could load, such as a subclass of a tensor") from error
            except Exception as error:  # as in `value`
                raise _no_tensor(key, extent, f"{error!s:.200}") from error
        expected = torch_dtype(dtype, key=key)
        if tensor.dtype != expected or tensor.layout != torch.strided or first is None:
            raise _no_tensor(key, extent, f"{tensor.dtype} in the layout {tensor.layout}, expected {expected}")
        is_number = expected.is_floating_point or expected.is_complex
        if (tensor.is_conj() and not expected.is_complex) or (tensor.is_neg() and not is_number):
            raise _no_tensor(key, extent, f"the conjugate or negative of {expected}, which has none")
        offset_bytes = extent.offset_bytes + first + tensor.storage_offset() * expected.itemsize
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if offset_bytes + (last + 1) * expected.itemsize > extent.offset_bytes + extent.length_bytes:
            raise _no_tensor(key, extent, "one that reaches beyond its item")
        return _Storage(
            offset_bytes, tuple(tensor.shape), tuple(tensor.stride()), is_conj=tensor.is_conj(), is_neg=tensor.is_neg()
        )

    def read(self, file: str, offset_bytes: int, into: Buffer) -> None:
        self._store.read_into(file, offset_bytes=offset_bytes, into=into)


def _no_tensor(key: str, extent: Extent, got: str) -> Corrupt:
    where = f"file {extent.file} at {extent.offset_bytes}"
    return Corrupt(f"tensor {key!r}, {where}: expected a tensor that torch.save made, got {got}", code="dcp-item")


def _require_archive(key: str, extent: Extent, head: bytes) -> None:
    """Raises Invalid for what torch's writer makes with `serialization_format=SAFETENSORS`: offsets that it tells are
    not those of its files, which torch's own reader cannot read either. Raises Corrupt for anything else."""
    if head.startswith(_ARCHIVE):
        return
    if head[8:9] == b"{":
        raise Invalid(
            f"tensor {key!r}, file {extent.file}: expected an archive of torch.save, got safetensors",
            hint="torch cannot read it either: save it again with serialization_format=SerializationFormat.TORCH_SAVE",
            code="dcp-safetensors",
        )
    raise _no_tensor(key, extent, f"bytes that begin with {head.hex()}")


class _Range(io.RawIOBase):
    """An item as a file of its own."""

    def __init__(self, store: ObjectStore, extent: Extent) -> None:
        super().__init__()
        self._store = store
        self._extent = extent
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._extent.length_bytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._extent.length_bytes - self._at)]
        if view:
            self._store.read_into(self._extent.file, offset_bytes=self._extent.offset_bytes + self._at, into=view)
            self._at += len(view)
        return len(view)


@dataclass(slots=True, kw_only=True, eq=False)
class _Boxes:
    """A tensor that lies in boxes, each an item of its own."""

    name: str
    stored: StoredTensor
    items: _Items
    threads: int
    _storages: dict[int, _Storage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def grain(self, dim: int) -> int:  # noqa: ARG002  any range is read by itself
        return 1

    def read_into(self, box: Box, out: Raw) -> None:
        """See the protocol. Raises Corrupt too when the files hold a part of the box twice, or not at all."""
        meetings = [
            (number, common)
            for number, one in enumerate(self.stored.boxes)
            if (common := _common(one.box, box)) is not None
        ]
        covered = sum(num_elements(common) for _, common in meetings)
        if covered != num_elements(box):
            raise Corrupt(
                f"tensor {self.name!r}, box {box}: expected {num_elements(box)} elements in its files, got {covered}",
                code="dcp-boxes",
            )

        def copy(meeting: tuple[int, Box]) -> None:
            number, common = meeting
            out[slices_within(common, box)] = self._read(number, common)

        run_all(copy, meetings, threads=min(self.threads, len(meetings)), name="dcp-import")

    def _read(self, number: int, common: Box) -> Raw:
        """The elements of a part of a stored box; of one that is contiguous no byte more is read."""
        own, extent = self.stored.boxes[number]
        storage = self._storage(number)
        dtype = raw_dtype(self.dtype)
        sizes = shape_of(common)
        begins = [low - start for (low, _), (start, _) in zip(common, own, strict=True)]
        first = sum(begin * stride for begin, stride in zip(begins, storage.strides, strict=True))
        last = sum((size - 1) * stride for size, stride in zip(sizes, storage.strides, strict=True))
        data = np.empty(last + 1, dtype=dtype)
        self.items.read(extent.file, storage.offset_bytes + first * dtype.itemsize, data.view(np.uint8).data)
        strides = [stride * dtype.itemsize for stride in storage.strides]
        return np.lib.stride_tricks.as_strided(
            _resolved(data, storage, self.dtype), shape=sizes, strides=strides, writeable=False
        )

    def _storage(self, number: int) -> _Storage:
        with self._lock:
            found = self._storages.get(number)
        if found is None:
            own, extent = self.stored.boxes[number]
            found = self.items.storage(self.name, extent, self.dtype)
            expected = shape_of(own)
            if found.shape != expected:
                raise _no_tensor(self.name, extent, f"one of shape {found.shape} instead of {expected}")
            with self._lock:
                self._storages[number] = found
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A tensor whose bytes are in memory."""

    data: Raw

    @property
    def dtype(self) -> str:
        return "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def grain(self, dim: int) -> int:  # noqa: ARG002
        return 1

    def read_into(self, box: Box, out: Raw) -> None:
        out[...] = self.data[slices_of(box)]


def _resolved(data: Raw, storage: _Storage, dtype: str) -> Raw:
    """The elements that torch shows for those that it has saved."""
    if not storage.is_conj and not storage.is_neg:
        return data
    values = data.view(DTYPES[dtype])
    if storage.is_conj:
        values = values.conj()
    if storage.is_neg:
        values = np.negative(values)
    return values.view(data.dtype)


def _common(one: Box, other: Box) -> Box | None:
    """The intersection of two boxes, None when it is empty."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(low < high for low, high in both) else None
