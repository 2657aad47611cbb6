"""What every store that takes uploads of parts must do, as a suite to inherit from. Built on `objects`."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from typing_extensions import Buffer

from behemoth.base.errors import Conflict, Corrupt, Invalid, NotFound
from behemoth.base.ids import UploadId
from behemoth.checkpoint.crc import crc32c
from behemoth.ports import MIN_PART_BYTES, DeletesListed, ObjectInfo, PartReceipt, UploadsParts
from behemoth.testing.objects import BAD_KEYS, ObjectContract
from behemoth.testing.store import read


class UploadContract(ObjectContract):
    """As its base; the store is an UploadsParts with S3's least size of parts."""

    def test_it_says_that_it_can(self, store: Any) -> None:
        assert isinstance(store, UploadsParts)

    def test_what_was_listed_is_deleted_and_not_what_has_taken_its_name_since(self, store: Any) -> None:
        assert issubclass(type(store), DeletesListed)
        store.create("a/b", b"former")
        (former,) = store.list("a")
        store.delete_listed(former)
        assert list(store.list("")) == []
        store.delete_listed(former)
        store.create("a/b", b"latter")
        store.delete_listed(former)
        assert read(store, "a/b", 6) == b"latter"
        (latter,) = store.list("a")
        store.delete_listed(latter)
        assert list(store.list("")) == []

    def test_a_listing_tells_how_old_an_object_is(self, store: UploadsParts) -> None:
        store.create("a", b"small")
        upload_id = store.begin_upload("b")
        receipt = send(store, "b", upload_id, 1, random_bytes(100))
        store.complete_upload("b", upload_id, parts=[receipt], crc=receipt.crc)
        assert [info.key for info in store.list("") if 0 <= info.age_s < 600] == ["a", "b"]

    def test_parts_of_any_order_and_of_several_handles_become_one_object(self, store: UploadsParts) -> None:
        data = random_bytes(2 * MIN_PART_BYTES + 12345)
        cuts = (0, MIN_PART_BYTES, 2 * MIN_PART_BYTES + 1, len(data))
        first, second, third = (data[begin:end] for begin, end in pairwise(cuts))
        upload_id, other = store.begin_upload("a/b"), self.reopened(store)
        receipts = [
            send(other, "a/b", upload_id, 3, third),
            send(store, "a/b", upload_id, 1, first),
            send(other, "a/b", upload_id, 2, second),
        ]
        assert list(store.list("")) == []
        other.complete_upload("a/b", upload_id, parts=receipts, crc=crc32c(data))
        assert list(store.list("")) == [ObjectInfo(key="a/b", size_bytes=len(data))]
        assert read(store, "a/b", len(data)) == data
        assert list(store.list_uploads("")) == []

    def test_a_part_may_be_of_many_buffers(self, store: UploadsParts) -> None:
        data = random_bytes(3000)
        upload_id = store.begin_upload("a")
        buffers: list[Buffer] = [b"", *(data[at : at + 7] for at in range(0, len(data), 7)), bytearray()]
        receipt = store.upload_part("a", upload_id, number=1, buffers=buffers, crc=crc32c(data))
        assert (receipt.number, receipt.crc, receipt.size_bytes) == (1, crc32c(data), len(data))
        store.complete_upload("a", upload_id, parts=[receipt], crc=crc32c(data))
        assert read(store, "a", len(data)) == data

    def test_threads_upload_parts_of_one_object(self, store: UploadsParts) -> None:
        data = random_bytes(4 * MIN_PART_BYTES)
        upload_id, receipts = store.begin_upload("a"), dict[int, PartReceipt]()

        def upload(number: int) -> None:
            begin = (number - 1) * MIN_PART_BYTES
            receipts[number] = send(store, "a", upload_id, number, data[begin : begin + MIN_PART_BYTES])

        threads = [threading.Thread(target=upload, args=(number,), name=f"part-{number}") for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        store.complete_upload("a", upload_id, parts=list(receipts.values()), crc=crc32c(data))
        assert read(store, "a", len(data)) == data

    def test_a_part_that_is_uploaded_again_is_replaced(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        old = send(store, "a", upload_id, 1, random_bytes(100))
        new = send(store, "a", upload_id, 1, random_bytes(200))
        with pytest.raises(Conflict) as caught:
            store.complete_upload("a", upload_id, parts=[old], crc=old.crc)
        assert caught.value.code == "upload-part"
        store.complete_upload("a", upload_id, parts=[new], crc=new.crc)
        assert read(store, "a", 200) == random_bytes(200)

    def test_a_part_of_other_bytes_than_its_crc_says_is_refused(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        with pytest.raises(Corrupt, match="part 1 of a: expected bytes of the CRC"):
            store.upload_part("a", upload_id, number=1, buffers=[b"bytes"], crc=crc32c(b"other"))

    def test_parts_that_do_not_add_up_make_no_object(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        receipt = send(store, "a", upload_id, 1, random_bytes(100))
        with pytest.raises(Corrupt, match="complete a: expected parts of CRC"):
            store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc ^ 1)
        assert list(store.list("")) == []
        store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)

    def test_completing_never_replaces(self, store: UploadsParts) -> None:
        store.create("a", b"first")
        upload_id = store.begin_upload("a")
        receipt = send(store, "a", upload_id, 1, random_bytes(100))
        with pytest.raises(Conflict, match="complete a: expected no such object, got one") as caught:
            store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        assert caught.value.code == "exists"
        assert read(store, "a", 5) == b"first"
        assert [one.upload_id for one in store.list_uploads("")] == [upload_id]

    def test_completing_twice_is_completing_once(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        receipt = send(store, "a", upload_id, 1, random_bytes(100))
        for handle in (store, self.reopened(store), store):
            handle.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        assert read(store, "a", 100) == random_bytes(100)

    def test_another_upload_of_the_same_bytes_is_as_good(self, store: UploadsParts) -> None:
        for _ in range(2):
            upload_id = store.begin_upload("a")
            receipt = send(store, "a", upload_id, 1, random_bytes(100))
            store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        assert list(store.list_uploads("")) == []

    def test_of_two_uploads_of_other_bytes_the_first_to_complete_wins(self, store: UploadsParts) -> None:
        first, second = store.begin_upload("a"), store.begin_upload("a")
        assert first != second
        receipts = {one: send(store, "a", one, 1, random_bytes(size)) for one, size in ((first, 100), (second, 200))}
        store.complete_upload("a", second, parts=[receipts[second]], crc=receipts[second].crc)
        with pytest.raises(Conflict):
            store.complete_upload("a", first, parts=[receipts[first]], crc=receipts[first].crc)
        assert read(store, "a", 200) == random_bytes(200)

    def test_an_upload_that_is_gone_takes_nothing_and_makes_nothing(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        receipt = send(store, "a", upload_id, 1, random_bytes(100))
        store.abort_upload("a", upload_id)
        store.abort_upload("a", upload_id)
        with pytest.raises(NotFound) as of_part:
            send(store, "a", upload_id, 2, random_bytes(100))
        with pytest.raises(NotFound) as of_completion:
            store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        assert of_part.value.code == of_completion.value.code == "upload-gone"
        assert not list(store.list(""))
        assert not list(store.list_uploads(""))

    def test_aborting_what_was_completed_takes_nothing_away(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        receipt = send(store, "a", upload_id, 1, random_bytes(100))
        store.complete_upload("a", upload_id, parts=[receipt], crc=receipt.crc)
        store.abort_upload("a", upload_id)
        assert read(store, "a", 100) == random_bytes(100)

    def test_unfinished_uploads_are_listed_by_key_below_a_prefix(self, store: UploadsParts) -> None:
        ids = {key: store.begin_upload(key) for key in ("steps/2/b", "steps/1/a", "steps/10/c", "steps/1/é")}
        send(store, "steps/1/a", ids["steps/1/a"], 1, random_bytes(100))
        found = list(self.reopened(store).list_uploads(""))
        assert [one.key for one in found] == sorted(ids)
        assert {one.key: one.upload_id for one in found} == ids
        assert all(0 <= one.age_s < 3600 for one in found)
        assert [one.key for one in store.list_uploads("steps/1")] == ["steps/1/a", "steps/1/é"]
        assert [one.key for one in store.list_uploads("steps/1/")] == ["steps/1/a", "steps/1/é"]
        assert list(store.list_uploads("missing")) == []

    @pytest.mark.parametrize("number", [0, -1, 10_001])
    def test_a_number_that_no_part_can_have_is_refused(self, store: UploadsParts, number: int) -> None:
        upload_id = store.begin_upload("a")
        with pytest.raises(Invalid, match="expected a number from 1 to 10000"):
            send(store, "a", upload_id, number, random_bytes(100))

    def test_an_empty_part_and_a_strided_buffer_are_refused(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        with pytest.raises(Invalid, match="got 0 bytes"):
            store.upload_part("a", upload_id, number=1, buffers=[b""], crc=0)
        strided: Any = np.zeros((4, 4), np.uint8)[:, 1]
        with pytest.raises(Invalid, match="expected a C-contiguous buffer"):
            store.upload_part("a", upload_id, number=1, buffers=[strided], crc=0)

    def test_parts_that_are_too_small_or_have_holes_are_refused(self, store: UploadsParts) -> None:
        upload_id = store.begin_upload("a")
        receipts = [send(store, "a", upload_id, number, random_bytes(100)) for number in (1, 2, 3)]
        for parts, reason in (
            ([], "expected parts 1 .. n, got none"),
            (receipts[1:], "expected parts 1 .. n, got number 2 in place 1"),
            ([receipts[0], receipts[2]], "got number 3 in place 2"),
            ([receipts[0], receipts[0]], "got number 1 in place 2"),
            (receipts, f"expected at least {MIN_PART_BYTES} bytes unless it is the last, got 100 bytes"),
        ):
            with pytest.raises(Invalid, match=reason):
                store.complete_upload("a", upload_id, parts=parts, crc=0)

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_key_that_is_no_plain_relative_path_is_not_uploaded(self, store: UploadsParts, key: str) -> None:
        receipt = PartReceipt(number=1, etag="e", crc=0, size_bytes=1)
        with pytest.raises(Invalid, match="store key"):
            store.begin_upload(key)
        with pytest.raises(Invalid, match="store key"):
            store.upload_part(key, UploadId("1"), number=1, buffers=[b"x"], crc=0)
        with pytest.raises(Invalid, match="store key"):
            store.complete_upload(key, UploadId("1"), parts=[receipt], crc=0)
        with pytest.raises(Invalid, match="store key"):
            store.abort_upload(key, UploadId("1"))


def random_bytes(num_bytes: int) -> bytes:
    """The same bytes for the same number."""
    return np.random.default_rng(num_bytes).bytes(num_bytes)


def send(store: UploadsParts, key: str, upload_id: UploadId, number: int, data: bytes) -> PartReceipt:
    """Upload one part of one buffer."""
    return store.upload_part(key, upload_id, number=number, buffers=[data], crc=crc32c(data))
