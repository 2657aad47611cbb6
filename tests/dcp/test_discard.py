"""What a failed save of DCP left in a bucket goes, and a commit of it that arrives afterwards names nothing."""

from __future__ import annotations

import pytest

from behemoth.base.errors import Unavailable
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.commit import commits
from behemoth.checkpoint.verify import verify
from behemoth.dcp.publish import discard
from behemoth.dcp.save_plan import SavedState, saved_state
from behemoth.testing.store import MemoryStore
from checkpoint.late_bucket import Late
from checkpoint.saved_checkpoint import save, small_layout
from checkpoint.unread_store import DENIED, Unread

STEP = 20


def write_of(write_id: str) -> SavedState:
    return saved_state([[]], step=Step(STEP), write_id=WriteId(write_id), sharding="box")


def test_a_commit_that_the_store_carries_out_after_its_save_was_discarded_counts_for_nobody() -> None:
    store = Late()
    with pytest.raises(Unavailable):
        save(store, small_layout(), step=STEP, write_id="dcp-1")
    discard(store, write_of("dcp-1"))
    assert list(store.list("steps")) == []
    store.arrive()
    assert commits(store) == []
    save(store, small_layout(), step=STEP, write_id="dcp-2")
    assert [one.write_id for one in commits(store)] == ["dcp-2"]
    assert all(verify(store, one, threads=1, deep=True).is_intact for one in commits(store))


def test_a_save_that_sent_no_commit_leaves_nothing_behind_at_all() -> None:
    store = Late()
    store.create("steps/000000020-dcp-1/w/c/0", b"1")
    discard(store, write_of("dcp-1"))
    assert list(store.list("")) == []


def test_what_a_record_may_name_that_cannot_be_read_stays() -> None:
    inner = MemoryStore()
    save(inner, small_layout(), step=STEP, write_id="dcp-1")
    store = Unread(inner, {"commits/000000020.json": DENIED})
    discard(store, write_of("dcp-1"))
    assert all(verify(inner, one, threads=1, deep=True).is_intact for one in commits(inner))
