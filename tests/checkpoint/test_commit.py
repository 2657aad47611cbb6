"""Each way in which receipts can be wrong has its own refusal, and nothing is committed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Internal, Invalid, NotFound, Unavailable
from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint import chunk_sums
from behemoth.checkpoint import proof as proof_module
from behemoth.checkpoint import receipt as receipt_module
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit_log import BadCommit, commits, latest, publish, read_record, reject
from behemoth.checkpoint.commit_record import CommitRecord, FormatVersion
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.names import groups_of
from behemoth.checkpoint.paths import INDEX, METADATA, commit_key, rejected_key, step_prefix
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.proof import prove
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.small_objects import create_same
from behemoth.checkpoint.span_table import SpanTable
from behemoth.checkpoint.verify import verify
from behemoth.ports import Part
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import Crash, Fail, FaultyStore, When, every_death, lost_answer
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import commit_receipts, logical_arrays, save, toy_layout, write_all_ranks

LAYOUT = toy_layout()
Receipts = list[Receipt]


def edited(receipts: Receipts, rank: int, change: Callable[[Receipt], Receipt]) -> Receipts:
    return [change(receipt) if receipt.rank == rank else receipt for receipt in receipts]


def without_first_span(receipt: Receipt) -> Receipt:
    return replace(receipt, spans=receipt.spans[1:])


def with_first_span_twice(receipt: Receipt) -> Receipt:
    return replace(receipt, spans=(receipt.spans[0], *receipt.spans))


def with_span_beyond(receipt: Receipt) -> Receipt:
    return replace(receipt, spans=(receipt.spans[0]._replace(length=10**6), *receipt.spans[1:]))


def with_unknown_chunk(receipt: Receipt) -> Receipt:
    return replace(receipt, spans=(receipt.spans[0]._replace(chunk=10**6), *receipt.spans[1:]))


def with_offset_beyond_all(receipt: Receipt) -> Receipt:
    return replace(receipt, spans=(receipt.spans[0]._replace(offset=(1 << 63) - 1), *receipt.spans[1:]))


def with_number_that_is_none(receipt: Receipt) -> Receipt:
    return replace(receipt, spans=(receipt.spans[0]._replace(chunk=1 << 63), *receipt.spans[1:]))


def with_unknown_array(receipt: Receipt) -> Receipt:
    return replace(receipt, spans=(receipt.spans[0]._replace(array=99), *receipt.spans[1:]))


@pytest.mark.parametrize(
    ("change", "kind", "code", "text"),
    [
        (lambda one: replace(one, step=4), Conflict, "receipt-stale", r"rank 1: expected a receipt of step 5, got 4"),
        (lambda one: replace(one, write_id="a1-0"), Conflict, "receipt-stale", r"rank 1: .* write id 'a1-1'"),
        (lambda one: replace(one, attempt=0), Conflict, "receipt-stale", r"rank 1: .* attempt 1, got 0"),
        (lambda one: replace(one, layout_digest="0" * 64), Invalid, "receipt-layout", r"rank 1: expected layout"),
        (lambda one: replace(one, rank=4), Invalid, "receipt-rank", r"a rank below 4, got 4"),
        (lambda one: replace(one, rank=0), Conflict, "receipt-twice", r"rank 0: expected one receipt"),
        (without_first_span, Invalid, "span-missing", r"rank 1: array 'model/.*', chunk \d: \d+ of \d+ bytes"),
        (with_first_span_twice, Invalid, "span-twice", r"rank 1: array 'model/.*', chunk \d: .* covered twice"),
        (with_span_beyond, Invalid, "span-outside", r"rank 1: array 'model/.*' .*got 1000000"),
        (with_unknown_chunk, Invalid, "span-outside", r"rank 1: array 'model/.*', chunk 1000000"),
        (with_offset_beyond_all, Invalid, "span-outside", r"rank 1: array 'model/.*', chunk \d"),
        (with_number_that_is_none, Invalid, "span-outside", r"rank 1: array 'model/.*', chunk -"),
        (with_unknown_array, Invalid, "span-outside", r"rank 1: extent \d+: .* got array 99"),
    ],
)
def test_a_wrong_receipt_is_refused(
    change: Callable[[Receipt], Receipt],
    kind: type[BehemothError],
    code: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    receipts = edited(write_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 1), step=5), 1, change)
    with pytest.raises(kind, match=text.replace(" .*got", ".*got")) as caught:
        commit_receipts(store, LAYOUT, receipts, step=5)
    assert caught.value.code == code
    assert latest(store) is None
    monkeypatch.setattr(chunk_sums, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(chunk_sums, "_PART_ROWS", 2)
    candidate = Candidate(run="test", step=Step(5), write_id=WriteId("a1-1"), attempt=Attempt(1))
    for threads in (1, 3):
        with pytest.raises(kind) as again:
            prove(candidate, LAYOUT, receipts, threads=threads)
        assert (again.value.message, again.value.code) == (caught.value.message, code)


def test_several_threads_prove_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = write_all_ranks(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=5)
    candidate = Candidate(run="test", step=Step(5), write_id=WriteId("a1-1"), attempt=Attempt(1))
    alone = prove(candidate, LAYOUT, receipts)
    monkeypatch.setattr(chunk_sums, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(chunk_sums, "_PART_ROWS", 2)
    together = prove(candidate, LAYOUT, receipts, threads=3)
    assert len(alone.left.row)
    assert all(map(np.array_equal, alone.left, together.left))
    assert all(map(np.array_equal, alone.chunk_crcs, together.chunk_crcs))
    assert (alone.arrays, alone.first_ranks) == (together.arrays, together.first_ranks)


def test_spans_that_are_not_proven_are_refused_also_when_nothing_is_found_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof_module, "check_coverage", lambda *_: None)
    receipts = write_all_ranks(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=5)
    candidate = Candidate(run="test", step=Step(5), write_id=WriteId("a1-1"), attempt=Attempt(1))
    with pytest.raises(Internal, match="expected to find what its spans do not cover exactly once"):
        prove(candidate, LAYOUT, edited(receipts, 1, without_first_span))


def test_bytes_that_nobody_wrote_are_told_with_the_rank_that_should_have() -> None:
    receipts = write_all_ranks(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=5)
    candidate = Candidate(run="test", step=Step(5), write_id=WriteId("a1-1"), attempt=Attempt(1))
    for receipt in receipts:
        for at in range(len(receipt.spans)):
            less = replace(receipt, spans=(*receipt.spans[:at], *receipt.spans[at + 1 :]))
            told = f"write 'a1-1' of step 5: rank {receipt.rank}: array .* covered by nobody"
            with pytest.raises(Invalid, match=told):
                prove(candidate, LAYOUT, [less if one is receipt else one for one in receipts])


def test_whoever_owes_bytes_is_found_without_a_plan_of_every_rank() -> None:
    """The leader waits for that, and would plan tens of thousands."""
    receipts = write_all_ranks(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=5)
    candidate = Candidate(run="test", step=Step(5), write_id=WriteId("a1-1"), attempt=Attempt(1))
    plan_rank.cache_clear()
    with pytest.raises(Invalid, match=r"rank 1: .* covered by nobody"):
        prove(candidate, LAYOUT, edited(receipts, 1, without_first_span))
    assert plan_rank.cache_info().misses == 0


def test_a_missing_receipt_is_refused_and_a_repeated_one_is_fine() -> None:
    store = MemoryStore()
    receipts = write_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 1), step=5)
    with pytest.raises(Invalid, match="expected 4 receipts, got none of rank 2"):
        commit_receipts(store, LAYOUT, [one for one in receipts if one.rank != 2], step=5)
    assert commit_receipts(store, LAYOUT, [*receipts, receipts[0]], step=5).step == 5


@pytest.mark.parametrize("may_be_zero", [False, True])
def test_an_array_that_turns_all_zero_is_refused_unless_declared(may_be_zero: bool) -> None:
    store, layout = MemoryStore(), toy_layout(scale_may_be_zero=may_be_zero)
    first = save(store, layout, logical_arrays(layout, 1), step=1)
    zeroed = {**logical_arrays(layout, 2), "model/scale": np.zeros((), np.float32)}
    if may_be_zero:
        save(store, layout, zeroed, step=2, previous=first)
        return
    with pytest.raises(
        Corrupt,
        match="'model/scale', first byte from rank 3: expected elements other than zero, as at step 1, got all 1 zero",
    ):
        save(store, layout, zeroed, step=2, previous=first)


def test_an_array_of_which_a_part_turns_zero_is_healthy() -> None:
    store, arrays = MemoryStore(), logical_arrays(LAYOUT, 2)
    first = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    for name, array in arrays.items():
        flat = array.reshape(-1).copy()
        flat[: flat.size // 2] = 0
        arrays[name] = flat.reshape(array.shape)
    receipts = write_all_ranks(store, LAYOUT, arrays, step=2)
    assert any(span.is_zero for receipt in receipts for span in receipt.spans)
    record = commit_receipts(store, LAYOUT, receipts, step=2, previous=first)
    assert not any(array.is_zero for array in record.arrays)


def test_an_array_that_the_last_checkpoint_did_not_have_may_be_zero() -> None:
    store = MemoryStore()
    before = replace(LAYOUT, arrays=tuple(array for array in LAYOUT.arrays if array.name != "model/scale"))
    first = save(store, before, logical_arrays(before, 1), step=1)
    zeroed = {**logical_arrays(LAYOUT, 2), "model/scale": np.zeros((), np.float32)}
    record = save(store, LAYOUT, zeroed, step=2, previous=first)
    assert [array.name for array in record.arrays if array.is_zero] == ["model/scale"]


def test_a_step_has_one_commit_and_repeating_it_gives_the_same() -> None:
    store = MemoryStore()
    first = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    assert save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1) == first
    with pytest.raises(Conflict, match="commit of step 1: expected none, got write 'a1-1'"):
        save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1, write_id="a2-1")


def test_a_commit_whose_answer_was_lost_counts_if_it_stands_and_only_then() -> None:
    record = save(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    store = MemoryStore()
    assert publish(FaultyStore(store, lost_answer(0)), record) == record
    assert latest(store) == record.ref
    never_sent = Fail(write=0, when=When.BEFORE, error=Unavailable("connection refused"))
    with pytest.raises(Unavailable, match="connection refused"):
        publish(FaultyStore(MemoryStore(), never_sent), record)


def test_a_leader_finds_what_another_one_has_made_and_refuses_what_somebody_else_has() -> None:
    store = MemoryStore()
    for _ in range(2):
        create_same(store, "steps/index", b"the index")
    for other in (b"an index!", b"an index of more bytes than that", b"the ind"):
        with pytest.raises(Conflict, match=f"object steps/index: expected none, or one with the {len(other)} bytes"):
            create_same(store, "steps/index", other)


def test_a_rejected_commit_is_gone_at_once_whatever_dies_and_its_step_is_free() -> None:
    for death in every_death(2):
        store = MemoryStore()
        save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
        ref = save(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2).ref
        with pytest.raises(Crash):
            reject(FaultyStore(store, death), ref, "chunk 3 is damaged")
        marked = any(info.key == rejected_key(ref.step, ref.write_id) for info in store.list("rejected"))
        newest = latest(store)
        assert newest is not None
        assert newest.step == (1 if marked else 2)
        assert len(commits(store)) == newest.step
        reject(store, ref, "again")
        assert latest(store) is not None
        with pytest.raises(NotFound):
            read_record(store, ref)
        save(store, LAYOUT, logical_arrays(LAYOUT, 3), step=2, write_id="a2-1")
        reject(store, ref, "said a third time, when the step is another write's")
        assert [one.write_id for one in commits(store) if not isinstance(one, BadCommit)] == ["a1-1", "a2-1"]


def test_a_commit_takes_the_place_of_one_whose_rejection_was_cut_off() -> None:
    store = MemoryStore()
    ref = save(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2).ref
    store.create(rejected_key(ref.step, ref.write_id), b"{}\n")
    assert latest(store) is None
    save(store, LAYOUT, logical_arrays(LAYOUT, 3), step=2, write_id="a2-1")
    newest = latest(store)
    assert newest is not None
    assert newest.write_id == "a2-1"


@pytest.mark.parametrize("keep_bytes", [0, 1, 40, -1])
def test_a_truncated_commit_is_listed_as_bad_and_never_the_latest(keep_bytes: int) -> None:
    store = MemoryStore()
    record = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    store.create(commit_key(Step(2)), replace(record, step=Step(2)).encode()[:keep_bytes])
    newest = latest(store)
    assert newest == record.ref
    good, bad = commits(store)
    assert good == record.ref
    assert isinstance(bad, BadCommit)
    assert (bad.step, type(bad.error)) == (2, Corrupt)
    assert "`behemoth ckpt verify`" in bad.error.hint
    with pytest.raises(Conflict, match="a record that is not readable"):
        save(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2)
    reject(store, bad, "truncated")
    save(store, LAYOUT, logical_arrays(LAYOUT, 2), step=2)
    reject(store, bad, "truncated, said again when the step has a whole one")
    assert len(commits(store)) == 2


def test_a_commit_under_another_steps_key_is_bad() -> None:
    store = MemoryStore()
    record = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    store.create(commit_key(Step(7)), record.encode())
    store.create("commits/readme.txt", b"hello")
    assert [type(one).__name__ for one in commits(store)] == ["CommitRef", "BadCommit", "BadCommit"]
    assert {one.error.code for one in commits(store) if isinstance(one, BadCommit)} == {"commit-key"}
    assert latest(store) == record.ref


@pytest.mark.parametrize(
    "newer", [{"format": FormatVersion(major=2, minor=0)}, {"required_features": ("erasure-code",)}]
)
def test_a_commit_of_a_newer_release_is_refused_with_a_hint(newer: dict[str, object]) -> None:
    store = MemoryStore()
    record = save(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    store.create(commit_key(Step(2)), replace(record, step=Step(2), **newer).encode())  # type: ignore[arg-type]
    with pytest.raises(Invalid) as caught:
        latest(store)
    assert "upgrade" in caught.value.hint
    bad = commits(store)[1]
    assert isinstance(bad, BadCommit)
    assert isinstance(bad.error, Invalid)


def test_a_newer_minor_version_with_unknown_fields_still_reads() -> None:
    record = save(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    newer = replace(record, format=FormatVersion(major=1, minor=9))
    assert CommitRecord.decode(newer.encode()) == newer


def test_a_flipped_bit_anywhere_in_a_record_is_found() -> None:
    data = save(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=1).encode()
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            CommitRecord.decode(bytes(broken))


@pytest.mark.parametrize("data", [b"", b"\x80", b"rubbish", msgspec.msgpack.encode({"version": 1, "receipt": {}})])
def test_rubbish_is_no_receipt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Receipt.decode(data)


@pytest.mark.parametrize("limit", ["MAX_RECEIPT_BYTES", "MAX_TABLE_BYTES"])
def test_a_receipt_that_no_peer_would_accept_is_not_sent(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = write_all_ranks(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=5)[0]
    data = receipt.encode()
    exact = {"MAX_RECEIPT_BYTES": len(data), "MAX_TABLE_BYTES": SpanTable.of(receipt.spans).num_bytes}[limit]
    monkeypatch.setattr(receipt_module, limit, exact)
    assert receipt.encode() == data
    monkeypatch.setattr(receipt_module, limit, exact - 1)
    with pytest.raises(Invalid, match=f"receipt of rank {receipt.rank}: expected at most"):
        receipt.encode()


def test_a_receipt_of_another_version_or_of_other_spans_than_it_counts_is_refused() -> None:
    receipt = write_all_ranks(MemoryStore(), LAYOUT, logical_arrays(LAYOUT, 1), step=5)[0]
    document = msgspec.msgpack.decode(receipt.encode())
    with pytest.raises(Corrupt, match="version 5, got 6"):
        Receipt.decode(msgspec.msgpack.encode({**document, "version": 6}))
    with pytest.raises(Corrupt, match=f"spans: expected {document['num_spans'] + 1} of them"):
        Receipt.decode(msgspec.msgpack.encode({**document, "num_spans": document["num_spans"] + 1}))


@pytest.mark.parametrize(("step", "write_id"), [(-1, "a"), (10**9, "a"), (1, ""), (1, "../x"), (1, "a/b")])
def test_a_step_or_write_id_that_makes_no_key_is_refused(step: int, write_id: str) -> None:
    with pytest.raises(Invalid, match="expected a step of"):
        rejected_key(Step(step), WriteId(write_id))


@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize("name", ["model/norm/c/0", "model/norm/zarr.json"])
def test_what_was_taken_away_after_ranks_wrote_it_is_neither_made_again_as_zeros_nor_missed(
    tmp_path: Path, name: str, is_short: bool
) -> None:
    store, layout = LocalStore(tmp_path), toy_layout()
    receipts = write_all_ranks(store, layout, logical_arrays(layout, 1), step=1)
    (file,) = tmp_path.glob(f"steps/*/{name}")
    if is_short:
        os.truncate(file, 7)
    else:
        file.unlink()
    got = "one of 7 bytes" if is_short else "none"
    with pytest.raises(Corrupt, match=f"{name}: expected one of .* bytes that ranks wrote, got {got}"):
        commit_receipts(store, layout, receipts, step=1)
    assert latest(store) is None
    store.close()


def test_ranks_write_all_of_an_array_and_the_leader_adds_only_groups_and_index() -> None:
    store, layout = MemoryStore(), toy_layout()
    receipts = write_all_ranks(store, layout, logical_arrays(layout, 1), step=1)
    of_ranks = {info.key for info in store.list("steps")}
    commit_receipts(store, layout, receipts, step=1)
    prefix = step_prefix(Step(1), WriteId("a1-1"))
    of_leader = {info.key.removeprefix(f"{prefix}/") for info in store.list("steps")} - {
        key.removeprefix(f"{prefix}/") for key in of_ranks
    }
    assert of_leader == {INDEX, METADATA, *(f"{group}/{METADATA}" for group in groups_of(layout.paths))}


class Together(MemoryStore):
    """A write into one of `files` waits until another one is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()
        self._barrier = threading.Barrier(2)

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        if key in self.files:
            self._barrier.wait(timeout=60)
        super().write_parts(key, size_bytes=size_bytes, parts=parts)


