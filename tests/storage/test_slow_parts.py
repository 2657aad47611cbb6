"""Parts that a real S3 server takes its time for: waited for, sent again, and given up, and what comes of late ones."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Unavailable
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.verify import verify
from behemoth.storage import s3_client
from behemoth.testing.store import read
from behemoth.testing.uploads import random_bytes
from checkpoint.checkpoint_rig import commit_receipts, logical_arrays
from checkpoint.company_rig import upload_all_ranks
from servers.fault_proxy import Fault, FaultProxy, How
from storage.s3_stores import new_place, opened
from storage.test_s3_save import LAYOUT

PART = "partNumber="
DATA = random_bytes(6 << 20)
LATE_S = 1.0
"""How long an answer is waited for where that is cut down."""


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "READ_LIMIT_S", LATE_S)


def test_a_part_that_takes_a_hundred_times_as_long_is_waited_for_and_sent_once(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        upload_id = store.begin_upload("a")
        proxy.plan(Fault(How.DAWDLE, "PUT", PART))
        receipt = store.upload_part("a", upload_id, number=1, buffers=[DATA], crc=crc32c(DATA))
        assert (proxy.struck, proxy.num_requests) == ([How.DAWDLE], 1)
        store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        assert read(store, "a", len(DATA)) == DATA


@pytest.mark.usefixtures("_hasty")
def test_a_part_without_an_answer_is_sent_again_and_harms_nothing_when_it_arrives_at_last(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        upload_id = store.begin_upload("a")
        proxy.plan(Fault(How.HOLD, "PUT", PART))
        receipt = store.upload_part("a", upload_id, number=1, buffers=[DATA], crc=crc32c(DATA))
        late = proxy.held()
        store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        late.arrive()
        assert read(store, "a", len(DATA)) == DATA
        assert [info.key for info in store.list("")] == ["a"]
        assert list(store.list_uploads("")) == []


@pytest.mark.usefixtures("_hasty")
def test_a_part_that_arrives_a_second_time_before_the_end_is_the_same_part(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        upload_id = store.begin_upload("a")
        proxy.plan(Fault(How.HOLD, "PUT", PART))
        receipt = store.upload_part("a", upload_id, number=1, buffers=[DATA], crc=crc32c(DATA))
        proxy.held().arrive()
        store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        assert read(store, "a", len(DATA)) == DATA


@pytest.mark.usefixtures("_hasty")
def test_a_small_object_whose_first_request_arrives_after_the_second_is_made_once(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        proxy.plan(Fault(How.HOLD, "PUT"))
        store.create("a", b"ours")
        (before,) = store.list("")
        proxy.held().arrive()
        (after,) = store.list("")
        assert (before.etag, read(store, "a", 4)) == (after.etag, b"ours")


@pytest.mark.usefixtures("_hasty")
def test_a_save_with_a_part_that_is_never_answered_ends_in_time_names_the_part_and_leaves_no_upload(
    proxy: FaultProxy,
) -> None:
    with opened(new_place(endpoint=proxy.endpoint), patience_s=3 * LATE_S) as store:
        proxy.plan(Fault(How.HOLD, "PUT", "partNumber=2", times=10_000))
        with pytest.raises(Unavailable, match=r"upload part 2 of steps/.*/model/w/c/.*gave up after \d+ tries in"):
            upload_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 7))
        assert list(store.list_uploads("")) == []
        assert commits(store) == []


@pytest.mark.usefixtures("_hasty")
def test_a_save_whose_parts_are_slow_and_come_twice_is_the_same_save(proxy: FaultProxy) -> None:
    with opened(new_place(endpoint=proxy.endpoint)) as store:
        proxy.plan(Fault(How.HOLD, "PUT", "partNumber=1"), Fault(How.DAWDLE, "PUT", PART, times=3))
        receipts = upload_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 7))
        proxy.held().arrive()
        commit_receipts(store, LAYOUT, receipts, step=1)
        assert list(store.list_uploads("")) == []
        (commit,) = commits(store)
        assert verify(store, commit, threads=2, deep=True).is_intact
