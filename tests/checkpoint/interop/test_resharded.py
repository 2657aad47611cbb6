"""A checkpoint that was written anew on another mesh has the same bits, proven again, in a folder and in a bucket."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Unavailable
from behemoth.base.ids import Rank, UploadId
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.gc import ORPHAN_AGE_S, execute, plan_gc
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.resharded import MAX_BATCH_BYTES, MIN_BATCH_BYTES, batch_bytes
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.reader import read_array, read_rank_into
from behemoth.checkpoint.records import RANKS_ARRAY, rank_records_spec
from behemoth.checkpoint.verify import require_committed, verify
from behemoth.ports import SavesTo
from behemoth.spec.mesh import Mesh
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, FaultyBucket, every_death
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, raw_bytes, save, toy_layout
from checkpoint.interop.rewriting import new_bucket, rewrite, small_parts
from checkpoint.random_layouts import CHUNK_BYTES, layouts, reshared, small_chunks

SEED = 1


def saved(layout: Layout) -> tuple[MemoryStore, Commit]:
    store = MemoryStore()
    return store, open_commit(store, save(store, layout, logical_arrays(layout, SEED), step=5).ref)


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    old=layouts(),
    chunk_bytes=CHUNK_BYTES,
    block_bytes=st.sampled_from([1, 40, 1000]),
    num_together=st.integers(1, 5),
    is_bucket=st.booleans(),
)
def test_every_array_is_the_same_on_any_other_layout_and_the_result_proves_intact(
    data: st.DataObject, old: Layout, chunk_bytes: int, block_bytes: int, num_together: int, is_bucket: bool
) -> None:
    new = data.draw(reshared(old))
    with small_chunks(chunk_bytes), small_parts():
        store, commit = saved(replace(old, sharding="array"))
        target: SavesTo = new_bucket() if is_bucket else MemoryStore()
        record = rewrite(store, commit, target, new, block_bytes=block_bytes, num_together=num_together)
        assert (record.step, record.run, record.mesh, record.layout_digest) == (5, "test", new.mesh, new.digest)
        made = open_commit(target, record.ref)
        for name, array in logical_arrays(old, SEED).items():
            assert raw_bytes(read_array(target, made, name)) == raw_bytes(array)
        assert verify(target, record.ref, threads=1, deep=True).is_intact
        assert not isinstance(target, MemoryBucket) or not list(target.list_uploads(""))


def test_what_a_rank_restores_from_it_is_what_it_would_restore_from_the_first_one() -> None:
    store, commit = saved(toy_layout())
    new = Layout(mesh=Mesh(tp=1, dp=3, edp=3), arrays=toy_layout().arrays)
    target = MemoryStore()
    made = open_commit(target, rewrite(store, commit, target, new).ref)
    for layout in (toy_layout(), new):
        for rank in range(layout.mesh.num_ranks):
            plan = plan_rank(layout, Rank(rank))
            both = [bytearray(plan.data_bytes), bytearray(plan.data_bytes)]
            read_rank_into(store, commit, layout, plan, memoryview(both[0]), threads=1)
            read_rank_into(target, made, layout, plan, memoryview(both[1]), threads=1)
            assert both[0] == both[1]
            assert any(both[0])


def test_records_of_ranks_are_blank_in_a_world_of_another_size() -> None:
    store, commit = saved(Layout(mesh=Mesh(dp=4, edp=4), arrays=(rank_records_spec(4, 16),)))
    target = MemoryStore()
    layout = Layout(mesh=Mesh(dp=3, edp=3), arrays=(rank_records_spec(3, 16),))
    made = open_commit(target, rewrite(store, commit, target, layout).ref)
    assert not read_array(target, made, RANKS_ARRAY).any()
    assert read_array(store, commit, RANKS_ARRAY).all()


def test_what_is_read_together_is_two_rows_of_chunks_within_bounds() -> None:
    def wide(num: int) -> Layout:
        spec = ArraySpec(name="w", dtype="uint8", shape=(1 << 20, 64 * num), dims=((1, "tp"),))
        return Layout(mesh=Mesh(tp=num, etp=num), arrays=(spec,))

    row_bytes = {num: grids(wide(num))[0].payload_bytes * num for num in (2, 8, 128)}
    assert 2 * row_bytes[2] < MIN_BATCH_BYTES < 2 * row_bytes[8] < MAX_BATCH_BYTES < 2 * row_bytes[128]
    assert batch_bytes(wide(2), wide(1)) == MIN_BATCH_BYTES
    assert batch_bytes(wide(2), wide(8)) == batch_bytes(wide(8), wide(2)) == 2 * row_bytes[8]
    assert batch_bytes(wide(128), wide(2)) == MAX_BATCH_BYTES


def test_a_reshard_that_dies_at_any_write_leaves_a_whole_checkpoint_or_rubbish_that_goes() -> None:
    with small_parts():
        store, commit = saved(toy_layout())
        layout = Layout(mesh=Mesh(tp=2, etp=2), arrays=commit.layout.arrays, sharding="box")
        counted = FaultyBucket(new_bucket())
        rewrite(store, commit, counted, layout)
        num_whole = 0
        for death in every_death(counted.num_writes):
            inner = new_bucket()
            with pytest.raises(Crash):
                rewrite(store, commit, FaultyBucket(inner, death), layout)
            found = commits(inner)
            assert all(verify(inner, one, threads=1, deep=True).is_intact for one in found), death
            inner.now_s = ORPHAN_AGE_S
            execute(inner, plan_gc(inner, in_flight=()))
            assert not list(inner.list_uploads("")), death
            assert bool(list(inner.list("steps"))) == bool(found), death
            num_whole += len(found)
        assert num_whole == 1


def test_a_failure_takes_away_objects_and_uploads_and_one_that_cannot_be_aborted_keeps_no_other() -> None:
    class FailsAtTheEnd(MemoryBucket):
        num_aborts = 0

        def complete_upload(self, key: str, upload_id: UploadId, **_: object) -> None:  # noqa: ARG002 (the port's)
            raise Unavailable(f"complete {key}: no answer")

        def abort_upload(self, key: str, upload_id: UploadId) -> None:
            self.num_aborts += 1
            if self.num_aborts == 1:
                raise Unavailable(f"abort {key}: no answer")
            super().abort_upload(key, upload_id)

    with small_chunks(32), small_parts():
        arrays = tuple(ArraySpec(name=name, dtype="uint8", shape=(400,)) for name in ("a", "b", "c"))
        store, commit = saved(Layout(mesh=Mesh(), arrays=arrays))
        bucket = FailsAtTheEnd(min_part_bytes=64)
        with pytest.raises(Unavailable, match=r"complete .*: no answer"):
            rewrite(store, commit, bucket, Layout(mesh=Mesh(dp=2, edp=2), arrays=arrays, sharding="box"))
        assert len(list(bucket.list_uploads(""))) == 1
        assert not list(bucket.list(""))


def test_a_flipped_bit_anywhere_in_what_is_read_makes_no_checkpoint() -> None:
    store, commit = saved(toy_layout())
    layout = Layout(mesh=Mesh(), arrays=commit.layout.arrays)
    for position in range(len(layout.arrays)):
        key = commit.shard_key(position, 0)
        store._objects[key][3] ^= 1
        target = MemoryStore()
        with pytest.raises(Corrupt, match=key):
            rewrite(store, commit, target, layout)
        assert not list(target.list(""))
        store._objects[key][3] ^= 1


def test_a_chunk_of_another_write_is_found_before_anything_is_written_although_its_own_crc_is_right() -> None:
    store, commit = saved(toy_layout())
    require_committed(store, commit.record.ref, threads=1)
    other = MemoryStore()
    save(other, toy_layout(), logical_arrays(toy_layout(), 2), step=5)
    key = commit.shard_key(commit.layout.positions["model/dense"], 0)
    store._objects[key] = other._objects[key]
    with pytest.raises(
        Corrupt, match=f"file {key}: array 'model/dense': expected CRC-32C .* chunks of another"
    ) as told:
        require_committed(store, commit.record.ref, threads=1)
    assert "behemoth ckpt verify" in told.value.hint
