"""Each span comes from the first place that proves it; what was proven stays, and nothing unproven is ever believed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import BehemothError, Conflict, Corrupt, NotFound, Unavailable
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint import gathering as module
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.gathering import Gathering, HeldSnapshot, SnapshotSource
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.plan import RankPlan, Span, plan_rank
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import arena_of
from checkpoint.other_memory import OtherMemory, commit_of, payload
from checkpoint.saved_checkpoint import small_layout

WRITE = WriteId("a1-2")
SMALL = plan_rank(small_layout(), Rank(0))
BLOCKS = 7
LARGE = plan_rank(
    Layout(
        mesh=Mesh(),
        arrays=tuple(ArraySpec(name=f"w{number}", dtype="uint8", shape=(3000,)) for number in range(BLOCKS)),
    ),
    Rank(0),
)
"""One span to a block, where blocks are of 4 KiB."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 4096)


@contextmanager
def filling(plan: RankPlan, *, threads: int = 1) -> Iterator[tuple[Gathering, Arena]]:
    with arena_of(plan) as arena:
        yield Gathering(plan, arena, 0, write_id=WRITE, step=Step(7), threads=threads), arena


def content(arena: Arena, plan: RankPlan) -> list[bytes]:
    assert arena.snapshot(0).is_verified
    data = arena.data(0)
    return [payload(data, span) for span in plan.spans]


def spans_of(data: bytes, plan: RankPlan) -> list[bytes]:
    return [payload(data, span) for span in plan.spans]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("num_reads", range(BLOCKS))
def test_the_next_place_is_asked_only_for_what_a_lost_one_had_not_given(num_reads: int, threads: int) -> None:
    dying = OtherMemory(LARGE, ends_after=num_reads)
    whole = OtherMemory(LARGE, data=dying.data)
    with filling(LARGE, threads=threads) as (gathering, arena):
        with pytest.raises(Unavailable):
            gathering.take(dying)
        assert len(gathering.missing) == BLOCKS - num_reads
        gathering.take(whole)
        assert sorted(dying.asked + whole.asked) == [
            (span.arena_offset, span.arena_offset + span.length) for span in LARGE.spans
        ]
        gathering.seal()
        assert content(arena, LARGE) == spans_of(whole.data, LARGE)
        assert gathering.received_bytes == BLOCKS * 3000


@pytest.mark.parametrize("damaged", range(BLOCKS))
def test_of_a_place_with_a_damaged_span_all_others_are_taken(damaged: int) -> None:
    span = LARGE.spans[damaged]
    place = OtherMemory(LARGE, damaged={span.arena_offset + 5})
    next_place = OtherMemory(LARGE, data=place.data)
    with filling(LARGE) as (gathering, arena):
        told = rf"over 3000 bytes at {span.arena_offset}; 1 of 7 spans are damaged in all"
        with pytest.raises(Conflict, match=told) as caught:
            gathering.take(place)
        assert f"expected CRC-32C {crc32c(payload(place.data, span)):08x}, got" in caught.value.message
        assert gathering.missing == [damaged]
        with pytest.raises(Conflict, match="expected all of 7 spans, got 6"):
            gathering.seal()
        gathering.take(next_place)
        assert next_place.asked == [(span.arena_offset, span.arena_offset + span.length)]
        gathering.seal()
        assert content(arena, LARGE) == spans_of(place.data, LARGE)


def test_the_store_is_asked_only_for_what_no_place_has() -> None:
    left = OtherMemory(LARGE, lacks=range(1, BLOCKS))
    right = OtherMemory(LARGE, data=left.data, lacks=(0, 1, 4))
    asked: list[Span] = []
    with filling(LARGE) as (gathering, arena):
        gathering.take(left)
        gathering.take(right)
        assert not gathering.is_whole
        with pytest.raises(Conflict, match="expected all of 7 spans, got 5"):
            gathering.seal()
        gathering.complete(commit_of(left.data, asked))
        assert asked == [LARGE.spans[1], LARGE.spans[4]]
        assert content(arena, LARGE) == spans_of(left.data, LARGE)


def test_of_spans_about_which_two_places_disagree_neither_is_believed() -> None:
    truth = OtherMemory(LARGE, lacks=[6])
    other = bytearray(truth.data)
    for index in (2, 3):  # bytes and CRCs of a wrong write
        other[LARGE.spans[index].arena_offset] ^= 1
    for places in ([truth, OtherMemory(LARGE, data=bytes(other))], [OtherMemory(LARGE, data=bytes(other), lacks=[6])]):
        asked: list[Span] = []
        with filling(LARGE) as (gathering, arena):
            gathering.take(places[0])
            with pytest.raises(Conflict, match="got two for 2 of them, from two places"):
                gathering.take(places[1] if len(places) > 1 else OtherMemory(LARGE, data=truth.data))
            assert gathering.missing == [2, 3]
            gathering.take(OtherMemory(LARGE, data=truth.data))  # a third makes no majority
            assert gathering.missing == [2, 3]
            gathering.complete(commit_of(truth.data, asked))
            assert asked == [LARGE.spans[2], LARGE.spans[3]]
            assert content(arena, LARGE) == spans_of(truth.data, LARGE)


