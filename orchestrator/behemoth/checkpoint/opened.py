"""An opened checkpoint: its record and its index, both checked before one array is read.

It reads no payload; `chunk_reader` and `reader` do. Neighbours: `commit_log` finds commits, `commit_index` decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from behemoth.base.errors import Corrupt, NotFound
from behemoth.checkpoint.array_keys import array_folder, shard_key
from behemoth.checkpoint.commit_index import CommitIndex
from behemoth.checkpoint.commit_log import read_record, read_told
from behemoth.checkpoint.commit_record import DAMAGED_HINT, CommitRecord
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import INDEX
from behemoth.ports import ObjectStore
from behemoth.state.effect import CommitRef

METADATA_MISSING = "metadata-missing"
"""Code of the error for an index or zarr.json that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """An opened checkpoint: its record is intact, and so is its index."""

    record: CommitRecord
    layout: Layout
    index: CommitIndex

    def shard_key(self, array: int, shard: int) -> str:
        """Key of an object of an array, counted in the layout's order."""
        return shard_key(self.record.prefix, self.layout, array, shard)

    def shard_keys(self, array: int) -> list[str]:
        """Keys of all objects of an array, in order of its shards."""
        return [self.shard_key(array, shard) for shard in range(grids(self.layout)[array].num_shards)]

    def shard_of(self, array: int, chunk: int) -> str:
        """Key of the object in which a chunk lies."""
        return self.shard_key(array, grids(self.layout)[array].place(chunk)[0])

    def files(self, array: int) -> str:
        """The objects of an array, as error messages name them."""
        keys, folder = self.shard_keys(array), array_folder(self.record.prefix, self.layout, array)
        return f"file {keys[0]}" if len(keys) == 1 else f"{len(keys)} files below {folder}"


def open_commit(store: ObjectStore, ref: CommitRef) -> Commit:
    """Read and check the record, and the index against it.

    Blocks for two small reads, however many arrays there are: zarr.json files are for other readers, since their
    contents follow from the layout, and only `verify` reads them. Raises NotFound when the commit is gone, Corrupt
    naming the file, Invalid for a newer format.
    """
    return _opened(store, read_record(store, ref))


def open_told(store: ObjectStore, ref: CommitRef, *, record_bytes: int) -> Commit:
    """As `open_commit`, for a node that the leader has told of the commit and its record's size; see `read_told`."""
    return _opened(store, read_told(store, ref, record_bytes=record_bytes))


def _opened(store: ObjectStore, record: CommitRecord) -> Commit:
    index = read_index(store, record)
    return Commit(record=record, layout=index.layout, index=index)


def read_index(store: ObjectStore, record: CommitRecord) -> CommitIndex:
    """The index that a commit names. Raises Corrupt when it is missing, not as written, or not the commit's own."""
    key = f"{record.prefix}/{INDEX}"
    index = CommitIndex.decode(read_metadata(store, key, record.index_bytes, record.index_crc))
    if index.layout.digest != record.layout_digest or index.layout.mesh != record.mesh:
        raise _damaged(key, "expected the layout of the commit, got another", code="index-layout")
    arrays = zip(index.layout.arrays, index.content_crcs, strict=True)
    if [(one.name, one.content_crc) for one in record.arrays] != [(array.name, crc) for array, crc in arrays]:
        raise _damaged(key, "expected the arrays of the commit, got others", code="index-layout")
    return index


def read_metadata(store: ObjectStore, key: str, size_bytes: int, crc: int) -> bytes:
    """A small object as it was written. Raises Corrupt naming it when it is missing, short, or has another CRC."""
    data = bytearray(size_bytes)
    try:
        store.read_into(key, offset_bytes=0, into=data)
    except NotFound as error:
        raise _damaged(key, f"expected {size_bytes} bytes, got no file", code=METADATA_MISSING) from error
    except Corrupt as error:
        raise _damaged(key, error.message, code="metadata-short") from error
    if crc32c(data) != crc:
        raise _damaged(key, f"expected CRC-32C {crc:08x}, got {crc32c(data):08x}", code="metadata-crc")
    return bytes(data)


def _damaged(key: str, what: str, *, code: str) -> Corrupt:
    return Corrupt(f"file {key}: {what}", hint=DAMAGED_HINT, code=code)
