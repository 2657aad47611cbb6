"""The ObjectStore on a bucket of S3, or of a server that speaks it.

A create is one conditional PUT with a write id in the object's metadata: when the answer is lost, or says that somebody
was first, the id tells whether that was this very call. Reads are ranges straight into the caller's buffer, several at
a time. It must not interpret what it stores. Neighbours: `s3` (uploads of parts, on top), `s3_client` (requests),
`local` (the same for directories).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any

from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from behemoth.checkpoint.crc import crc32c
from behemoth.ports import Into, ObjectInfo
from behemoth.storage.keys import MAX_KEY_BYTES, segments_of, segments_of_prefix
from behemoth.storage.positional import byte_view, cut, target_views, total_bytes
from behemoth.storage.s3_body import Body
from behemoth.storage.s3_client import PATIENCE_S, S3Client, allowed_s, encoded_crc
from behemoth.storage.s3_errors import error_of_code, named_errors
from behemoth.storage.s3_place import S3Place

RANGE_BYTES = 8 << 20
"""Size of a ranged GET: the largest that S3's best practices name; smaller ones cost more requests and are not
faster."""
SLICE_BYTES = 1 << 20
"""Size of a read from a socket, after which the deadline is checked."""
BATCH_KEYS = 1000
"""Keys per DeleteObjects request and per page of a listing (Amazon S3 API reference)."""
_NUM_CONNECTIONS = 64
"""Connections kept open between requests; more threads than that open a new one for each request."""
WRITE_ID = "behemoth-write-id"
"""In an object's metadata: which call made it."""


def served_at(answer: Mapping[str, Any]) -> datetime | None:
    """The time of an answer, by the server's clock; None where it does not tell it."""
    served = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(served) if served else None


def age_s(since: datetime | None, now: datetime | None) -> float:
    """By the server's clock alone: of a time in its answer, at that of the answer; 0 where it does not tell them."""
    return max(0.0, (now - since).total_seconds()) if now and since else 0.0


