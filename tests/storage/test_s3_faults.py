"""The adapter for S3 while requests are refused, cut off and answered into the void."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from behemoth.base.errors import Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.ports import ObjectInfo
from behemoth.storage import s3_client
from behemoth.storage.s3 import S3Store
from behemoth.storage.s3_objects import RANGE_BYTES
from behemoth.storage.s3_place import S3Place
from behemoth.testing.store import read
from behemoth.testing.uploads import UploadContract, random_bytes, send
from servers.fault_proxy import Fault, FaultProxy, How, every
from servers.s3_server import S3Server
from storage.s3_stores import OpenedAgain, let_in, new_place, opened

METHODS = ("PUT", "POST", "GET", "HEAD", "DELETE")


@pytest.fixture
def store(proxy: FaultProxy) -> Iterator[S3Store]:
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        yield store


ALL_FAULTS = (
    *every(How.STORM, METHODS),
    *every(How.ERR, ("PUT", "GET", "HEAD", "DELETE")),
    *(Fault(How.ERR, "POST", "uploadId="), Fault(How.LOSE, "POST", "uploadId="), Fault(How.ERR, "POST", "delete")),
    *(Fault(How.CUT_REQUEST, "PUT"), Fault(How.CUT_ANSWER, "GET")),
    Fault(How.DAWDLE, "PUT", "partNumber="),
)
FAULTS = {
    "storms": [Fault(How.STORM, method, times=3) for method in METHODS],
    "cut connections": [Fault(how, method) for how in (How.CUT_REQUEST, How.CUT_ANSWER) for method in ("PUT", "GET")],
    "lost answers": [
        *every(How.LOSE, ("PUT", "GET", "HEAD", "DELETE")),
        *(Fault(How.LOSE, "POST", part) for part in ("uploadId=", "delete")),
    ],
    "slow answers": [Fault(How.DAWDLE, method, times=2) for method in METHODS],
}
"""An upload that was begun without an answer is begun again, and stays: no part of the contract (see below)."""


class TestS3StoreBehindFaults(OpenedAgain, UploadContract):
    """The whole contract, with the first requests of every kind refused, acted upon without an answer, cut off, and
    answered late."""

    @pytest.fixture
    def store(self, proxy: FaultProxy) -> Iterator[Any]:
        proxy.plan(*ALL_FAULTS)
        yield from self.opened_at(new_place(endpoint=proxy.endpoint))


@pytest.mark.longer
class TestS3StoreBehindOneKindOfFault(OpenedAgain, UploadContract):
    """The whole contract behind each kind alone, more of it."""

    @pytest.fixture(params=FAULTS)
    def store(self, proxy: FaultProxy, request: pytest.FixtureRequest) -> Iterator[Any]:
        proxy.plan(*FAULTS[request.param])
        yield from self.opened_at(new_place(endpoint=proxy.endpoint))


def test_an_upload_that_was_begun_without_an_answer_is_listed(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan(Fault(How.LOSE, "POST"))
    upload_id = store.begin_upload("a")
    found = [one.upload_id for one in store.list_uploads("")]
    assert upload_id in found
    assert len(found) == 2


@pytest.mark.parametrize("how", [How.LOSE, How.ERR, How.CUT_ANSWER])
def test_an_object_that_was_created_without_an_answer_is_ours(store: S3Store, proxy: FaultProxy, how: How) -> None:
    proxy.plan(Fault(how, "PUT"))
    store.create("a", b"ours")
    assert proxy.num_requests <= 2  # it asks who made the object before it sends the bytes again
    assert read(store, "a", 4) == b"ours"


def test_an_object_that_somebody_else_created_meanwhile_is_a_conflict(store: S3Store, proxy: FaultProxy) -> None:
    store.create("a", b"theirs")
    proxy.plan(Fault(How.LOSE, "PUT"), Fault(How.STORM, "HEAD"))
    with pytest.raises(Conflict) as caught:
        store.create("a", b"theirs")
    assert caught.value.code == "exists"
    assert proxy.struck == [How.LOSE, How.STORM]


def test_a_conditional_conflict_is_no_loss(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan(Fault(How.CONFLICT, "PUT", times=3))
    store.create("a", b"ours")
    assert read(store, "a", 4) == b"ours"


@pytest.mark.parametrize("how", [How.LOSE, How.ERR, How.CUT_ANSWER])
def test_an_upload_that_was_completed_without_an_answer_is_complete(
    store: S3Store, proxy: FaultProxy, how: How
) -> None:
    upload_id = store.begin_upload("a")
    receipt = send(store, "a", upload_id, 1, random_bytes(1000))
    proxy.plan(Fault(how, "POST"))
    store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
    assert proxy.struck == [how]
    assert read(store, "a", 1000) == random_bytes(1000)
    assert list(store.list_uploads("")) == []


def test_an_upload_that_is_said_to_be_complete_while_it_is_still_joined_is_waited_for(
    store: S3Store, proxy: FaultProxy
) -> None:
    upload_id = store.begin_upload("a")
    receipt = send(store, "a", upload_id, 1, random_bytes(1000))
    proxy.plan(Fault(How.STORM, "POST"), Fault(How.CLAIM, "POST", times=2))
    store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
    assert proxy.struck == [How.STORM, How.CLAIM, How.CLAIM]
    assert read(store, "a", 1000) == random_bytes(1000)


def test_an_upload_of_which_a_killed_server_made_nothing_is_not_called_complete(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint), patience_s=2.0) as store:
        upload_id = store.begin_upload("a")
        receipt = send(store, "a", upload_id, 1, random_bytes(1000))
        proxy.plan(Fault(How.STORM, "POST"), Fault(How.CLAIM, "POST", times=10_000))
        with pytest.raises(Unavailable, match="expected the object that the store says is complete") as caught:
            store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        assert "was killed while it joined the parts" in caught.value.hint
        assert caught.value.message.startswith(f"{store.root}: complete ")


def test_a_deletion_that_arrives_when_another_object_has_the_name_leaves_it(store: S3Store, proxy: FaultProxy) -> None:
    store.create("a", b"former")
    (former,) = store.list("")
    proxy.plan(Fault(How.HOLD, "DELETE"))
    with ThreadPoolExecutor(max_workers=1) as dying:
        deletion = dying.submit(store.delete_listed, former)
        held = proxy.held()
        store.delete(["a"])
        store.create("a", b"latter")
        held.arrive()
        deletion.result()
    assert read(store, "a", 6) == b"latter"


def test_a_replacement_that_arrives_when_another_object_has_the_name_leaves_it(
    store: S3Store, proxy: FaultProxy
) -> None:
    store.create("a", b"former")
    proxy.plan(Fault(How.HOLD, "PUT"))
    with ThreadPoolExecutor(max_workers=1) as dying:
        replacement = dying.submit(store.replace, "a", old=b"former", new=b"late")
        held = proxy.held()
        store.replace("a", old=b"former", new=b"latter")
        held.arrive()
        with pytest.raises(Conflict, match="replace a: expected the object as it was, got another") as caught:
            replacement.result()
    assert caught.value.code == "changed"
    assert read(store, "a", 6) == b"latter"


@pytest.mark.parametrize("how", [How.LOSE, How.ERR, How.STORM, How.CUT_REQUEST, How.CONFLICT])
def test_a_replacement_whose_answer_was_no_good_is_looked_at_and_made_once(
    store: S3Store, proxy: FaultProxy, how: How
) -> None:
    store.create("a", b"former")
    proxy.plan(Fault(how, "PUT"))
    store.replace("a", old=b"former", new=b"latter")
    assert proxy.struck == [how]
    assert read(store, "a", 6) == b"latter"


def test_a_server_that_refuses_to_replace_on_a_condition_replaces_without(store: S3Store, proxy: FaultProxy) -> None:
    store.create("a", b"former")
    proxy.plan(Fault(How.UNKNOWN, "PUT"))
    store.replace("a", old=b"former", new=b"latter")
    assert proxy.struck == [How.UNKNOWN]
    assert read(store, "a", 6) == b"latter"


def test_a_server_that_refuses_to_delete_on_a_condition_deletes_without(store: S3Store, proxy: FaultProxy) -> None:
    store.create("a", b"former")
    (former,) = store.list("")
    proxy.plan(Fault(How.UNKNOWN, "DELETE"))
    store.delete_listed(former)
    assert proxy.struck == [How.UNKNOWN]
    assert list(store.list("")) == []


def test_credentials_that_were_renewed_in_their_file_are_found_when_the_old_ones_have_expired(
    s3: S3Server, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = credentials_file(tmp_path, "former", "former", monkeypatch)
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        proxy.plan(Fault(How.EXPIRE, "PUT", times=2))
        with pytest.raises(Denied, match=r"create a: ExpiredToken \(400\)") as caught:
            store.create("a", b"ours")
        assert caught.value.code == "credentials-expired"
        assert proxy.struck == [How.EXPIRE, How.EXPIRE]
        file.write_text(profile(s3.access_key, s3.secret_key))
        proxy.plan(Fault(How.EXPIRE, "PUT"))
        store.create("a", b"ours")
        assert proxy.struck == [How.EXPIRE]
        assert read(store, "a", 4) == b"ours"


def credentials_file(folder: Path, key: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this process has instead of variables."""
    file = folder / "credentials"
    file.write_text(profile(key, secret))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return file


