"""Probes an object store, before a run uses it, for conditional writes and CRC checks: the counterpart of `probe`.

A store that accepts conditions and ignores them would let two leaders commit one step, and lose one of the commits; one
that accepts CRCs and does not check them lets damage through. Such stores exist: S3 itself has conditional writes only
since 2024. Must leave nothing behind that a later probe does not remove, and touch nothing that no probe has made: a
prefix may hold other things than checkpoints. Others may probe the same prefix at the same moment. The neighbour is
`s3`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from behemoth.base.errors import Conflict, Corrupt, Invalid
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.paths import PROBE, probe_began_s, probe_key
from behemoth.ports import PartReceipt, SavesTo, UploadsParts

LEFT_AFTER_S = 3600
"""Age from which on objects of a probe are removed: a probe takes seconds, and clocks of machines differ by less."""
_HINT = "use a store that honors If-None-Match and CRC-32C: Amazon S3, MinIO, versitygw, Ceph; an older release may not"

_log = logging.getLogger(__name__)


def probe_uploads(store: UploadsParts, *, url: str, now: Callable[[], float] = time.time) -> None:
    """Create an object, try to replace it in both ways, and to upload other bytes than the CRC says. Blocks for some
    requests. `now` is wall time, in seconds.

    Raises Invalid (`incoherent-store`) when the store lets it happen; and its errors. One that does not list the upload
    passes with a warning: MinIO lists those of one key only, and removes old ones by itself."""
    began_s = int(now())
    _clean(store, lambda key: _is_left(key, now_s=began_s))
    key = probe_key(began_s, secrets.token_hex(8))
    try:
        store.create(key, b"first")
        _expect_refusal(lambda: store.create(key, b"second"), url, "a second create that replaced an object")
        _probe_upload(store, key, url)
        found = bytearray(5)
        store.read_into(key, offset_bytes=0, into=found)
        if found != b"first":
            raise _unfit(url, f"an object of other bytes than were created: {bytes(found)!r}")
    finally:
        _clean(store, lambda found: found == key)


def probe_bucket(store: SavesTo, *, url: str) -> None:
    """`probe_uploads` where the store is a bucket; does nothing for a directory."""
    if isinstance(store, UploadsParts):
        probe_uploads(store, url=url)


def _probe_upload(store: UploadsParts, key: str, url: str) -> None:
    upload_id = store.begin_upload(key)
    try:
        _expect_refusal(
            lambda: _send(store, key, upload_id, crc32c(b"other")), url, "a part of other bytes that was taken"
        )
        if upload_id not in [one.upload_id for one in store.list_uploads(PROBE)]:
            _log.warning(
                "checkpoint store %s lists no unfinished uploads: those of saves that were cut off stay until the "
                "store removes them by a rule of its own",
                _told(url),
            )
        part = _send(store, key, upload_id, crc32c(b"third"))
        _expect_refusal(lambda: _complete(store, key, upload_id, part), url, "an upload that replaced an object")
    finally:
        store.abort_upload(key, upload_id)


def _send(store: UploadsParts, key: str, upload_id: UploadId, crc: int) -> PartReceipt:
    return store.upload_part(key, upload_id, number=1, buffers=[b"third"], crc=crc)


def _complete(store: UploadsParts, key: str, upload_id: UploadId, part: PartReceipt) -> None:
    store.complete_upload(key, upload_id, parts=[part], crc=part.crc)


def _expect_refusal(attempt: Callable[[], object], url: str, what: str) -> None:
    try:
        attempt()
    except (Conflict, Corrupt):
        return
    raise _unfit(url, what)


def _is_left(key: str, *, now_s: float) -> bool:
    """Whether a probe that was cut off has left this object."""
    key_began_s = probe_began_s(key)
    return key_began_s is not None and key_began_s + LEFT_AFTER_S < now_s


def _clean(store: UploadsParts, is_ours: Callable[[str], bool]) -> None:
    for upload in list(store.list_uploads(PROBE)):
        if is_ours(upload.key):
            store.abort_upload(upload.key, upload.upload_id)
    store.delete([info.key for info in store.list(PROBE) if is_ours(info.key)])


def _unfit(url: str, got: str) -> Invalid:
    message = f"checkpoint store {_told(url)}: expected it to keep what stands and to check CRC-32C, got {got}"
    return Invalid(message, hint=_HINT, code="incoherent-store")


def _told(url: str) -> str:
    """Without how the bucket is reached."""
    return url.partition("?")[0]
