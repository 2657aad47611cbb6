"""Objects of a bucket, written from front to back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from behemoth.base.errors import Invalid, Unavailable
from behemoth.base.ids import Step, UploadId, WriteId
from behemoth.checkpoint.commit import commits
from behemoth.checkpoint.gc import ORPHAN_AGE_S, execute, plan_gc
from behemoth.checkpoint.interop.ingest import import_tensors
from behemoth.checkpoint.sequential import SequentialStore
from behemoth.checkpoint.verify import verify
from behemoth.ports import Part, UploadsParts, WritesRanges
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, FaultyBucket, every_death
from behemoth.testing.store import read
from checkpoint.interop.tensor_trees import chunked

PART_BYTES = 64


def bucket() -> MemoryBucket:
    return MemoryBucket(min_part_bytes=PART_BYTES)


@given(pieces=st.lists(st.binary(max_size=200), max_size=8))
def test_any_pieces_in_order_become_the_object(pieces: list[bytes]) -> None:
    whole, inner = b"".join(pieces), bucket()
    with SequentialStore(inner, part_bytes=PART_BYTES) as store:
        at = 0
        for piece in pieces or [b""]:
            store.write_parts("a", size_bytes=len(whole), parts=[Part(offset_bytes=at, buffers=[piece])])
            at += len(piece)
        assert list(inner.list("")) == []
        store.seal(["a"])
    assert read(inner, "a", len(whole)) == whole if whole else [info.size_bytes for info in inner.list("")] == [0]
    assert list(inner.list_uploads("")) == []


def test_bytes_out_of_order_and_bytes_that_are_missing_are_refused() -> None:
    inner = bucket()
    with SequentialStore(inner, part_bytes=PART_BYTES) as store:
        store.write_parts("a", size_bytes=300, parts=[Part(offset_bytes=0, buffers=[bytes(200)])])
        with pytest.raises(Invalid, match="expected bytes from 200 on, got 201"):
            store.write_parts("a", size_bytes=300, parts=[Part(offset_bytes=201, buffers=[b"x"])])
        with pytest.raises(Invalid, match="expected 300 bytes, got 200 bytes"):
            store.seal(["a"])
        assert len(list(inner.list_uploads(""))) == 1
    assert list(inner.list_uploads("")) == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size_bytes", [0, PART_BYTES, PART_BYTES + 1])
def test_bytes_behind_the_end_are_refused(size_bytes: int) -> None:
    inner = bucket()
    with SequentialStore(inner, part_bytes=PART_BYTES) as store:
        with pytest.raises(Invalid, match=f"expected an object of {size_bytes} bytes, got bytes to {size_bytes + 5}"):
            store.write_parts("a", size_bytes=size_bytes, parts=[Part(offset_bytes=0, buffers=[bytes(size_bytes + 5)])])
        assert list(inner.list_uploads("")) == []


class RefusesFirst(MemoryBucket):
    """The first abort fails."""

    num_aborts = 0

    def abort_upload(self, key: str, upload_id: UploadId) -> None:
        self.num_aborts += 1
        if self.num_aborts == 1:
            raise Unavailable(f"abort {key}: no answer")
        super().abort_upload(key, upload_id)


def test_an_upload_that_cannot_be_aborted_keeps_no_other() -> None:
    inner = RefusesFirst(min_part_bytes=PART_BYTES)
    store = SequentialStore(inner, part_bytes=PART_BYTES)
    for key in ("a", "b", "c"):
        store.write_parts(key, size_bytes=300, parts=[Part(offset_bytes=0, buffers=[bytes(200)])])
    with pytest.raises(Unavailable, match="abort a: no answer"):
        store.__exit__(None, None, None)
    assert [upload.key for upload in inner.list_uploads("")] == ["a"]


def test_it_stands_for_files_and_not_for_a_bucket() -> None:
    store = SequentialStore(bucket())
    assert isinstance(store, WritesRanges)
    assert not isinstance(store, UploadsParts)


def test_an_import_that_is_killed_anywhere_is_whole_or_rubbish_that_goes() -> None:
    tensors = {
        "model/w": chunked(np.arange(200, dtype=np.float32).reshape(20, 10)),
        "model/b": chunked(np.arange(10, dtype=np.int64)),
    }

    def run(inner: UploadsParts) -> None:
        with SequentialStore(inner, part_bytes=PART_BYTES) as store:
            import_tensors(store, tensors, run="import:x", step=Step(1), write_id=WriteId("i-1"), committed_us=1)

    counted = FaultyBucket(bucket())
    run(counted)
    whole = 0
    for death in every_death(counted.num_writes):
        inner = bucket()
        with pytest.raises(Crash):
            run(FaultyBucket(inner, death))
        inner.now_s = ORPHAN_AGE_S
        found = commits(inner)
        assert all(verify(inner, one, threads=1, deep=True).is_intact for one in found)
        execute(inner, plan_gc(inner, in_flight=()))
        assert list(inner.list_uploads("")) == []
        whole += len(found)
        assert bool(list(inner.list("steps"))) == bool(found)
    assert whole == 1
