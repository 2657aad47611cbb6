"""The adapter for S3 on a real server."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from behemoth.base import retry
from behemoth.base.errors import BehemothError, Conflict, Denied, NotFound
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.ports import PartReceipt, UnfinishedUpload
from behemoth.storage import s3 as s3_module
from behemoth.storage import s3_client as client_module
from behemoth.storage import s3_objects as objects_module
from behemoth.storage.s3_client import S3Client, encoded_crc
from behemoth.storage.s3_place import S3Place
from behemoth.testing.store import read
from behemoth.testing.uploads import UploadContract
from servers.s3_server import S3Server
from storage.s3_stores import OpenedAgain, let_in, new_place, opened


class TestS3Store(OpenedAgain, UploadContract):
    @pytest.fixture
    def store(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        let_in(monkeypatch, s3)
        yield from self.opened_at(new_place())


def test_an_object_that_was_replaced_has_another_etag(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    with opened(new_place()) as store:
        store.create("a", b"first")
        (before,) = store.list("")
        store.delete(["a"])
        store.create("a", b"other")
        (after,) = store.list("")
    assert before == after
    assert before.etag != after.etag


def test_a_store_may_be_a_whole_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    s3.client().create_bucket(Bucket="whole")
    with opened(S3Place(bucket="whole", prefix="")) as store:
        store.create("steps/a", b"abc")
        upload_id = store.begin_upload("steps/b")
        assert [info.key for info in store.list("")] == [info.key for info in store.list("steps")] == ["steps/a"]
        assert [(one.key, one.upload_id) for one in store.list_uploads("")] == [("steps/b", upload_id)]
        assert read(store, "steps/a", 3) == b"abc"
        store.delete(["steps/a"])
        assert list(store.list("")) == []
    (found,) = s3.client().list_multipart_uploads(Bucket="whole")["Uploads"]
    assert found["Key"] == "steps/b"


def test_a_key_that_may_not_be_deleted_is_named_with_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    place = new_place()
    errors = [{"Key": f"{place.prefix}/pins/x.json", "Code": "AccessDenied"}]
    denying = SimpleNamespace(delete_objects=lambda **_: {"Errors": errors}, close=lambda: None)
    monkeypatch.setattr(S3Client, "_connected", lambda _: denying)
    with opened(place) as store, pytest.raises(Denied) as caught:
        store.delete(["pins/w.json", "pins/x.json"])
    assert caught.value.message == f"{place}: delete pins/x.json: AccessDenied"


class CutOff:
    """A client whose first part is cut off; one without bytes is answered with `status`, all later ones are taken."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.bodies: list[int] = []

    def upload_part(self, **told: Any) -> dict[str, str]:
        self.bodies.append(len(told["Body"]))
        if len(self.bodies) == 1:
            raise ConnectionClosedError(endpoint_url="http://store")
        if not self.bodies[-1]:
            answer = {"Error": {"Code": "SomeCode"}, "ResponseMetadata": {"HTTPStatusCode": self.status}}
            raise ClientError(answer, "UploadPart")
        return {"ETag": "etag", "ChecksumCRC32C": told["ChecksumCRC32C"]}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("status", "kind"), [(401, Denied), (403, Denied), (404, NotFound), (400, None), (503, None)])
def test_a_part_that_was_cut_off_is_sent_again_unless_the_store_refuses_who_sends_it(
    monkeypatch: pytest.MonkeyPatch, status: int, kind: type[BehemothError] | None
) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    client = CutOff(status)
    monkeypatch.setattr(S3Client, "_connected", lambda _: client)
    with opened(new_place()) as store:
        if kind is None:
            store.upload_part("a", UploadId("u"), number=1, buffers=[b"abc"], crc=crc32c(b"abc"))
        else:
            with pytest.raises(kind, match=rf"upload part 1 of a: SomeCode \({status}\)"):
                store.upload_part("a", UploadId("u"), number=1, buffers=[b"abc"], crc=crc32c(b"abc"))
    assert client.bodies == ([3, 0, 3] if kind is None else [3, 0])