def profile(key: str, secret: str) -> str:
    return f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


def test_an_endpoint_of_the_environment_that_holds_credentials_is_refused_without_them(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in(monkeypatch, s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://me:sesame@127.0.0.1:{s3.port}")
    with (
        opened(new_place()) as store,
        pytest.raises(Invalid, match="expected no credentials in the endpoint") as caught,
    ):
        list(store.list(""))
    assert caught.value.code == "store-credentials"
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


def test_a_part_is_sent_again_whole(store: S3Store, proxy: FaultProxy) -> None:
    data = random_bytes(9 << 20)
    upload_id = store.begin_upload("a")
    proxy.plan(Fault(How.CUT_REQUEST, "PUT", times=2), Fault(How.STORM, "PUT"), Fault(How.LOSE, "PUT"))
    buffers = [memoryview(data)[: 5 << 20], memoryview(data)[5 << 20 :]]
    receipt = store.upload_part("a", upload_id, number=1, buffers=buffers, crc=crc32c(data))
    assert len(proxy.struck) == 4
    store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
    assert read(store, "a", len(data)) == data


def test_a_part_that_is_refused_while_it_is_sent_is_not_sent_until_patience_ends(
    store: S3Store, proxy: FaultProxy
) -> None:
    data = random_bytes(9 << 20)
    upload_id = store.begin_upload("a")
    proxy.plan(Fault(How.REFUSE_EARLY, "PUT", times=10_000))
    with pytest.raises(Denied, match=r"upload part 1 of a: AccessDenied \(403\)"):
        store.upload_part("a", upload_id, number=1, buffers=[data], crc=crc32c(data))
    assert proxy.num_requests == 2


def test_a_part_whose_bytes_were_changed_on_their_way_is_sent_once_more(store: S3Store, proxy: FaultProxy) -> None:
    data = random_bytes(6 << 20)
    upload_id = store.begin_upload("a")
    proxy.plan(Fault(How.DAMAGE, "PUT"))
    receipt = store.upload_part("a", upload_id, number=1, buffers=[data], crc=crc32c(data))
    assert proxy.num_requests == 2
    store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
    assert read(store, "a", len(data)) == data


def test_a_part_whose_bytes_are_wrong_here_is_not_sent_for_ever(store: S3Store, proxy: FaultProxy) -> None:
    upload_id = store.begin_upload("a")
    proxy.plan()
    with pytest.raises(Corrupt) as caught:
        store.upload_part("a", upload_id, number=1, buffers=[b"others"], crc=crc32c(b"these"))
    assert caught.value.code == "upload-crc"
    assert proxy.num_requests == 2


def test_a_small_object_whose_bytes_were_changed_on_their_way_is_sent_once_more(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.plan(Fault(How.DAMAGE, "PUT"))
    store.create("a", b"ours")
    assert proxy.struck == [How.DAMAGE]
    assert read(store, "a", 4) == b"ours"


def test_a_read_that_is_cut_goes_on_where_it_was(store: S3Store, proxy: FaultProxy) -> None:
    data = random_bytes(20 << 20)
    store.create("a", data)
    proxy.plan(Fault(How.CUT_ANSWER, "GET", times=5), Fault(How.STORM, "GET", times=2))
    into = np.zeros(len(data), np.uint8)
    store.read_into("a", offset_bytes=0, into=into.data)
    assert into.tobytes() == data
    assert len(proxy.struck) == 7


def test_a_body_that_crawls_goes_over_another_connection_both_ways(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every packet is in time, and all of them together would take a minute."""
    monkeypatch.setattr(s3_client, "READ_LIMIT_S", 2.0)
    monkeypatch.setattr(s3_client, "SLOWEST_BYTES_PER_S", 1 << 30)
    data = random_bytes(24 << 20)
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        upload_id = store.begin_upload("a")
        proxy.plan(Fault(How.CRAWL, "PUT"))
        receipt = store.upload_part("a", upload_id, number=1, buffers=[data], crc=crc32c(data))
        assert (proxy.struck, proxy.num_requests > 1) == ([How.CRAWL], True)
        store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        proxy.plan(Fault(How.CRAWL, "GET"))
        assert read(store, "a", len(data)) == data
        assert (proxy.struck, proxy.num_requests > len(data) // RANGE_BYTES) == ([How.CRAWL], True)


def test_a_listing_goes_over_pages_and_refusals(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint), page_keys=7) as store:
        keys = [f"many/{number:03d}" for number in range(40)]
        for key in keys:
            store.create(key, b"")
            store.begin_upload(key)
        proxy.plan(Fault(How.STORM, "GET", times=3), Fault(How.CUT_ANSWER, "GET"), Fault(How.ERR, "POST"))
        assert [info.key for info in store.list("many")] == keys
        assert [one.key for one in store.list_uploads("many")] == keys
        store.delete(keys[:30])
        assert [info.key for info in store.list("")] == keys[30:]


def test_what_never_works_ends_in_time_and_says_what_it_was(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint), patience_s=1.0) as store:
        proxy.plan(*(Fault(How.STORM, method, times=10_000) for method in METHODS))
        with pytest.raises(Unavailable, match=r"create a: .*\(503\); gave up after \d+ tries in") as caught:
            store.create("a", b"x")
        assert caught.value.code == "throttled"
        with pytest.raises(Unavailable, match=rf"^{store.root}: list many: SlowDown \(503\); gave up after \d+ tries"):
            list(store.list("many"))


def test_a_server_that_is_not_there_is_unavailable(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    place = S3Place(bucket="bucket", prefix="", endpoint="http://127.0.0.1:1", region="us-east-1")
    with (
        opened(place, patience_s=0.0) as store,
        pytest.raises(Unavailable, match="no whole answer from the store"),
    ):
        list(store.list(""))


def test_wrong_credentials_are_denied_and_not_told(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    place = new_place()
    for name, value in (("AWS_SECRET_ACCESS_KEY", "sesame"), ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")):
        monkeypatch.setenv(name, value)
        with opened(place) as store, pytest.raises(Denied, match="read a") as caught:
            read(store, "a", 1)
        assert "sesame" not in f"{caught.value}{caught.value.hint}{caught.value.__cause__}"


def test_no_credentials_at_all_are_denied(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with opened(new_place()) as store, pytest.raises(Denied, match="expected credentials, got none") as caught:
        read(store, "a", 1)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_bucket_that_is_not_there_is_told(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    with opened(S3Place(bucket="nobody-made-it", prefix="")) as store:
        for ask in (lambda: list(store.list("")), lambda: store.abort_upload("a", UploadId("u"))):
            with pytest.raises(NotFound) as caught:
                ask()
            assert caught.value.code == "no-bucket"


def test_what_others_made_to_show_folders_is_left_out(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    let_in(monkeypatch, s3)
    place = new_place()
    s3.client().put_object(Bucket=place.bucket, Key=f"{place.prefix}/steps/", Body=b"")
    with opened(place) as store:
        store.create("steps/a", b"x")
        assert list(store.list("")) == list(store.list("steps")) == [ObjectInfo(key="steps/a", size_bytes=1)]