class S3Objects:
    """One prefix of one bucket. Thread-safe; any number of processes may share it.

    A read of more than RANGE_BYTES takes up to `threads` connections of its own, together with other such reads.
    `patience_s` bounds how long a request is tried, `page_keys` is for tests.
    """

    def __init__(
        self, place: S3Place, *, threads: int = 8, patience_s: float = PATIENCE_S, page_keys: int = BATCH_KEYS
    ) -> None:
        self._place = place
        self._threads = threads
        self._page_keys = page_keys
        self._client = S3Client(place, num_connections=_NUM_CONNECTIONS, patience_s=patience_s)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @property
    def root(self) -> str:
        """The bucket and the prefix as a URL, without how they are reached."""
        return str(self._place)

    def create(self, key: str, data: Buffer) -> None:
        """See the port. Raises Unavailable too when nobody can tell whether the object was made."""
        where = self._where(key)
        view = byte_view(data, f"create {key}")
        crc, write_id = encoded_crc(crc32c(view)), secrets.token_hex(16)
        is_again = False

        def put(client: Any) -> None:
            nonlocal is_again
            if is_again and self._is_made(client, key, write_id):
                return
            is_again = True
            client.put_object(
                **where,
                Body=Body([view], ends_s=time.monotonic() + allowed_s(view.nbytes)),
                IfNoneMatch="*",
                ChecksumCRC32C=crc,
                Metadata={WRITE_ID: write_id},
            )

        try:
            self._client.send(f"create {key}", put, size_bytes=view.nbytes)
        except (Conflict, Unavailable) as error:
            is_last_look = isinstance(error, Unavailable)
            if not self._client.ask(
                f"create {key}", lambda client: self._is_made(client, key, write_id), is_last_look=is_last_look
            ):
                raise

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        """See the port. One conditional PUT with the ETag of what holds `old`. A server that refuses the condition is
        asked without. Raises Unavailable too when nobody can tell whether it was done."""
        before, after = byte_view(old, f"replace {key}"), byte_view(new, f"replace {key}")
        try:
            self._replace(key, before, after, is_conditional=True)
        except Invalid as error:
            if error.code != "store-unfit":
                raise
            self._replace(key, before, after, is_conditional=False)

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        """See the port."""
        self._where(key)
        views = target_views(into, key, offset_bytes)
        ranges = _ranges(views)
        if len(ranges) == 1:
            self._read_range(key, offset_bytes, views)
            return
        reads = [self._readers().submit(self._read_range, key, offset_bytes + begin, part) for begin, part in ranges]
        try:
            for read in reads:
                read.result()
        finally:
            for read in reads:
                read.cancel()
            for read in reads:  # none may write to the caller's buffer any more
                if not read.cancelled():
                    read.exception()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See the port. What other tools make to show a folder, an empty object whose name ends in `/`, is none of
        ours and is left out. Raises Invalid for a bucket that lists in another order."""
        start = self._start(prefix)
        page: dict[str, Any] = {}
        previous = b""
        while True:
            page = self._page(prefix, start, page.get("NextContinuationToken"))
            now = served_at(page)
            for found in page.get("Contents", ()):
                key = str(found["Key"])
                if key.encode() <= previous:
                    raise _other_order(self._place)
                previous = key.encode()
                if not key.endswith("/"):
                    yield ObjectInfo(
                        key=key[self._skipped() :],
                        size_bytes=int(found["Size"]),
                        etag=str(found.get("ETag", "")),
                        age_s=age_s(found.get("LastModified"), now),
                    )
            if not page.get("IsTruncated"):
                return

    def delete(self, keys: Sequence[str]) -> None:
        """See the port. In batches, one after another."""
        names = [{"Key": self._where(key)["Key"]} for key in keys]
        for begin in range(0, len(names), self._page_keys):
            self._delete_batch(keys[begin], names[begin : begin + self._page_keys])

    def delete_listed(self, info: ObjectInfo) -> None:
        """See the port. A server that refuses the condition is asked without."""
        where = self._where(info.key)
        try:
            self._client.ask(f"delete {info.key}", lambda client: client.delete_object(**where, IfMatch=info.etag))
        except (Conflict, NotFound) as error:
            if error.code not in ("exists", NotFound.default_code):
                raise
        except Invalid as error:
            if error.code != "store-unfit":
                raise
            self.delete([info.key])

    def close(self) -> None:
        """Give back threads and connections. No call may be under way."""
        if self._pool is not None:
            self._pool.shutdown()
        self._client.close()

    def _where(self, key: str) -> dict[str, str]:
        """The arguments that name an object. Raises Invalid."""
        segments_of(key)
        full = self._place.key_of(key)
        if len(full.encode()) > MAX_KEY_BYTES:
            raise Invalid(
                f"store key {key!r}: expected at most {MAX_KEY_BYTES} bytes with the prefix {self._place.prefix!r}, "
                f"got {len(full.encode())} bytes"
            )
        return {"Bucket": self._place.bucket, "Key": full}

    def _start(self, prefix: str) -> str:
        """What the bucket's keys below a store's prefix begin with."""
        segments = (*segments_of_prefix(self._place.prefix), *segments_of_prefix(prefix))
        return "".join(f"{segment}/" for segment in segments)

    def _skipped(self) -> int:
        """Characters in front of a store's key in the bucket's."""
        return len(self._place.prefix) + 1 if self._place.prefix else 0

    def _head(self, doing: str, key: str, *, is_last_look: bool = False) -> dict[str, Any]:
        where = self._where(key)
        return self._client.ask(
            doing, lambda client: dict(client.head_object(**where, ChecksumMode="ENABLED")), is_last_look=is_last_look
        )

    def _is_made(self, client: Any, key: str, write_id: str) -> bool:
        """Whether this very call has made the object. Raises Conflict when another has."""
        try:
            with named_errors(f"create {key}: ask who made it"):
                found = client.head_object(**self._where(key))
        except NotFound:
            return False
        if found.get("Metadata", {}).get(WRITE_ID) != write_id:
            raise Conflict(f"create {key}: expected no such object, got one", code="exists")
        return True

    def _replace(self, key: str, before: memoryview, after: memoryview, *, is_conditional: bool) -> None:
        where, crc = self._where(key), encoded_crc(crc32c(after))

        def put(client: Any) -> None:
            etag = self._etag_before(client, key, before, after)
            if etag is None:
                return
            condition = {"IfMatch": etag} if is_conditional else {}
            body = Body([after], ends_s=time.monotonic() + allowed_s(after.nbytes))
            client.put_object(**where, **condition, Body=body, ChecksumCRC32C=crc)

        try:
            self._client.send(f"replace {key}", put, size_bytes=before.nbytes + after.nbytes)
        except (Conflict, Unavailable) as error:
            is_last_look = isinstance(error, Unavailable)
            if self._client.ask(
                f"replace {key}",
                lambda client: self._etag_before(client, key, before, after),
                size_bytes=before.nbytes,
                is_last_look=is_last_look,
            ):
                raise

    def _etag_before(self, client: Any, key: str, before: memoryview, after: memoryview) -> str | None:
        """The ETag of an object that holds `before`, None for one that holds `after` already. Raises Conflict."""
        answer = client.get_object(**self._where(key))
        with closing(answer["Body"]) as body:
            size_bytes = int(answer["ContentLength"])
            found = bytearray(size_bytes if size_bytes in (before.nbytes, after.nbytes) else 0)
            for _ in _received(body, [memoryview(found)]):
                pass  # each slice is in time
        if found == after:
            return None
        if found != before:
            raise Conflict(f"replace {key}: expected the object as it was, got another", code="changed")
        return str(answer["ETag"])

    def _readers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=self._threads, thread_name_prefix="s3-read")
            return self._pool

    def _read_range(self, key: str, offset_bytes: int, views: Sequence[memoryview]) -> None:
        """A try goes on where the one before was cut off."""
        where, done_bytes, num_bytes = self._where(key), 0, total_bytes(views)

        def get(client: Any) -> None:
            nonlocal done_bytes
            wanted = f"bytes {offset_bytes + done_bytes}-{offset_bytes + num_bytes - 1}"
            answer = client.get_object(**where, Range=wanted.replace(" ", "="))
            with closing(answer["Body"]) as body:
                if answer.get("ContentRange", "").partition("/")[0] != wanted:
                    raise _not_in_range(key, offset_bytes + num_bytes, answer)
                for got_bytes in _received(body, cut(views, done_bytes, num_bytes)):
                    done_bytes += got_bytes

        try:
            self._client.ask(f"read {key}", get, size_bytes=num_bytes)
        except Invalid as error:
            if error.code != "range":
                raise
            size_bytes = int(self._head(f"read {key}", key)["ContentLength"])
            raise _too_short(key, offset_bytes + num_bytes, size_bytes) from error

    def _page(self, prefix: str, start: str, token: str | None) -> dict[str, Any]:
        more = {} if token is None else {"ContinuationToken": token}
        return self._client.ask(
            f"list {prefix or 'all'}",
            lambda client: dict(
                client.list_objects_v2(Bucket=self._place.bucket, Prefix=start, MaxKeys=self._page_keys, **more)
            ),
        )

    def _delete_batch(self, first: str, names: Sequence[dict[str, str]]) -> None:
        doing = f"delete {first}" if len(names) == 1 else f"delete {first} and {len(names) - 1} more"

        def delete(client: Any) -> None:
            answer = client.delete_objects(Bucket=self._place.bucket, Delete={"Objects": names, "Quiet": True})
            for failed in answer.get("Errors", ()):
                if failed.get("Code") != "NoSuchKey":
                    key = str(failed.get("Key", ""))[self._skipped() :] or first
                    raise error_of_code(str(failed.get("Code", "")), None, f"delete {key}")

        self._client.ask(doing, delete)


def _ranges(views: Sequence[memoryview]) -> list[tuple[int, list[memoryview]]]:
    """Where each request begins, and what it fills. Of equal size, so that a little more than one is no two."""
    end_bytes = total_bytes(views)
    num_ranges = max(min(1, end_bytes), round(end_bytes / RANGE_BYTES))
    begins = [end_bytes * number // num_ranges for number in range(num_ranges)]
    return [(begin, cut(views, begin, end)) for begin, end in pairwise([*begins, end_bytes])]


def _received(body: Any, views: Sequence[memoryview]) -> Iterator[int]:
    """Fills `views` from a response, slice by slice; yields the bytes of each."""
    ends_s = time.monotonic() + allowed_s(total_bytes(views))
    for view in views:
        at = 0
        while at < view.nbytes:
            got_bytes = body.readinto(view[at : at + SLICE_BYTES])
            if not got_bytes or time.monotonic() > ends_s:
                raise TimeoutError("expected the whole body, and in time")
            at += got_bytes
            yield got_bytes


def _too_short(key: str, end_bytes: int, size_bytes: int) -> Corrupt:
    expected = f"at least {end_bytes} bytes"
    return Corrupt(f"read {key}: expected {expected}, got {size_bytes} bytes", code="truncated")


def _not_in_range(key: str, end_bytes: int, answer: dict[str, Any]) -> Corrupt | Invalid:
    """What an answer says that is not the range that was asked for."""
    size = str(answer.get("ContentRange", "")).partition("/")[2]
    if size.isdecimal() and int(size) < end_bytes:
        return _too_short(key, end_bytes, int(size))
    return Invalid(
        f"read {key}: expected the range that was asked for, got {answer.get('ContentRange', 'none')!r}",
        hint="this store does not serve ranges: use another",
        code="store-unfit",
    )


def _other_order(place: S3Place) -> Invalid:
    return Invalid(
        f"list {place}: expected keys in the order of their bytes, got another",
        hint="directory buckets (S3 Express One Zone) list in no order: use a general purpose bucket",
        code="store-unfit",
    )
