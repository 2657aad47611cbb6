"""What a rank answers while it uploads: only what it holds, and only while its memory does."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest

from behemoth.base.errors import Conflict, Invalid
from behemoth.base.ids import Rank, Step, UploadId, WriteId
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.exchange import LocalExchange, OpenWrite, OpenWrites
from behemoth.checkpoint.part_plan import Fragment, ShardId
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.staging import stage
from checkpoint.checkpoint_rig import arena_of, local_arrays, logical_arrays, toy_layout

LAYOUT = toy_layout("box")
PLAN = plan_rank(LAYOUT, Rank(1))
WRITE = WriteId("a1-1")


def staged(arena: Arena, *, write_id: str = "a1-1", step: int = 1) -> OpenWrite:
    local = local_arrays(LAYOUT, 1, logical_arrays(LAYOUT, step))
    snapshot = stage(arena, PLAN, local, WriteId(write_id), Step(step))
    return OpenWrite(PLAN, arena, snapshot.generation, snapshot.sequence)


def never() -> bool:
    return False


def test_bytes_and_crcs_are_those_of_the_ranks_own_spans() -> None:
    with arena_of(PLAN) as arena:
        upload = staged(arena)
        data = arena.data(0)
        for span in PLAN.spans:
            expected = bytes(data[span.arena_offset : span.arena_offset + span.length])
            fragment = Fragment(Rank(1), span.array, span.chunk, span.offset + 1, span.length - 1)
            into = memoryview(bytearray(span.length - 1))
            upload.copy([fragment], into, cancelled=never)
            assert bytes(into) == expected[1:]
            assert upload.crcs_of([fragment], cancelled=never) == [crc32c(expected[1:])]


def test_what_the_rank_does_not_hold_is_refused() -> None:
    with arena_of(PLAN) as arena:
        upload, span = staged(arena), PLAN.spans[0]
        for fragment in (
            Fragment(Rank(1), span.array, span.chunk, span.offset, span.length + 1),
            Fragment(Rank(1), span.array, 99, 0, 1),
            Fragment(Rank(1), 99, 0, 0, 1),
        ):
            with pytest.raises(Invalid, match="rank 1: expected to hold bytes"):
                upload.crcs_of([fragment], cancelled=never)


def test_a_snapshot_that_was_replaced_or_whose_memory_is_gone_answers_nothing_any_more() -> None:
    fragment = Fragment(Rank(1), PLAN.spans[0].array, PLAN.spans[0].chunk, PLAN.spans[0].offset, 1)
    fd = os.memfd_create("test-exchange")
    arena = Arena.format(fd, PLAN)
    first = staged(arena)
    staged(arena, write_id="a1-2", step=2)
    upload = staged(arena, write_id="a1-3", step=3)
    with pytest.raises(Conflict, match="snapshot was"):
        first.crcs_of([fragment], cancelled=never)
    assert upload.is_held()
    del arena
    gc.collect()
    assert not upload.is_held()
    with pytest.raises(Conflict, match="rank 1: its memory was given up"):
        upload.crcs_of([fragment], cancelled=never)
    os.close(fd)


@pytest.mark.parametrize(
    "ask",
    [
        lambda upload, fragment: upload.copy([fragment], memoryview(bytearray(fragment.length)), cancelled=never),
        lambda upload, fragment: upload.crcs_of([fragment], cancelled=never),
    ],
    ids=["bytes", "crcs"],
)
def test_what_is_replaced_while_it_is_given_out_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[OpenWrite, Fragment], object]
) -> None:
    span = PLAN.spans[0]
    with arena_of(PLAN) as arena:
        upload, filling = staged(arena), arena.filling

        def replaced(generation: int) -> memoryview:
            arena.begin(generation, WriteId("a1-2"), Step(2), PLAN.layout_digest)
            return filling(generation)

        monkeypatch.setattr(arena, "filling", replaced)
        with pytest.raises(Conflict, match="rank 1: its snapshot was given up"):
            ask(upload, Fragment(Rank(1), span.array, span.chunk, span.offset, span.length))


def test_whoever_waits_hears_of_a_failure_and_of_his_own_end() -> None:
    open_writes = OpenWrites()
    exchange = LocalExchange(open_writes, WRITE)
    with pytest.raises(Conflict, match="rank 1: given up while waiting for it to begin"):
        exchange.receipts(Rank(1), Rank(0), first=0, cancelled=lambda: True)
    with arena_of(PLAN) as arena:
        upload = staged(arena)
        open_writes.enter(WRITE, upload)
        with pytest.raises(Conflict, match="rank 1: given up while waiting for the uploads to begin"):
            exchange.upload_ids(Rank(1), [ShardId(0, 0)], cancelled=lambda: True)
        upload.begun({ShardId(0, 0): UploadId("one")})
        assert exchange.upload_ids(Rank(1), [ShardId(0, 0)], cancelled=never) == ["one"]
        with pytest.raises(Invalid, match="rank 1: expected shards that it completes"):
            exchange.upload_ids(Rank(1), [ShardId(0, 1)], cancelled=never)
        upload.failed("the disk is on fire")
        with pytest.raises(Conflict, match="rank 1: its write failed: the disk is on fire"):
            exchange.receipts(Rank(1), Rank(0), first=0, cancelled=never)


def test_a_rank_can_be_asked_about_its_last_two_writes_and_one_that_comes_late_takes_no_others_place() -> None:
    open_writes = OpenWrites()
    with arena_of(PLAN) as arena:
        given_up, under_way = staged(arena), staged(arena, write_id="a1-2", step=2)
        open_writes.enter(WriteId("a1-2"), under_way)
        open_writes.enter(WRITE, given_up)
        assert open_writes.find(WriteId("a1-2"), Rank(1), cancelled=never) is under_way
        assert open_writes.find(WRITE, Rank(1), cancelled=never) is given_up
        open_writes.enter(WRITE, given_up)
        assert open_writes.find(WriteId("a1-2"), Rank(1), cancelled=never) is under_way
        open_writes.enter(WriteId("a1-3"), under_way)
        with pytest.raises(Conflict, match="given up while waiting"):
            open_writes.find(WriteId("a1-2"), Rank(1), cancelled=lambda: True)
