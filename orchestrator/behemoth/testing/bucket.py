"""The store in memory that stands for S3 in tests: objects appear whole, large ones by uploads of parts.

It passes the suite `uploads`, as the adapter does. It must not be more forgiving than S3: parts below the least size,
numbers with holes and CRCs that do not fit are refused. The neighbour is `store`, the stand-in for a directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Corrupt, NotFound
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.ports import MIN_PART_BYTES, ObjectInfo, PartReceipt, UnfinishedUpload
from behemoth.storage.keys import segments_of, segments_of_prefix
from behemoth.storage.parts import check_part, check_parts
from behemoth.storage.positional import byte_view
from behemoth.testing.store import MemoryObjects


@dataclass(slots=True)
class _Upload:
    key: str
    begun_s: float
    parts: dict[int, tuple[PartReceipt, bytes]] = field(default_factory=dict)


class MemoryBucket(MemoryObjects):
    """Objects and uploads. `now_s`, which tests move on, is what their ages are told by. Tests with little
    data lower `min_part_bytes`, the least size of every part but the last."""

    def __init__(self, *, min_part_bytes: int = MIN_PART_BYTES) -> None:
        super().__init__()
        self.now_s = 0.0
        self._min_part_bytes = min_part_bytes
        self._uploads: dict[UploadId, _Upload] = {}
        self._num_begun = 0
        self._written_s: dict[str, float] = {}

    def create(self, key: str, data: Buffer) -> None:
        super().create(key, data)
        self._written_s[key] = self.now_s

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        super().replace(key, old=old, new=new)
        self._written_s[key] = self.now_s

    def begin_upload(self, key: str) -> UploadId:
        segments_of(key)
        with self._lock:
            self._num_begun += 1
            upload_id = UploadId(f"upload-{self._num_begun}")
            self._uploads[upload_id] = _Upload(key=key, begun_s=self.now_s)
        return upload_id

    def upload_part(
        self, key: str, upload_id: UploadId, *, number: int, buffers: Sequence[Buffer], crc: int
    ) -> PartReceipt:
        segments_of(key)
        data = b"".join(byte_view(buffer, f"upload part {number} of {key}") for buffer in buffers)
        check_part(key, number=number, size_bytes=len(data))
        if crc32c(data) != crc:
            raise Corrupt(f"part {number} of {key}: expected bytes of the CRC {crc:08x}, got {crc32c(data):08x}")
        etag = hashlib.sha256(data).hexdigest()
        receipt = PartReceipt(number=number, etag=etag, crc=crc, size_bytes=len(data))
        with self._lock:
            self._upload(key, upload_id).parts[number] = (receipt, data)
        return receipt

    def complete_upload(self, key: str, upload_id: UploadId, *, parts: Sequence[PartReceipt], crc: int) -> None:
        segments_of(key)
        ordered = check_parts(key, parts, crc=crc, min_bytes=self._min_part_bytes)
        with self._lock:
            standing = self._objects.get(key)
            num_bytes = sum(part.size_bytes for part in ordered)
            if standing is not None and (len(standing), crc32c(standing)) == (num_bytes, crc):
                self._uploads.pop(upload_id, None)
                return
            upload = self._upload(key, upload_id)
            if standing is not None:
                raise Conflict(f"complete {key}: expected no such object, got one", code="exists")
            for part in ordered:
                if part.number not in upload.parts or upload.parts[part.number][0] != part:
                    raise Conflict(
                        f"part {part.number} of {key}: expected it as received, got another or none", code="upload-part"
                    )
            self._objects[key] = bytearray().join(upload.parts[part.number][1] for part in ordered)
            self._written_s[key] = self.now_s
            del self._uploads[upload_id]

    def abort_upload(self, key: str, upload_id: UploadId) -> None:
        segments_of(key)
        with self._lock:
            self._uploads.pop(upload_id, None)

    def list_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        start = "".join(f"{segment}/" for segment in segments_of_prefix(prefix))
        with self._lock:
            found = sorted(
                (upload.key, upload_id, self.now_s - upload.begun_s)
                for upload_id, upload in self._uploads.items()
                if upload.key.startswith(start)
            )
        yield from (UnfinishedUpload(key=key, upload_id=upload_id, age_s=age_s) for key, upload_id, age_s in found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in super().list(prefix):
            with self._lock:
                data, age_s = self._objects.get(info.key), self.now_s - self._written_s.get(info.key, 0.0)
            yield info if data is None else replace(info, etag=hashlib.sha256(data).hexdigest(), age_s=age_s)

    def delete_listed(self, info: ObjectInfo) -> None:
        segments_of(info.key)
        with self._lock:
            data = self._objects.get(info.key)
            if data is not None and hashlib.sha256(data).hexdigest() == info.etag:
                del self._objects[info.key]

    def copy(self) -> MemoryBucket:
        """A bucket of its own with the same objects and uploads, as a process that was killed leaves them."""
        after = MemoryBucket(min_part_bytes=self._min_part_bytes)
        with self._lock:
            after.now_s, after._num_begun = self.now_s, self._num_begun
            after._objects = {key: data[:] for key, data in self._objects.items()}
            after._written_s = dict(self._written_s)
            after._uploads = {
                upload_id: _Upload(key=upload.key, begun_s=upload.begun_s, parts=dict(upload.parts))
                for upload_id, upload in self._uploads.items()
            }
        return after

    def _upload(self, key: str, upload_id: UploadId) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NotFound(f"upload {upload_id} of {key}: not there any more", code="upload-gone")
        return upload
