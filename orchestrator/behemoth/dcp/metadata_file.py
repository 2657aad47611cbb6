"""The file `.metadata` of torch's own DCP checkpoints: a pickle, which could run any code, read so that it runs none.

No class of the pickle is ever looked up. The names of DCP's metadata classes stand for containers of this module that
keep what they are given; any other name is refused. What comes out is checked like any foreign document. Neighbour:
`foreign`, which reads the files that it names.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from behemoth.base.errors import Corrupt, Denied, Invalid
from behemoth.checkpoint.box import Box, num_elements
from behemoth.checkpoint.layout import DTYPES, MAX_DIMS
from behemoth.checkpoint.signposts import is_signpost
from behemoth.dcp.contents import paths_of

METADATA_FILE = ".metadata"
MAX_METADATA_BYTES = 4 << 30

_DCP = "torch.distributed.checkpoint"
_BEFORE = "torch.distributed._shard.sharded_tensor.metadata"
"""Where torch before 2.3 had the properties of a tensor, with the same state."""
_KEPT = frozenset(
    {
        (f"{_DCP}.metadata", "Metadata"),
        (f"{_DCP}.metadata", "MetadataIndex"),
        (f"{_DCP}.metadata", "TensorStorageMetadata"),
        (f"{_DCP}.metadata", "BytesStorageMetadata"),
        (f"{_DCP}.metadata", "ChunkStorageMetadata"),
        (f"{_DCP}.metadata", "TensorProperties"),
        (f"{_DCP}.metadata", "StorageMeta"),
        (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
        (_BEFORE, "TensorProperties"),
        (_BEFORE, "MEM_FORMAT_ENCODING"),
        (f"{_DCP}.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    }
)


_UNUSED = (
    pickle.PERSID
    + pickle.BINPERSID
    + pickle.EXT1
    + pickle.EXT2
    + pickle.EXT4
    + pickle.INST
    + pickle.OBJ
    + pickle.BYTEARRAY8
    + pickle.NEXT_BUFFER
    + pickle.READONLY_BUFFER
)
"""Opcodes that no metadata has: objects from elsewhere, and memory before there is data for it."""


class Extent(NamedTuple):
    """Bytes of a file beside `.metadata` that torch.save made of one item."""

    file: str
    offset_bytes: int
    length_bytes: int


class StoredBox(NamedTuple):
    """A box of a tensor, and where it lies."""

    box: Box
    extent: Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """`dtype` is a name of the format or of torch; `boxes` are not empty, and their sizes add up to the tensor's."""

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[StoredBox, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DcpMetadata:
    """By flattened key: tensors, values that are no tensors, and the path of nested keys."""

    tensors: Mapping[str, StoredTensor]
    values: Mapping[str, Extent]
    paths: Mapping[str, tuple[str | int, ...]]


def decode_metadata(data: bytes) -> DcpMetadata:
    """Raises Denied for a pickle that names anything but DCP's metadata, Corrupt for what is none, Invalid for one that
    torch transformed (compressed) on its way into the files, and for a file that stands for a checkpoint of ours."""
    if is_signpost(data):
        raise Invalid(
            f"{METADATA_FILE} of {len(data)} bytes: expected metadata that torch wrote, got the signpost of a "
            "checkpoint that is in Behemoth's format already",
            hint="name the store, which is the folder above",
            code="dcp-signpost",
        )
    try:
        root = _Unpickler(io.BytesIO(data)).load()
        return _metadata(root)
    except (Corrupt, Denied, Invalid):
        raise
    except Exception as error:  # the unpickler and the checks raise anything for damaged bytes
        raise Corrupt(
            f"{METADATA_FILE} of {len(data)} bytes: expected metadata of a DCP checkpoint, got: {error!s:.200}",
            code="dcp-metadata",
        ) from error


class _Kept:
    """Stands for an object of the pickle: its constructor arguments and its state."""

    kind = ""

    def __init__(self, *args: object) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def field(self, name: str) -> Any:
        """A field of the object's state. Raises KeyError or TypeError when it is missing."""
        return self.state[name]


class _Unpickler(pickle._Unpickler):
    """Derived from the unpickler in Python: the one in C allocates its memo for the largest index in the pickle, which
    in a damaged file may be gigabytes."""

    dispatch: ClassVar = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _UNUSED
    }

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._classes: dict[tuple[str, str], type[_Kept]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in from this module; never an object of torch or Python that the pickle could call or change."""
        if (module, name) in _KEPT:
            return self._classes.setdefault((module, name), type(name, (_Kept,), {"kind": name}))
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name.isidentifier() and "." not in name and name.islower():
            return name  # a dtype; a str cannot be called
        raise Denied(
            f"{METADATA_FILE}: expected only DCP's own metadata in the pickle, got {module}.{name}"[:300],
            hint="a planner of its own may have put it there; loading it could run code, so it is not loaded",
            code="dcp-metadata-class",
        )


def _metadata(root: object) -> DcpMetadata:
    found = _of_kind(root, "Metadata")
    places = dict(_places(found.field("storage_data")))
    tensors: dict[str, StoredTensor] = {}
    values: dict[str, Extent] = {}
    for key, told in found.field("state_dict_metadata").items():
        if not isinstance(key, str):
            raise Corrupt(f"{METADATA_FILE}: expected keys of text, got {key!r:.80}", code="dcp-metadata")
        if isinstance(told, _Kept) and told.kind == "BytesStorageMetadata":
            values[key] = _place(places, key, None)
        else:
            tensors[key] = _tensor(key, _of_kind(told, "TensorStorageMetadata"), places)
    return DcpMetadata(tensors=tensors, values=values, paths=paths_of(found.state.get("planner_data")))


def _places(storage_data: Mapping[object, object]) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], Extent]]:
    for index, info in storage_data.items():
        told, place = _of_kind(index, "MetadataIndex"), _of_kind(info, "_StorageInfo")
        if place.state.get("transform_descriptors"):
            raise Invalid(
                f"item {told.field('fqn')!r}: expected it as torch.save made it, got it transformed by "
                f"{place.field('transform_descriptors')}",
                hint="load it with torch and save it with BehemothWriter",
                code="dcp-transformed",
            )
        extent = Extent(str(place.field("relative_path")), _size(place.field("offset")), _size(place.field("length")))
        offset = told.state.get("offset")
        yield (told.field("fqn"), None if offset is None else _sizes(offset)), extent


def _place(
    places: Mapping[tuple[str, tuple[int, ...] | None], Extent], key: str, offset: tuple[int, ...] | None
) -> Extent:
    extent = places.get((key, offset))
    if extent is None:
        where = "" if offset is None else f" at {offset}"
        raise Corrupt(f"item {key!r}{where}: expected a file that holds it, got none", code="dcp-metadata")
    return extent


def _tensor(key: str, told: _Kept, places: Mapping[tuple[str, tuple[int, ...] | None], Extent]) -> StoredTensor:
    shape = _sizes(told.field("size"))
    dtype = _of_kind(told.field("properties"), "TensorProperties").state[0]
    if dtype not in DTYPES:
        raise Invalid(
            f"tensor {key!r}: expected a known dtype, got {dtype!r:.40}",
            hint=f"known dtypes: {', '.join(DTYPES)}",
            code="dcp-dtype",
        )
    boxes: list[StoredBox] = []
    for chunk in (_of_kind(chunk, "ChunkStorageMetadata") for chunk in told.field("chunks")):
        offsets, sizes = _sizes(chunk.field("offsets")), _sizes(chunk.field("sizes"))
        ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        if any(end > size for end, size in zip(ends, shape, strict=True)):
            raise Corrupt(f"tensor {key!r}: expected boxes within {shape}, got one to {ends}", code="dcp-boxes")
        if math.prod(sizes):
            box = tuple(zip(offsets, ends, strict=True))
            boxes.append(StoredBox(box, _place(places, key, offsets)))
    covered = sum(num_elements(one.box) for one in boxes)
    if covered != math.prod(shape):
        raise Corrupt(
            f"tensor {key!r}: expected boxes of {math.prod(shape)} elements in all, got {covered}", code="dcp-boxes"
        )
    return StoredTensor(dtype=dtype, shape=shape, boxes=tuple(boxes))


def _of_kind(value: object, kind: str) -> _Kept:
    if not isinstance(value, _Kept) or value.kind != kind:
        got = value.kind if isinstance(value, _Kept) else type(value).__name__
        raise Corrupt(f"{METADATA_FILE}: expected {kind}, got {got}", code="dcp-metadata")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MAX_DIMS:
        raise Corrupt(f"{METADATA_FILE}: expected sizes of at most {MAX_DIMS} dims, got {value!r:.80}")
    return tuple(_size(size) for size in value)


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Corrupt(f"{METADATA_FILE}: expected a size of 0 .. 2^62, got {value!r:.80}", code="dcp-metadata")
    return value
