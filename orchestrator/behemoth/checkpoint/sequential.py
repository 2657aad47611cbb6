"""Writes objects of a bucket from front to back by one process, behind the port that files have.

An import goes through every array once, in order, and knows nothing of parts: this gathers what it writes until a part
is full, uploads it, and completes the upload when the object is sealed. It must not be used where several write one
object: their ranges would have to wait for one another. The neighbour is `upload_writer`, for saves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Invalid
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import combined, crc32c
from behemoth.ports import MAX_PARTS, Into, ObjectInfo, Part, PartReceipt, UploadsParts

PART_BYTES = 32 << 20
"""What is held of an object before it is sent; more where 10,000 parts would not do."""


@dataclass(slots=True)
class _Growing:
    """An object from its first byte to its seal."""

    size_bytes: int
    part_bytes: int
    pending: bytearray = field(default_factory=bytearray)
    begin_bytes: int = 0
    """Where `pending` lies in the object."""
    upload_id: UploadId | None = None
    receipts: list[PartReceipt] = field(default_factory=list)

    @property
    def end_bytes(self) -> int:
        return self.begin_bytes + len(self.pending)


class SequentialStore:
    """A WritesRanges that takes each object's bytes in order and without gaps, once, by one thread at a time; different
    objects by any. Nothing is there before `seal`. As a context it aborts at its end what was not sealed."""

    def __init__(self, inner: UploadsParts, *, part_bytes: int = PART_BYTES) -> None:
        self._inner = inner
        self._part_bytes = part_bytes
        self._growing: dict[str, _Growing] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> SequentialStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed: BehemothError | None = None
        for key, growing in self._growing.items():
            if growing.upload_id is not None:
                try:
                    self._inner.abort_upload(key, growing.upload_id)
                except BehemothError as other:  # the rest go all the same
                    failed = failed or other
        self._growing.clear()
        if failed is not None and error is None:
            raise failed

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        """See the port. Raises Invalid for bytes that do not follow those before, or lie behind the object's end."""
        with self._lock:
            part_bytes = max(self._part_bytes, -(-size_bytes // (MAX_PARTS - 1)))
            growing = self._growing.setdefault(key, _Growing(size_bytes=size_bytes, part_bytes=part_bytes))
        for part in parts:
            if part.offset_bytes != growing.end_bytes:
                raise Invalid(f"write {key}: expected bytes from {growing.end_bytes} on, got {part.offset_bytes}")
            views = [memoryview(buffer).cast("B") for buffer in part.buffers]
            end_bytes = part.offset_bytes + sum(view.nbytes for view in views)
            if end_bytes > growing.size_bytes:
                expected = f"an object of {growing.size_bytes} bytes"
                raise Invalid(f"write {key}: expected {expected}, got bytes to {end_bytes}")
            for view in views:
                self._append(key, growing, view)

    def seal(self, keys: Sequence[str]) -> None:
        """See the port. Raises Invalid for an object of which bytes are missing."""
        for key in keys:
            with self._lock:
                growing = self._growing.get(key)
            if growing is None:
                continue  # sealed before
            if growing.end_bytes != growing.size_bytes:
                raise Invalid(f"seal {key}: expected {growing.size_bytes} bytes, got {growing.end_bytes} bytes")
            self._finish(key, growing)
            with self._lock:
                del self._growing[key]

    def create(self, key: str, data: Buffer) -> None:
        self._inner.create(key, data)

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self._inner.read_into(key, offset_bytes=offset_bytes, into=into)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        self._inner.delete(keys)

    def _append(self, key: str, growing: _Growing, view: memoryview) -> None:
        while view.nbytes:
            taken = view[: growing.part_bytes - len(growing.pending)]
            growing.pending += taken
            view = view[taken.nbytes :]
            if len(growing.pending) == growing.part_bytes and growing.end_bytes < growing.size_bytes:
                self._send(key, growing)

    def _send(self, key: str, growing: _Growing) -> None:
        if growing.upload_id is None:
            growing.upload_id = self._inner.begin_upload(key)
        number, data = len(growing.receipts) + 1, growing.pending
        receipt = self._inner.upload_part(key, growing.upload_id, number=number, buffers=[data], crc=crc32c(data))
        growing.receipts.append(receipt)
        growing.begin_bytes += len(data)
        growing.pending = bytearray()

    def _finish(self, key: str, growing: _Growing) -> None:
        """What one request takes goes in one."""
        if growing.upload_id is None:
            self._inner.create(key, growing.pending)
            return
        self._send(key, growing)
        crc = combined((receipt.crc, receipt.size_bytes) for receipt in growing.receipts)
        self._inner.complete_upload(key, growing.upload_id, parts=growing.receipts, crc=crc)