def test_the_leader_writes_the_ends_of_shared_chunks_into_several_files_at_a_time() -> None:
    arrays = tuple(ArraySpec(name=f"model/{name}", dtype="uint8", shape=(101,), flat_over="dp") for name in "ab")
    store, layout = Together(), Layout(mesh=LAYOUT.mesh, arrays=arrays)
    receipts = write_all_ranks(store, layout, logical_arrays(layout, 1), step=1)
    store.files = {info.key for info in store.list("steps") if not info.key.endswith(METADATA)}
    assert len(store.files) == 2
    record = commit_receipts(store, layout, receipts, step=1)
    assert verify(store, record.ref, threads=1, deep=True).is_intact


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_behind_a_commit_takes_nothing_of_it_the_ends_of_shared_chunks_neither(seed: int) -> None:
    store = MemoryStore()
    receipts = write_all_ranks(store, LAYOUT, logical_arrays(LAYOUT, 1), step=1)
    candidate = Candidate(run="test", step=Step(1), write_id=WriteId("a1-1"), attempt=Attempt(1))
    assert len(prove(candidate, LAYOUT, receipts).left.row)
    record = commit_receipts(store, LAYOUT, receipts, step=1)
    assert verify(store.after_power_loss(seed=seed), record.ref, threads=1, deep=True).is_intact
