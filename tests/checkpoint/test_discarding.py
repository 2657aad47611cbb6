"""What a failed save, or import, left in a bucket goes, and a commit of it that arrives afterwards names nothing."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.discarding import discard_write
from behemoth.checkpoint.signposts import make_due, put_up
from behemoth.checkpoint.verify import verify
from behemoth.state.effect import CommitRef
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.store import MemoryStore, contents
from checkpoint.late_bucket import Late
from checkpoint.listed_store import ListedBucket
from checkpoint.saved_checkpoint import save, small_layout
from checkpoint.unread_store import DENIED, Unread

STEP = 20
WRITE = Step(STEP), WriteId("dcp-1")


def test_a_commit_that_the_store_carries_out_after_its_save_was_discarded_counts_for_nobody() -> None:
    store = Late()
    with pytest.raises(Unavailable):
        save(store, small_layout(), step=STEP, write_id="dcp-1")
    discard_write(store, *WRITE)
    assert list(store.list("steps")) == []
    store.arrive()
    assert commits(store) == []
    save(store, small_layout(), step=STEP, write_id="dcp-2")
    assert [one.write_id for one in commits(store) if isinstance(one, CommitRef)] == ["dcp-2"]
    assert all(verify(store, one, threads=1, deep=True).is_intact for one in commits(store))


def test_a_save_that_sent_no_commit_leaves_nothing_behind_at_all() -> None:
    store = Late()
    store.create("steps/000000020-dcp-1/w/c/0", b"1")
    discard_write(store, *WRITE)
    assert list(store.list("")) == []


def test_the_objects_of_a_write_which_may_be_millions_are_listed_once() -> None:
    store = ListedBucket()
    store.create("steps/000000020-dcp-1/w/c/0", b"1")
    store.create("steps/000000020-dcp-1/index", b"2")
    discard_write(store, *WRITE)
    assert store.prefixes.count("steps/000000020-dcp-1") == 1
    assert list(contents(store)) == ["rejected/000000020-dcp-1.json"]


def test_what_a_record_may_name_that_cannot_be_read_stays() -> None:
    inner = MemoryStore()
    save(inner, small_layout(), step=STEP, write_id="dcp-1")
    store = Unread(inner, {"commits/000000020.json": DENIED})
    discard_write(store, *WRITE)
    (left,) = commits(inner)
    assert verify(inner, left, threads=1, deep=True).is_intact


def test_neither_uploads_nor_the_records_of_a_signpost_are_left_and_nothing_of_others_goes() -> None:
    store = MemoryBucket()
    save(store, small_layout(), step=10, write_id="dcp-0")
    put_up(store, make_due(store, Step(10), WriteId("dcp-0"), "step-10"))
    store.begin_upload("steps/000000010-dcp-0/w/c/0")
    before, uploads = contents(store), list(store.list_uploads(""))
    store.begin_upload("steps/000000020-dcp-1/w/c/0")
    make_due(store, *WRITE, "step-20")
    discard_write(store, *WRITE)
    assert contents(store) == before
    assert list(store.list_uploads("")) == uploads


def test_of_other_steps_no_record_is_read() -> None:
    inner = MemoryStore()
    save(inner, small_layout(), step=STEP + 1, write_id="dcp-2")
    inner.create("steps/000000020-dcp-1/index", b"1")
    discard_write(Unread(inner, {"commits/000000021.json": Unavailable("no answer")}), *WRITE)
    assert list(inner.list("steps/000000020-dcp-1")) == []