class Standing:
    """A client of a bucket in which `content` stands, so that no upload can be completed; `head` says more of it."""

    def __init__(self, content: bytes, head: dict[str, str]) -> None:
        self.content = content
        self.head = head
        self.asked: list[str] = []

    def complete_multipart_upload(self, **_: Any) -> None:
        self.asked.append("complete")
        raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "CompleteMultipartUpload")

    def head_object(self, **_: Any) -> dict[str, Any]:
        self.asked.append("head")
        return {"ContentLength": len(self.content), **self.head}

    def get_object(self, **told: Any) -> dict[str, Any]:
        self.asked.append("get")
        first, _, last = told["Range"].removeprefix("bytes=").partition("-")
        wanted = self.content[int(first) : int(last) + 1]
        return {"ContentRange": f"bytes {first}-{last}/{len(self.content)}", "Body": io.BytesIO(wanted)}

    def abort_multipart_upload(self, **_: Any) -> None:
        self.asked.append("abort")

    def close(self) -> None:
        pass


CRC = crc32c(b"abc")
OF_WHOLE = {"ChecksumType": "FULL_OBJECT", "ChecksumCRC32C": encoded_crc(CRC)}
OF_PARTS = {**OF_WHOLE, "ChecksumType": "COMPOSITE"}
OF_OTHERS = {**OF_WHOLE, "ChecksumCRC32C": encoded_crc(CRC ^ 1)}


@pytest.mark.parametrize(
    ("content", "head", "is_ours", "is_read"),
    [
        (b"abc", OF_WHOLE, True, False),
        (b"abd", OF_OTHERS, False, False),
        (b"abcd", OF_OTHERS, False, False),
        (b"abc", {}, True, True),
        (b"abd", {}, False, True),
        (b"abcd", {}, False, False),
        (b"ab", {}, False, False),
        (b"abd", OF_PARTS, False, True),
        (b"abc", {"ChecksumType": "FULL_OBJECT"}, True, True),
    ],
)
def test_who_cannot_complete_an_upload_looks_whether_these_very_bytes_stand_there_and_reads_no_more_than_it_must(
    monkeypatch: pytest.MonkeyPatch, content: bytes, head: dict[str, str], is_ours: bool, is_read: bool
) -> None:
    client = Standing(content, head)
    monkeypatch.setattr(S3Client, "_connected", lambda _: client)
    part = PartReceipt(number=1, etag="etag", crc=CRC, size_bytes=3)
    with opened(new_place()) as store:
        if is_ours:
            store.complete_upload("a", UploadId("u"), parts=[part], crc=CRC)
        else:
            with pytest.raises(Conflict, match="expected no such object, got one"):
                store.complete_upload("a", UploadId("u"), parts=[part], crc=CRC)
    assert client.asked == ["complete", "head", *(["get"] if is_read else []), *(["abort"] if is_ours else [])]


@pytest.mark.parametrize("content", [b"abcde", b"abcdf", b"abxde"])
def test_what_stands_there_is_read_in_pieces_to_the_last_byte(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    client = Standing(content, {})
    monkeypatch.setattr(S3Client, "_connected", lambda _: client)
    monkeypatch.setattr(s3_module, "RANGE_BYTES", 1)
    crc = crc32c(b"abcde")
    part = PartReceipt(number=1, etag="etag", crc=crc, size_bytes=5)
    with opened(new_place(), threads=2) as store, suppress(Conflict):
        store.complete_upload("a", UploadId("u"), parts=[part], crc=crc)
    assert client.asked.count("get") == 3
    assert ("abort" in client.asked) == (content == b"abcde")


@pytest.mark.parametrize(
    ("told", "age_s"),
    [({"date": "Thu, 26 Nov 2026 12:00:07 GMT"}, 7.0), ({"date": "Thu, 26 Nov 2026 11:59:59 GMT"}, 0.0), ({}, 0.0)],
)
def test_the_age_of_an_upload_is_by_the_server_s_clock_and_none_where_it_does_not_tell_its_time(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], age_s: float
) -> None:
    place = new_place()
    begun = datetime(2026, 11, 26, 12, tzinfo=UTC)
    page = {
        "ResponseMetadata": {"HTTPHeaders": told},
        "Uploads": [{"Key": f"{place.prefix}/a", "UploadId": "u", "Initiated": begun}],
    }
    client = SimpleNamespace(list_multipart_uploads=lambda **_: page, close=lambda: None)
    monkeypatch.setattr(S3Client, "_connected", lambda _: client)
    with opened(place) as store:
        assert list(store.list_uploads("")) == [UnfinishedUpload(key="a", upload_id=UploadId("u"), age_s=age_s)]


