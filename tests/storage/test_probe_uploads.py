"""An object store is tried out before a run trusts it: one that replaces what stands is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from typing_extensions import Buffer

from behemoth.base.errors import Invalid
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.paths import PROBE
from behemoth.ports import PartReceipt, UnfinishedUpload
from behemoth.storage.probe_uploads import LEFT_AFTER_S, probe_uploads
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, FaultyBucket, every_death

URL = "s3://bucket/run?endpoint=http://127.0.0.1:1"


class ReplacesOnCreate(MemoryBucket):
    def create(self, key: str, data: Buffer) -> None:
        self.delete([key])
        super().create(key, data)


class ReplacesOnCompletion(MemoryBucket):
    def complete_upload(self, key: str, upload_id: UploadId, *, parts: Sequence[PartReceipt], crc: int) -> None:
        self.delete([key])
        super().complete_upload(key, upload_id, parts=parts, crc=crc)


class ChecksNothing(MemoryBucket):
    def upload_part(
        self, key: str, upload_id: UploadId, *, number: int, buffers: Sequence[Buffer], crc: int
    ) -> PartReceipt:
        own = crc32c(b"".join(map(bytes, buffers)))
        return replace(super().upload_part(key, upload_id, number=number, buffers=buffers, crc=own), crc=crc)


class HidesUploads(MemoryBucket):
    """As MinIO does, which lists the uploads of a key but none below a prefix."""

    def list_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        return (one for one in super().list_uploads(prefix) if one.key == prefix)


class LosesWhatStands(MemoryBucket):
    """Refuses, as it should, and replaces nevertheless."""

    def create(self, key: str, data: Buffer) -> None:
        if key in self._objects:
            self._objects[key] = bytearray(5)
        super().create(key, data)


def is_empty(store: MemoryBucket) -> bool:
    return not list(store.list("")) and not list(store.list_uploads(""))


def test_a_store_that_keeps_what_stands_passes_and_nothing_is_left() -> None:
    store = MemoryBucket()
    probe_uploads(store, url=URL)
    assert is_empty(store)


def test_a_store_that_lists_no_uploads_passes_with_a_warning_and_nothing_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = HidesUploads()
    probe_uploads(store, url=URL)
    (warning,) = caplog.messages
    assert warning.startswith("checkpoint store s3://bucket/run lists no unfinished uploads")
    assert not list(store.list(""))
    assert not list(MemoryBucket.list_uploads(store, ""))


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        (ReplacesOnCreate, "a second create that replaced an object"),
        (ReplacesOnCompletion, "an upload that replaced an object"),
        (LosesWhatStands, "an object of other bytes than were created"),
        (ChecksNothing, "a part of other bytes that was taken"),
    ],
)
def test_a_store_that_does_not_is_refused_with_a_hint_and_nothing_is_left(kind: type[MemoryBucket], got: str) -> None:
    store = kind()
    with pytest.raises(
        Invalid,
        match=f"checkpoint store s3://bucket/run: expected it to keep what stands and to check CRC-32C, got {got}",
    ) as told:
        probe_uploads(store, url=URL)
    assert told.value.code == "incoherent-store"
    assert "If-None-Match" in told.value.hint
    assert is_empty(store)


def test_what_a_probe_that_was_killed_has_left_a_later_one_removes() -> None:
    counted = FaultyBucket(MemoryBucket())
    probe_uploads(counted, url=URL)
    for death in every_death(counted.num_writes):
        inner = MemoryBucket()
        with pytest.raises(Crash):
            probe_uploads(FaultyBucket(inner, death), url=URL, now=lambda: 1000.0)
        probe_uploads(inner, url=URL, now=lambda: 1001.0 + LEFT_AFTER_S)
        assert is_empty(inner)


def test_what_somebody_else_has_there_stays() -> None:
    store = MemoryBucket()
    names = [f"{PROBE}/data.bin", f"{PROBE}/deep/behemoth-1-{'0' * 16}", f"{PROBE}/{'0' * 16}"]
    for name in names:
        store.create(name, b"somebody's")
    upload_id = store.begin_upload(f"{PROBE}/large.bin")
    probe_uploads(store, url=URL)
    assert {info.key for info in store.list("")} == set(names)
    assert [upload.upload_id for upload in store.list_uploads("")] == [upload_id]


class TriedByAnother(MemoryBucket):
    """Whenever something was made, another process probes the same prefix from its beginning to its end."""

    is_within = False

    def create(self, key: str, data: Buffer) -> None:
        super().create(key, data)
        self._other()

    def begin_upload(self, key: str) -> UploadId:
        upload_id = super().begin_upload(key)
        self._other()
        return upload_id

    def _other(self) -> None:
        if not self.is_within:
            self.is_within = True
            probe_uploads(self, url=URL)
            self.is_within = False


def test_two_that_try_a_prefix_at_once_do_not_take_each_others_probes_away() -> None:
    store = TriedByAnother()
    probe_uploads(store, url=URL)
    assert is_empty(store)
