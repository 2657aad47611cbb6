"""Fills large objects piece by piece, in any order and from several threads, in whichever way a store takes them.

For one process that has all of an object's bytes at hand; the ranks of a run, each of which has some of them, have
`writer` and `upload_writer`. Decides nothing about the bytes. The neighbour is `draining`, which cuts and proves them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from typing_extensions import Buffer

from behemoth.base.errors import BehemothError
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import combined, crc_of
from behemoth.checkpoint.writer import seal_all
from behemoth.ports import MAX_PARTS, MIN_PART_BYTES, Part, PartReceipt, SavesTo, UploadsParts, WritesRanges

PIECE_BYTES = 8 << 20
"""Size of a piece where the store sets no limit: a core's cache holds it while its CRC is computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPiece:
    """Piece `number`, from 1, of the `num_pieces` of an object of `size_bytes`; it begins at `offset_bytes`."""

    key: str
    size_bytes: int
    number: int
    num_pieces: int
    offset_bytes: int


class Filling(Protocol):
    """Objects that are being filled. Thread-safe but for `end`."""

    takes_ranges: bool
    """Whether pieces of an incomplete object survive a crash; else an object exists whole or not at all."""

    def piece_bytes(self, size_bytes: int) -> int:
        """Least size of a piece of such an object; the last one may be smaller."""
        ...

    def put(self, piece: ObjectPiece, buffers: Sequence[Buffer]) -> None:
        """Write a piece. An object is complete with its last one. Raises the store's errors."""
        ...

    def seal(self, keys: Sequence[str]) -> None:
        """Make complete objects durable, also those that an earlier process filled."""
        ...

    def end(self) -> None:
        """Abort the uploads of incomplete objects. Called once, after the last `put`, also after an error."""
        ...


def filling_of(store: SavesTo) -> Filling:
    """The way in which this store takes large objects."""
    return _Uploaded(store) if isinstance(store, UploadsParts) else _Ranges(store)


def least_bytes(store: SavesTo, size_bytes: int) -> int:
    """The least size of a part that is not the last one of an object of `size_bytes`; 0 where writes may be of any."""
    filling = filling_of(store)
    return 0 if filling.takes_ranges else filling.piece_bytes(size_bytes)


def completed(store: UploadsParts, key: str, upload_id: UploadId, parts: Iterable[PartReceipt]) -> int:
    """Complete an upload of these parts, in whatever order they come; the CRC-32C of the object. Blocks. Raises as the
    store does when parts are missing."""
    ordered = sorted(parts, key=lambda part: part.number)
    crc = combined((part.crc, part.size_bytes) for part in ordered)
    store.complete_upload(key, upload_id, parts=ordered, crc=crc)
    return crc


class _Ranges:
    """Filling of files, whose ranges can be written."""

    takes_ranges = True

    def __init__(self, store: WritesRanges) -> None:
        self._store = store

    def piece_bytes(self, _size_bytes: int) -> int:
        return PIECE_BYTES

    def put(self, piece: ObjectPiece, buffers: Sequence[Buffer]) -> None:
        part = Part(offset_bytes=piece.offset_bytes, buffers=buffers)
        self._store.write_parts(piece.key, size_bytes=piece.size_bytes, parts=[part])

    def seal(self, keys: Sequence[str]) -> None:
        seal_all(self._store, keys)

    def end(self) -> None:
        return


@dataclass(slots=True)
class _Upload:
    upload_id: UploadId | None = None
    """None until it is begun."""
    receipts: list[PartReceipt] = field(default_factory=list)
    beginning: threading.Lock = field(default_factory=threading.Lock)


class _Uploaded:
    """Object storage: pieces are parts of an upload, and an object of one piece is one request."""

    takes_ranges = False

    def __init__(self, store: UploadsParts) -> None:
        self._store = store
        self._uploads: dict[str, _Upload] = {}
        self._lock = threading.Lock()

    def piece_bytes(self, size_bytes: int) -> int:
        return max(MIN_PART_BYTES, PIECE_BYTES, -(-size_bytes // MAX_PARTS))

    def put(self, piece: ObjectPiece, buffers: Sequence[Buffer]) -> None:
        if piece.num_pieces == 1:
            self._store.create(piece.key, b"".join(buffers))
            return
        with self._lock:
            upload = self._uploads.setdefault(piece.key, _Upload())
        upload_id = self._begun(piece.key, upload)
        receipt = self._store.upload_part(
            piece.key, upload_id, number=piece.number, buffers=buffers, crc=crc_of(buffers)
        )
        with self._lock:
            upload.receipts.append(receipt)
            is_whole = len(upload.receipts) == piece.num_pieces
        if is_whole:
            completed(self._store, piece.key, upload_id, upload.receipts)
            with self._lock:
                del self._uploads[piece.key]

    def seal(self, _keys: Sequence[str]) -> None:
        """Nothing to do: a completed upload is durable."""

    def end(self) -> None:
        """An upload that cannot be aborted now is found by `gc`, which lists them, and so are the others then: a store
        that is away would take its full patience for each."""
        with suppress(BehemothError):
            while self._uploads:
                key, upload = self._uploads.popitem()
                if upload.upload_id is not None:
                    self._store.abort_upload(key, upload.upload_id)
        self._uploads.clear()

    def _begun(self, key: str, upload: _Upload) -> UploadId:
        with upload.beginning:  # the others of this object need the answer anyway
            if upload.upload_id is None:
                upload.upload_id = self._store.begin_upload(key)
            return upload.upload_id