class Ranges:
    """A client that denies the first range while the second is under way, and takes its time over that."""

    def __init__(self) -> None:
        self.is_under_way = threading.Event()
        self.is_read = False

    def get_object(self, **told: Any) -> dict[str, Any]:
        if told["Range"] == "bytes=0-3":
            self.is_under_way.wait(30)
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "GetObject")
        self.is_under_way.set()
        time.sleep(0.2)
        self.is_read = True
        return {"ContentRange": "bytes 4-7/8", "Body": io.BytesIO(b"efgh")}

    def close(self) -> None:
        pass


def test_after_a_read_that_failed_nobody_writes_to_the_caller_s_buffer_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, into = Ranges(), bytearray(8)
    monkeypatch.setattr(S3Client, "_connected", lambda _: client)
    monkeypatch.setattr(objects_module, "RANGE_BYTES", 4)
    with opened(new_place(), threads=2) as store:
        with pytest.raises(Denied):
            store.read_into("a", offset_bytes=0, into=into)
        assert client.is_read
        assert into == bytes(4) + b"efgh"


def test_a_list_of_uploads_goes_on_where_the_server_says_if_it_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers leave out the upload's marker, or both, and say nevertheless that there is more."""
    asked: list[dict[str, str]] = []

    def page(**arguments: Any) -> dict[str, Any]:
        asked.append({name: value for name, value in arguments.items() if name.endswith("Marker")})
        upload = {"Key": f"{place.prefix}/{len(asked)}", "UploadId": "u", "Initiated": datetime(2020, 1, 1, tzinfo=UTC)}
        goes_on = {"NextKeyMarker": upload["Key"]} if len(asked) == 1 else {}
        return {"Uploads": [upload], "IsTruncated": True, "ResponseMetadata": {"HTTPHeaders": {}}, **goes_on}

    place = new_place()
    client = SimpleNamespace(list_multipart_uploads=page, close=lambda: None)
    monkeypatch.setattr(S3Client, "_connected", lambda _: client)
    with opened(place) as store:
        assert [one.key for one in store.list_uploads("")] == ["1", "2"]
    assert asked == [{}, {"KeyMarker": f"{place.prefix}/1"}]


def test_a_store_that_is_closed_gives_its_connections_back(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[S3Client] = []
    monkeypatch.setattr(S3Client, "close", lambda self: closed.append(self))
    with opened(new_place()):
        assert closed == []
    assert len(closed) == 1


def test_one_connection_pool_serves_all_requests_and_is_made_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    empty = SimpleNamespace(list_objects_v2=lambda **_: {}, close=lambda: None)

    def connect(_place: S3Place, num_connections: int) -> Any:
        made.append(num_connections)
        return empty

    monkeypatch.setattr(client_module, "_connect", connect)
    with opened(new_place()) as store:
        assert made == []
        for _ in range(3):
            assert list(store.list("")) == []
        assert len(made) == 1


@pytest.mark.parametrize("addressing", [None, "auto", "path", "virtual"])
def test_a_bucket_is_reached_as_its_url_says(monkeypatch: pytest.MonkeyPatch, addressing: str | None) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    place = S3Place(bucket="b", prefix="", endpoint="http://host:9000", region="eu-west-1", addressing=addressing)
    client = client_module._connect(place, 3)
    assert client.meta.endpoint_url == "http://host:9000"
    assert client.meta.region_name == "eu-west-1"
    assert client.meta.config.s3.get("addressing_style") == addressing
    assert client.meta.config.max_pool_connections == 3
    client.close()
