"""The adapter for S3 on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from behemoth.base import retry
from behemoth.base.errors import BehemothError, Denied, NotFound
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.storage.s3_client import S3Client
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
