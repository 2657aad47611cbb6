"""Reports of many nodes become one piece of evidence."""

from __future__ import annotations

from behemoth.base.ids import Attempt, NodeId, Step, WriteId
from behemoth.fleet.muster import GangMuster, SaveMuster
from behemoth.state.evidence import GangMismatched, GangRestored, GangUp, SaveArmed, SaveStaged, SaveWritten
from behemoth.wire.reports import RanksRestored, RanksUp, ReceiptBatch, SaveReached

A, B = NodeId("a"), NodeId("b")
WRITE = WriteId("a1-1")


def gang() -> GangMuster:
    return GangMuster(Attempt(2), [A, B])


def save() -> SaveMuster:
    return SaveMuster(WRITE, Attempt(2), frozenset({A, B}))


def batch(*receipts: bytes, num_ranks: int, layout: bytes | None = None) -> ReceiptBatch:
    return ReceiptBatch(attempt=Attempt(2), write_id=WRITE, num_ranks=num_ranks, receipts=receipts, layout=layout)


def test_the_gang_is_up_when_the_last_node_says_so_and_it_is_told_once() -> None:
    muster = gang()
    up = RanksUp(attempt=Attempt(2))
    assert muster.count(A, up) is None
    assert muster.count(A, up) is None
    assert muster.count(B, up) == GangUp(attempt=Attempt(2))
    assert muster.count(B, up) is None


def test_reports_of_another_attempt_or_of_a_stranger_do_not_count() -> None:
    muster = gang()
    assert muster.count(A, RanksUp(attempt=Attempt(1))) is None
    assert muster.count(NodeId("spare"), RanksUp(attempt=Attempt(2))) is None
    assert muster.count(B, RanksUp(attempt=Attempt(2))) is None
    assert muster.count(A, RanksUp(attempt=Attempt(2))) == GangUp(attempt=Attempt(2))


def test_the_gang_stands_where_its_slowest_node_stands() -> None:
    muster = gang()
    muster.count(
        A,
        RanksRestored(
            attempt=Attempt(2), step=Step(40), num_from_memory=2, num_from_several=1, num_from_disk=1, disk_bytes=5
        ),
    )
    muster.count(
        A,
        RanksRestored(
            attempt=Attempt(2), step=Step(40), num_from_memory=2, num_from_several=1, num_from_disk=1, disk_bytes=5
        ),
    )
    told = muster.count(
        B,
        RanksRestored(
            attempt=Attempt(2), step=Step(40), num_from_memory=0, num_from_several=3, num_from_disk=2, disk_bytes=6
        ),
    )
    assert told == GangRestored(
        attempt=Attempt(2), step=Step(40), num_from_memory=2, num_from_several=4, num_from_disk=3, disk_bytes=11
    )


def test_a_save_goes_through_its_stages_each_told_once() -> None:
    muster = save()
    for stage, evidence in (("armed", SaveArmed), ("staged", SaveStaged)):
        reached = SaveReached(attempt=Attempt(2), write_id=WRITE, stage=stage)  # type: ignore[arg-type]
        assert muster.count(A, reached) is None
        assert muster.count(B, reached) == evidence(attempt=Attempt(2), write_id=WRITE)
        assert muster.count(B, reached) is None


def test_a_save_is_written_once_every_receipt_is_in_however_they_are_split() -> None:
    muster = save()
    assert muster.count(A, batch(b"r0", num_ranks=2, layout=b"layout")) is None
    assert muster.count(B, batch(b"r2", b"r3", num_ranks=2)) is None
    assert muster.count(A, batch(b"r0", num_ranks=2)) is None
    assert muster.count(A, batch(b"r1", num_ranks=2)) == SaveWritten(attempt=Attempt(2), write_id=WRITE)
    layout, receipts = muster.receipts()
    assert layout == b"layout"
    assert sorted(receipts) == [b"r0", b"r1", b"r2", b"r3"]


def test_receipts_of_another_write_are_left_alone() -> None:
    muster = save()
    other = ReceiptBatch(attempt=Attempt(2), write_id=WriteId("a1-9"), num_ranks=1, receipts=(b"x",))
    assert muster.count(A, other) is None
    assert muster.receipts() == (None, [])


def test_nodes_that_declare_different_arrays_are_told_and_never_count_as_restored() -> None:
    muster = GangMuster(Attempt(2), [A, B])
    first = RanksRestored(attempt=Attempt(2), step=Step(0), num_from_memory=0, layout="a" * 64)
    assert muster.count(A, first) is None
    told = muster.count(B, RanksRestored(attempt=Attempt(2), step=Step(0), num_from_memory=0, layout="b" * 64))
    assert isinstance(told, GangMismatched)
    assert (told.attempt, told.node) == (2, B)
    assert "node b declare other arrays than those on node a" in told.reason
    assert isinstance(muster.count(B, first), GangRestored)
