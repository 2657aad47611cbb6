"""Uploads of parts on S3: many processes send numbered parts of one object, any one of them completes it.

Every part goes with its CRC-32C and is refused by the server when other bytes arrive; the whole object's, which follows
from those of its parts, goes with the completion, and stands in the object's metadata ever after. It must not decide
who sends what. Neighbours: `s3_objects` (all else that a store does), `parts` (what parts may be).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Invalid, NotFound, Unavailable
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.ports import PartReceipt, UnfinishedUpload
from behemoth.storage.parts import check_part, check_parts
from behemoth.storage.positional import byte_view
from behemoth.storage.s3_body import Body
from behemoth.storage.s3_client import allowed_s, encoded_crc
from behemoth.storage.s3_errors import named_errors
from behemoth.storage.s3_objects import RANGE_BYTES, S3Objects, age_s, served_at

_REFUSALS = (401, 403, 404)
_MARKERS = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
"""Where a list of uploads goes on, and where the page before it tells so."""


class S3Store(S3Objects):
    """See S3Objects, and the port UploadsParts."""

    def begin_upload(self, key: str) -> UploadId:
        """See the port. When the answer is lost and the request sent again, an upload that nobody knows stays until
        `list_uploads` shows it."""
        where = self._where(key)
        answer = self._client.ask(
            f"begin an upload of {key}",
            lambda client: client.create_multipart_upload(
                **where, ChecksumAlgorithm="CRC32C", ChecksumType="FULL_OBJECT"
            ),
        )
        return UploadId(str(answer["UploadId"]))

    def upload_part(
        self, key: str, upload_id: UploadId, *, number: int, buffers: Sequence[Buffer], crc: int
    ) -> PartReceipt:
        """See the port. The buffers are sent as they lie in memory. Raises Invalid `store-unfit` when the server did
        not check the CRC."""
        doing = f"upload part {number} of {key}"
        where = self._where(key)
        views = [byte_view(buffer, doing) for buffer in buffers]
        size_bytes = sum(view.nbytes for view in views)
        check_part(key, number=number, size_bytes=size_bytes)

        arguments = {**where, "UploadId": upload_id, "PartNumber": number, "ChecksumCRC32C": encoded_crc(crc)}
        was_cut = False

        def send(client: Any) -> str:
            nonlocal was_cut
            if was_cut:
                _require_welcome(client, arguments)
            body = Body(views, ends_s=time.monotonic() + allowed_s(size_bytes))
            try:
                answer = client.upload_part(**arguments, Body=body)
            except BotoCoreError:
                was_cut = True
                raise
            if answer.get("ChecksumCRC32C") != encoded_crc(crc):
                raise _no_checksums(doing)
            return str(answer["ETag"])

        etag = self._client.send(doing, send, size_bytes=size_bytes)
        return PartReceipt(number=number, etag=etag, crc=crc, size_bytes=size_bytes)

    def complete_upload(self, key: str, upload_id: UploadId, *, parts: Sequence[PartReceipt], crc: int) -> None:
        """See the port. Blocks for as long as the server joins the parts. Raises Unavailable too when nobody can tell
        whether the object was made: call again."""
        where = self._where(key)
        ordered = check_parts(key, parts, crc=crc)
        size_bytes = sum(part.size_bytes for part in ordered)
        told = [
            {"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC32C": encoded_crc(part.crc)} for part in ordered
        ]

        is_again = False

        def complete(client: Any) -> None:
            nonlocal is_again
            was_tried, is_again = is_again, True
            client.complete_multipart_upload(
                **where,
                UploadId=upload_id,
                MultipartUpload={"Parts": told},
                MpuObjectSize=size_bytes,
                ChecksumCRC32C=encoded_crc(crc),
                ChecksumType="FULL_OBJECT",
                IfNoneMatch="*",
            )
            if was_tried:
                _require_joined(client, where, key)

        try:
            self._client.ask(f"complete {key}", complete)
        except (Conflict, NotFound, Unavailable) as error:
            if not self._holds(key, size_bytes, crc, is_last_look=isinstance(error, Unavailable)):
                raise
            self.abort_upload(key, upload_id)

    def abort_upload(self, key: str, upload_id: UploadId) -> None:
        """See the port."""
        where = self._where(key)
        try:
            self._client.ask(
                f"abort an upload of {key}",
                lambda client: client.abort_multipart_upload(**where, UploadId=upload_id),
            )
        except NotFound as error:
            if error.code != "upload-gone":
                raise

    def list_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """See the port. An age is 0 where the server does not tell its time. A server that does not know its own marker
        goes on behind the last key: of one with many uploads at the end of a page, some are told the next time. So does
        one that tells only a part of it."""
        start = self._start(prefix)
        markers: dict[str, str] = {}
        while True:
            try:
                page = self._uploads_page(prefix, start, markers)
            except Invalid:  # versitygw 1.8.0 refuses the NextUploadIdMarker that it told
                if markers.pop("UploadIdMarker", None) is None:
                    raise
                continue
            now = served_at(page)
            for found in page.get("Uploads", ()):
                yield UnfinishedUpload(
                    key=str(found["Key"])[self._skipped() :],
                    upload_id=UploadId(str(found["UploadId"])),
                    age_s=age_s(found["Initiated"], now),
                )
            if not page.get("IsTruncated"):
                return
            markers = {name: page[told] for name, told in _MARKERS.items() if page.get(told)}
            if "KeyMarker" not in markers:  # it would begin anew
                return

    def _uploads_page(self, prefix: str, start: str, markers: dict[str, str]) -> dict[str, Any]:
        return self._client.ask(
            f"list uploads of {prefix or 'all'}",
            lambda client: dict(
                client.list_multipart_uploads(
                    Bucket=self._place.bucket, Prefix=start, MaxUploads=self._page_keys, **markers
                )
            ),
        )

    def _holds(self, key: str, size_bytes: int, crc: int, *, is_last_look: bool) -> bool:
        """Whether exactly these bytes stand there. Where the server keeps no CRC of the whole they are read."""
        try:
            found = self._head(f"complete {key}: ask what stands there", key, is_last_look=is_last_look)
        except NotFound:
            return False
        if int(found["ContentLength"]) != size_bytes:
            return False
        if found.get("ChecksumType") == "FULL_OBJECT" and "ChecksumCRC32C" in found:
            return bool(found["ChecksumCRC32C"] == encoded_crc(crc))
        return self._read_crc(key, size_bytes) == crc

    def _read_crc(self, key: str, size_bytes: int) -> int:
        crc, buffer = 0, memoryview(bytearray(min(size_bytes, self._threads * RANGE_BYTES)))
        for begin in range(0, size_bytes, buffer.nbytes):
            part = buffer[: size_bytes - begin]
            self.read_into(key, offset_bytes=begin, into=part)
            crc = crc32c(part, crc)
        return crc


def _require_welcome(client: Any, arguments: dict[str, Any]) -> None:
    """Raises the store's refusal of a part, if it refuses who sends it or knows no such upload. A store that does so
    while the body is on its way closes the connection, and its answer is lost with what was still coming: the same
    bytes would be sent until patience ends. So before they are sent again it is asked with none at all; where these
    would be welcome it finds that they are not those of the CRC."""
    try:
        client.upload_part(**arguments, Body=b"")
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _REFUSALS:
            raise


def _require_joined(client: Any, where: dict[str, str], key: str) -> None:
    """Raises Unavailable unless the object is there. versitygw 1.8.0 calls an upload complete that another request is
    still joining, and takes one for that which joined when the server was killed, of which nothing comes."""
    try:
        with named_errors(f"complete {key}: ask what stands there"):
            client.head_object(**where)
    except NotFound as error:
        raise Unavailable(
            f"complete {key}: expected the object that the store says is complete, got none",
            hint="a server of the store was killed while it joined the parts: the next save, or the same command, "
            "writes everything anew",
            code="upload-unjoined",
        ) from error


def _no_checksums(doing: str) -> Invalid:
    return Invalid(
        f"{doing}: expected the store to tell the CRC-32C of what it received, got none or another",
        hint="use a store that checks CRC-32C: AWS, or a recent release of a compatible one",
        code="store-unfit",
    )
