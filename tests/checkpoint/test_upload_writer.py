"""Saves by uploads of parts: what lies in the store is what positional writes would have made, and a save that fails
leaves nothing that clean-up does not remove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Conflict, Corrupt, Invalid, Unavailable
from behemoth.base.ids import Attempt, Rank, Step, UploadId, WriteId
from behemoth.checkpoint import commit as commit_module
from behemoth.checkpoint import upload_writer as upload_writer_module
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit_log import commits, latest
from behemoth.checkpoint.exchange import Given, LocalExchange, SentPart
from behemoth.checkpoint.gc import LATE_S, execute, plan_gc
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.part_plan import plan_parts
from behemoth.checkpoint.proof import Proof, prove
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.verify import verify
from behemoth.ports import PartReceipt, UploadsParts
from behemoth.spec.mesh import Mesh
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Fail, FaultyBucket, When, every_death
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import commit_receipts, logical_arrays, toy_layout, write_all_ranks
from checkpoint.company_rig import small_parts, staged_world, upload_all_ranks
from checkpoint.random_layouts import layouts, small_chunks

LEAST, SINGLE = 40, 100


@pytest.fixture(autouse=True)
def tiny_parts() -> Iterator[None]:
    with small_parts(LEAST, SINGLE):
        yield


def bucket() -> MemoryBucket:
    return MemoryBucket(min_part_bytes=LEAST)


def holding(objects: Mapping[str, bytes]) -> MemoryBucket:
    store = bucket()
    for key, data in objects.items():
        store.create(key, data)
    return store


def objects_of(store: MemoryBucket | MemoryStore) -> dict[str, bytes]:
    return {key: bytes(data) for key, data in store._objects.items()}


def save(store: UploadsParts, layout: Layout, seed: int, *, step: int = 1, write_id: str = "a1-1") -> None:
    receipts = upload_all_ranks(store, layout, logical_arrays(layout, seed), step=step, write_id=write_id)
    commit_receipts(store, layout, receipts, step=step, write_id=write_id)


@settings(max_examples=40, deadline=None)
@given(layout=layouts(), chunk_bytes=st.sampled_from([16, 64]), seed=st.integers(0, 99))
def test_uploads_make_the_same_objects_as_positional_writes(layout: Layout, chunk_bytes: int, seed: int) -> None:
    layout = replace(layout, sharding="box")
    with small_chunks(chunk_bytes):
        files, objects, arrays = MemoryStore(), bucket(), logical_arrays(layout, seed)
        commit_receipts(files, layout, write_all_ranks(files, layout, arrays, step=1), step=1)
        save(objects, layout, seed)
        assert objects_of(objects) == objects_of(files)
        assert list(objects.list_uploads("")) == []


def test_the_leader_is_left_with_no_ends_of_chunks_in_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, proofs = replace(toy_layout(), sharding="box"), list[Proof]()
    monkeypatch.setattr(commit_module, "check_shards", lambda _layout, proof, _receipts: proofs.append(proof))
    receipts = upload_all_ranks(store := bucket(), layout, logical_arrays(layout, 1))
    commit_receipts(store, layout, receipts, step=1)
    assert [len(proof.left.row) for proof in proofs] == [0]
    candidate = Candidate(run="test", step=Step(1), write_id=WriteId("a1-1"), attempt=Attempt(1))
    assert len(prove(candidate, layout, receipts).left.row)  # as if they were files


def test_a_layout_of_whole_arrays_is_not_uploaded() -> None:
    with pytest.raises(Invalid, match="expected a layout of box shards, got sharding 'array'"):
        save(bucket(), toy_layout(), 1)


def test_a_commit_takes_no_upload_without_its_record_nor_two_of_one() -> None:
    layout, store = toy_layout("box"), bucket()
    receipts = upload_all_ranks(store, layout, logical_arrays(layout, 1))
    at, shards = next((number, receipt.shards) for number, receipt in enumerate(receipts) if receipt.shards)
    known = shards[0]
    name = layout.arrays[known.array].name
    without = replace(receipts[at], shards=shards[1:])
    twice = replace(receipts[at], shards=(*shards, known))
    other = replace(receipts[at], shards=(known._replace(crc=known.crc ^ 1), *shards[1:]))
    no_records = replace(receipts[at], shards=msgspec.UNSET)
    num_arrays, num_shards = len(layout.arrays), grids(layout)[known.array].num_shards
    beyond = replace(receipts[at], shards=(*shards, known._replace(array=num_arrays)))
    behind = replace(receipts[at], shards=(*shards, known._replace(shard=num_shards)))
    for wrong, kind, text in (
        (without, Invalid, f"array '{name}', object .*: expected a record of its upload, got none"),
        (twice, Invalid, f"array '{name}', object .*: expected one record"),
        (other, Corrupt, f"array '{name}', object .*, completed by rank {receipts[at].rank}: expected CRC-32C"),
        (no_records, Invalid, "expected a record of its upload, got none"),
        (beyond, Invalid, f"expected records of shards, got array {num_arrays}"),
        (behind, Invalid, f"expected records of shards, got array {known.array}, shard {num_shards}"),
    ):
        with pytest.raises(kind, match=text):
            commit_receipts(store, layout, [*receipts[:at], wrong, *receipts[at + 1 :]], step=1)
    assert commits(store) == []
    commit_receipts(store, layout, receipts, step=1)


@pytest.mark.parametrize("chunk_bytes", [400, 50])
def test_replicas_that_differ_are_refused_where_another_ones_bytes_were_uploaded(chunk_bytes: int) -> None:
    """Each byte is told by one rank and sent by one; where these are not the same, both must have the same. A chunk of
    which one rank has sent all has the right CRC behind it, whatever it has."""
    layout = Layout(mesh=Mesh(dp=4, edp=4), arrays=(ArraySpec(name="w", dtype="uint8", shape=(400,)),), sharding="box")
    arrays = logical_arrays(layout, 1)
    with small_chunks(chunk_bytes), staged_world(layout, arrays, other={2: logical_arrays(layout, 2)}) as world:
        store = bucket()
        receipts = world.write_all(store)
        assert {part.num_parts for part in plan_parts(layout, Rank(2)).parts} == {4}
        with pytest.raises(Corrupt, match=r"array 'w', object c/0, .*: expected CRC-32C"):
            commit_receipts(store, layout, receipts, step=1)


def test_a_record_of_other_payloads_than_the_spans_add_up_to_is_refused() -> None:
    layout, store = toy_layout("box"), bucket()
    receipts = upload_all_ranks(store, layout, logical_arrays(layout, 1))
    for at, receipt in enumerate(receipts):
        for number, shard in enumerate(receipt.shards or ()):
            assert shard.payload_crc is not None
            wrong = [*(receipt.shards or ())]
            wrong[number] = shard._replace(payload_crc=shard.payload_crc ^ 1)
            with pytest.raises(Corrupt, match=r"array .*, object .*, what its chunks have in it: expected CRC-32C"):
                commit_receipts(
                    store, layout, [*receipts[:at], replace(receipt, shards=tuple(wrong)), *receipts[at + 1 :]], step=1
                )
    commit_receipts(store, layout, receipts, step=1)


def test_a_receipt_of_another_node_that_does_not_say_what_was_sent_is_refused() -> None:
    """Only who tells the spans of what it sends itself may leave it out: such a receipt crosses no network."""
    layout = toy_layout("box")
    receipts = upload_all_ranks(bucket(), layout, logical_arrays(layout, 1))
    receipt = next(one for one in receipts if one.shards)
    assert Receipt.decode(receipt.encode()).shards == receipt.shards
    shards = receipt.shards or ()
    silent = replace(receipt, shards=(*shards[1:], shards[0]._replace(payload_crc=None)))
    with pytest.raises(Corrupt, match=rf"receipt of rank {receipt.rank}: .* shard \d+ of array \d+, got none"):
        Receipt.decode(silent.encode())


class Endless(LocalExchange):
    """A way to ranks that tell the first part that they have sent again and again."""

    num_asked = 0

    def receipts(self, rank: Rank, completer: Rank, *, first: int, cancelled: Given) -> Sequence[SentPart]:  # noqa: ARG002
        self.num_asked += 1
        return super().receipts(rank, completer, first=0, cancelled=cancelled)[:1]


def test_who_tells_sent_parts_for_ever_is_asked_for_no_more_than_the_plan_has() -> None:
    layout = toy_layout("box")
    with staged_world(layout, logical_arrays(layout, 1)) as world:
        endless = Endless(world.open_writes, world.write_id)
        world.place = lambda _: (world.open_writes, endless)
        with pytest.raises(Conflict, match=r"shard .*: expected \d parts of \d+ bytes together, got "):
            world.write_all(bucket())
    plans = [plan_parts(layout, Rank(rank)) for rank in range(layout.mesh.num_ranks)]
    assert 0 < endless.num_asked <= sum(len(by) for plan in plans for by in plan.completes.values())


def test_a_rank_that_gives_up_ends_the_uploads_of_all() -> None:
    layout, store = toy_layout("box"), bucket()
    with staged_world(layout, logical_arrays(layout, 1)) as world:
        world.cancelled.set()
        with pytest.raises(Conflict):
            world.write_all(store)
    assert list(store.list_uploads("")) == []


def test_an_error_of_the_store_is_told_by_the_rank_that_met_it_and_its_uploads_are_aborted() -> None:
    layout = toy_layout("box")
    counted = FaultyBucket(bucket())
    save(counted, layout, 1)
    for write in range(0, counted.num_writes, 3):
        store = bucket()
        error = Unavailable("the store is away")
        with pytest.raises(Unavailable, match="the store is away"):
            save(FaultyBucket(store, Fail(write=write, when=When.BEFORE, error=error)), layout, 1)
        assert list(store.list_uploads("")) == []
        clean(store)
        assert_rubbish_is_gone(store)


def test_of_a_store_that_is_away_no_rank_waits_for_the_end_of_each_of_its_uploads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout, ended = toy_layout("box"), list[str]()

    class Away(MemoryBucket):
        def upload_part(self, key: str, *_: object, **__: object) -> PartReceipt:
            raise Unavailable(f"upload a part of {key}: the store is away")

        def abort_upload(self, key: str, upload_id: UploadId) -> None:
            ended.append(key)
            raise Unavailable(f"abort {upload_id}: the store is away")

    monkeypatch.setattr(upload_writer_module, "REQUEST_THREADS", 1)
    store = Away(min_part_bytes=4)
    with small_parts(4, 8), staged_world(layout, logical_arrays(layout, 1)) as world:
        with pytest.raises(Unavailable, match="upload a part"):
            world.write_all(store)
        num_begun = len(list(store.list_uploads("")))
    assert 0 < len(ended) <= layout.mesh.num_ranks < num_begun


def test_killed_before_in_and_after_every_call_it_leaves_a_whole_checkpoint_or_rubbish_that_goes() -> None:
    layout = toy_layout("box")
    first, counted = bucket(), FaultyBucket(bucket())
    save(first, layout, 1)
    save(counted, layout, 2, step=2, write_id="a1-2")
    for death in every_death(counted.num_writes):
        inner = holding(objects_of(first))
        with pytest.raises(Crash):
            save(FaultyBucket(inner, death), layout, 2, step=2, write_id="a1-2")
        newest = latest(inner)
        assert newest is not None
        clean(inner)
        assert latest(inner) == newest
        assert verify(inner, newest, threads=1, deep=True).is_intact, death
        assert_rubbish_is_gone(inner)
        if newest.step == 1:
            save(inner, layout, 2, step=2, write_id="a2-1")


def clean(store: MemoryBucket) -> None:
    store.now_s += LATE_S
    execute(store, plan_gc(store, in_flight=()))


def assert_rubbish_is_gone(store: MemoryBucket) -> None:
    assert list(store.list_uploads("")) == []
    there = {f"{one.step:09d}-{one.write_id}" for one in commits(store) if hasattr(one, "write_id")}
    assert {info.key.split("/")[1] for info in store.list("steps")} == there


def test_an_upload_in_flight_is_left_alone_by_clean_up() -> None:
    store = bucket()
    for write in ("a1-1", "a1-2"):
        store.begin_upload(f"steps/000000001-{write}/w/c/0")
    execute(store, plan_gc(store, in_flight=[WriteId("a1-2")]))
    assert [one.key for one in store.list_uploads("")] == ["steps/000000001-a1-2/w/c/0"]
    execute(store, plan_gc(store))
    assert len(list(store.list_uploads(""))) == 1


def test_a_receipt_says_which_objects_its_rank_has_made() -> None:
    layout, store = toy_layout("box"), bucket()
    receipts = upload_all_ranks(store, layout, logical_arrays(layout, 1))
    for receipt in receipts:
        mine = plan_parts(layout, Rank(receipt.rank))
        singles = {part.shard for part in mine.parts if part.num_parts == 1}
        assert {(one.array, one.shard) for one in receipt.shards or ()} == singles | set(mine.completes)
        assert Receipt.decode(receipt.encode()) == receipt