def test_a_place_is_not_asked_for_a_span_that_it_lacks_between_two_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", LARGE.data_bytes)
    place = OtherMemory(LARGE, lacks=[2])
    with filling(LARGE) as (gathering, _):
        gathering.take(place)
        assert gathering.missing == [2]
    begins = [span.arena_offset for span in LARGE.spans]
    assert place.asked == [(begins[0], begins[1] + 3000), (begins[3], begins[6] + 3000)]


def test_it_is_settled_as_soon_as_no_place_could_give_more() -> None:
    truth = OtherMemory(LARGE)
    with filling(LARGE) as (gathering, _):
        settled = [gathering.is_settled]
        for place in (OtherMemory(LARGE, data=truth.data, lacks=[4]), truth):
            gathering.take(place)
            settled.append(gathering.is_settled)
        assert settled == [False, False, True]
        was_whole = gathering.is_whole
        with pytest.raises(Conflict):
            gathering.take(OtherMemory(LARGE, data=truth.data, lies_about=[1]))
        assert gathering.is_settled
        assert (was_whole, gathering.is_whole) == (True, False)
    with filling(replace(LARGE, spans=())) as (empty, _):
        assert not empty.is_settled


def test_a_place_that_lies_about_all_crcs_gives_nothing() -> None:
    liar = OtherMemory(SMALL, lies_about=range(len(SMALL.spans)))
    with filling(SMALL) as (gathering, arena):
        with pytest.raises(Conflict, match="expected CRC-32C"):
            gathering.take(liar)
        assert not gathering.has_any
        assert arena.held() == ()


def test_after_all_places_have_failed_there_is_no_snapshot_and_the_other_generation_stays() -> None:
    def gone(_spans: Sequence[Span], _data: memoryview) -> list[int]:
        raise Corrupt("chunk 3")

    class Nothing(OtherMemory):
        def crcs(self) -> Sequence[int | None]:
            raise NotFound("no snapshot")

    with arena_of(LARGE) as arena:
        older = Gathering(LARGE, arena, 1, write_id=WriteId("a1-1"), step=Step(3), threads=1)
        older.take(OtherMemory(LARGE))
        older.seal()
        gathering = Gathering(LARGE, arena, 0, write_id=WRITE, step=Step(7), threads=1)
        for place in (Nothing(LARGE), OtherMemory(LARGE, ends_after=2)):
            with pytest.raises(BehemothError):
                gathering.take(place)
        with pytest.raises(Corrupt):
            gathering.complete(gone)
        assert [one.write_id for one in arena.held()] == ["a1-1"]
        data = os.urandom(LARGE.data_bytes)
        with pytest.raises(Conflict):  # what was taken before the error is still there, and judged anew
            gathering.take(OtherMemory(LARGE, data=data))
        gathering.complete(commit_of(data, []))
        assert content(arena, LARGE) == spans_of(data, LARGE)


@pytest.mark.parametrize("held", [0, 1])
def test_a_generation_is_filled_from_the_other_one_of_the_same_arena(held: int) -> None:
    place = OtherMemory(LARGE)
    with arena_of(LARGE) as arena:
        for generation, source in ((held, place), (1 - held, HeldSnapshot(arena, held))):
            gathering = Gathering(LARGE, arena, generation, write_id=WRITE, step=Step(7), threads=1)
            gathering.take(source)
            gathering.seal()
        for generation in (held, 1 - held):
            assert spans_of(bytes(arena.data(generation)), LARGE) == spans_of(place.data, LARGE)
            assert arena.snapshot(generation).is_verified


def test_a_place_that_has_nothing_costs_no_generation() -> None:
    class Nothing(OtherMemory):
        def crcs(self) -> Sequence[int | None]:
            raise NotFound("no snapshot")

    with filling(SMALL) as (gathering, arena):
        gathering.take(OtherMemory(SMALL))
        gathering.seal()
        again = Gathering(SMALL, arena, 0, write_id=WRITE, step=Step(8), threads=1)
        with pytest.raises(NotFound):
            again.take(Nothing(SMALL))
        assert arena.snapshot(0).step == 7


def indexes() -> st.SearchStrategy[frozenset[int]]:
    return st.frozensets(st.integers(0, BLOCKS - 1))


@settings(max_examples=150, deadline=None)
@given(
    faults=st.lists(st.tuples(indexes(), indexes(), indexes(), st.none() | st.integers(0, BLOCKS)), max_size=4),
    threads=st.integers(1, 2),
)
def test_whatever_places_lack_damage_or_lie_about_the_result_is_what_was_committed(
    faults: Sequence[tuple[frozenset[int], frozenset[int], frozenset[int], int | None]], threads: int
) -> None:
    data = os.urandom(LARGE.data_bytes)
    asked: list[Span] = []
    with filling(LARGE, threads=threads) as (gathering, arena):
        for lacks, damaged, lies_about, ends_after in faults:
            place: SnapshotSource = OtherMemory(
                LARGE,
                data=data,
                lacks=lacks,
                damaged=[LARGE.spans[index].arena_offset for index in damaged],
                lies_about=lies_about,
                ends_after=ends_after,
            )
            try:
                gathering.take(place)
            except BehemothError:
                continue
        missing = gathering.missing
        gathering.complete(commit_of(data, asked))
        assert asked == [LARGE.spans[index] for index in missing]
        assert content(arena, LARGE) == spans_of(data, LARGE)
        if len(faults) == 1 and faults[0][3] is None:
            lacks, damaged, lies_about, _ = faults[0]
            assert set(missing) == lacks | (damaged | lies_about)
