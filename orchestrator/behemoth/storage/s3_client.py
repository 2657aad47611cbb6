"""One connection pool to an S3 server: every request runs here, with retries, and fails with an error of ours.

boto3 makes the client, so that credentials, profiles, proxies and certificates are found where every other tool finds
them; its own retries are off, because a conditional write must be read back after each ambiguous answer, and because
they know no limit in seconds. It must not know what is stored. Neighbours: `s3_errors`, `base.retry`, `s3`.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import boto3
import botocore.session
from botocore.config import Config

from behemoth.base.errors import BehemothError, Corrupt, Denied, Invalid
from behemoth.base.retry import retried
from behemoth.storage.s3_errors import EXPIRED, UPLOAD_CRC, named_errors
from behemoth.storage.s3_place import CREDENTIALS_HINT, S3Place

CONNECT_LIMIT_S = 10
READ_LIMIT_S = 60
"""Longest wait for the next byte of an answer; completing a large upload may take a server long."""
PATIENCE_S = 120.0
"""How long a request is tried, beyond the time that its bytes may take."""
SLOWEST_BYTES_PER_S = 1 << 20
"""Least rate of one connection; a slower request is ended and repeated on another connection."""

_T = TypeVar("_T")


class S3Client:
    """Thread-safe. The connection is made by the first request; the constructor opens nothing."""

    def __init__(self, place: S3Place, *, num_connections: int, patience_s: float = PATIENCE_S) -> None:
        self._place = place
        self._num_connections = num_connections
        self._patience_s = patience_s
        self._client: Any = None
        self._lock = threading.Lock()

    def ask(self, doing: str, request: Callable[[Any], _T], *, size_bytes: int = 0, is_last_look: bool = False) -> _T:
        """Run `request` with boto3's client, and return its result. It may be called several times, so it must be
        idempotent. `doing` names the request in errors, behind the store's URL.

        Begins no try after `patience_s` and the time of `size_bytes` at the slowest rate, and blocks for as long as the
        last one takes, whose waits `READ_LIMIT_S` bounds; with `is_last_look`, for a look after a call that has used
        its time up, for one try. When credentials have expired, a new client looks for them once more, since botocore
        never reads a profile's file again, and has as much time. Raises Unavailable, with the number of tries,
        when no try succeeds, and the errors of `s3_errors` that retries cannot cure."""
        used: Any = None

        def work() -> _T:
            nonlocal used
            with named_errors(f"{self._place}: {doing}"):  # a copy has two buckets
                used = self._connected()
                with self._of_place():
                    return request(used)

        limit_s = 0.0 if is_last_look else self._patience_s + size_bytes / SLOWEST_BYTES_PER_S
        try:
            return retried(work, limit_s=limit_s)
        except Denied as error:
            if error.code != EXPIRED:
                raise
        self._forget(used)
        return retried(work, limit_s=limit_s)

    @contextmanager
    def _of_place(self) -> Iterator[None]:
        """Put the store's URL in front of errors that the request itself raises."""
        try:
            yield
        except BehemothError as error:
            raise error.within(str(self._place)) from error

    def send(self, doing: str, request: Callable[[Any], _T], *, size_bytes: int) -> _T:
        """As `ask`, and once more when the store received other bytes than the CRC says: what was changed on its way is
        right the second time, and what was wrong here is wrong again. Raises Corrupt then."""
        try:
            return self.ask(doing, request, size_bytes=size_bytes)
        except Corrupt as error:
            if error.code != UPLOAD_CRC:
                raise
        return self.ask(doing, request, size_bytes=size_bytes)

    def close(self) -> None:
        """Give back all connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _connect(self._place, self._num_connections)
            return self._client

    def _forget(self, client: Any) -> None:
        """Let the next request make a new client; requests under way go on with this one."""
        with self._lock:
            if self._client is client:
                self._client = None


def allowed_s(size_bytes: int) -> float:
    """How long a request with `size_bytes` of payload may take in one try."""
    return READ_LIMIT_S + size_bytes / SLOWEST_BYTES_PER_S


def encoded_crc(crc: int) -> str:
    """As S3 writes CRCs in headers: base64 of four bytes, big-endian."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _connect(place: S3Place, num_connections: int) -> Any:
    s3: dict[str, object] = {
        "payload_signing_enabled": False
    }  # a signed CRC guards the bytes; SHA-256 of them takes a core for 1 GB/s
    if place.addressing is not None:
        s3["addressing_style"] = place.addressing
    session = botocore.session.Session()
    session.register_component("data_loader", _models())
    client = boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region,
        config=Config(
            connect_timeout=CONNECT_LIMIT_S,
            read_timeout=READ_LIMIT_S,
            max_pool_connections=num_connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",  # we give CRC-32C ourselves
            response_checksum_validation="when_required",  # ranges have none; readers check every chunk's
            s3=s3,
        ),
    )
    _require_no_credentials(place, str(client.meta.endpoint_url))
    return client


def _require_no_credentials(place: S3Place, endpoint: str) -> None:
    """botocore's errors repeat the endpoint. One behind the store's URL was looked at with it."""
    if "@" in endpoint:
        raise Invalid(
            f"{place}: expected no credentials in the endpoint of the environment or the profile, got some",
            hint=CREDENTIALS_HINT,
            code="store-credentials",
        )


@lru_cache(maxsize=1)
def _models() -> Any:
    """What botocore knows of S3, read once a process: a third of a second. It holds no credentials."""
    return botocore.session.Session().get_component("data_loader")
