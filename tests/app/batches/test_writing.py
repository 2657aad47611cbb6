"""Writing a checkpoint in batches: the same command goes on with the same write, in a folder and in a bucket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from behemoth.app.batches.record import Record, Unrecorded, drop_record, recorded
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.app.batches.writing import WriteWork, Writing, finished, new_write, require_written, write_in_batches
from behemoth.base.errors import Conflict, Corrupt
from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.commit_log import commits, reject
from behemoth.checkpoint.commit_record import CommitRecord
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.filling import least_bytes
from behemoth.checkpoint.interop import resharded
from behemoth.checkpoint.interop.ingest import write_checkpoint
from behemoth.checkpoint.interop.resharded import CheckpointSource, batch_bytes
from behemoth.checkpoint.interop.unit_writer import UnitWriter
from behemoth.checkpoint.interop.units import units_of
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.marker import put_up
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.paths import DELETING, step_prefix
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectStore, SavesTo
from behemoth.spec.mesh import Mesh
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, FaultyBucket, FaultyStore, When
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, save
from checkpoint.interop.rewriting import new_bucket, small_parts
from checkpoint.random_layouts import small_chunks

STEP = Step(5)
JOB = b"job"
FIRST, SECOND = new_write("test", JOB), new_write("test", JOB)
ARRAYS = (
    ArraySpec(name="w", dtype="uint8", shape=(64, 32), dims=((1, "tp"),)),
    ArraySpec(name="v", dtype="float32", shape=(9,)),
)
NEW = Layout(mesh=Mesh(tp=2, etp=2), arrays=ARRAYS, sharding="box")


def source() -> tuple[MemoryStore, Commit]:
    store = MemoryStore()
    layout = Layout(mesh=Mesh(dp=2, edp=2), arrays=ARRAYS)
    return store, open_commit(store, save(store, layout, logical_arrays(layout, 1), step=STEP).ref)


def writing_to(store: SavesTo, layout: Layout = NEW, *, size_bytes: int = 200, block_bytes: int = 64) -> Writing:
    units = units_of(layout, block_bytes=block_bytes, least_bytes=partial(least_bytes, store))
    return Writing(layout=layout, units=units, batch_bytes=size_bytes)


def write(
    given: ObjectStore, commit: Commit, store: SavesTo, writing: Writing, record: Record, write_id: WriteId
) -> CommitRecord:
    arrays = CheckpointSource(given, commit, writing.layout, origins(commit.layout, writing.layout, step=STEP))
    writer = UnitWriter(store, step_prefix(STEP, write_id), writing.layout, arrays)
    executor = ThreadExecutor(threads=1, open_work=lambda _: WriteWork(writing.units, writer, threading.Event()))
    return write_checkpoint(
        store,
        Candidate(run="r", step=STEP, write_id=write_id, attempt=Attempt(1)),
        writing.layout,
        write_in_batches(executor, b"job", writing, record, progress=lambda _done, _total: None),
        keeps_unfinished=True,
    )


def resumable(folder: Path, store: SavesTo, fresh: WriteId, *, job: bytes = JOB) -> tuple[int, WriteId]:
    """One call of the command: batches that were done before, and the write that it went on with, or had ended."""
    given, commit = source()
    writing = writing_to(store)
    if (done := finished(store, STEP, verb="test", job=job)) is not None:
        drop_record(folder, verb="test", job=job)
        return len(writing.batches()), done.write_id
    with recorded(folder, verb="test", job=job, note=fresh) as record:
        num_done = len(record.done())
        write_id = require_written(store, STEP, writing, record, fresh)
        write(given, commit, store, writing, record, write_id)
    return num_done, write_id


KINDS = pytest.mark.parametrize(
    ("new", "faulty"), [(MemoryStore, FaultyStore), (new_bucket, FaultyBucket)], ids=["folder", "bucket"]
)


@KINDS
def test_killed_at_any_write_the_same_command_goes_on_under_the_same_name_and_leaves_nothing_behind(
    tmp_path: Path, new: Callable[[], MemoryStore | MemoryBucket], faulty: Callable[..., SavesTo]
) -> None:
    with small_chunks(32), small_parts():
        counted = faulty(new())
        resumable(tmp_path / "counted", counted, FIRST)
        num_writes = counted.num_writes  # type: ignore[union-attr]
        num_done = []
        for number in range(num_writes):
            inner, folder = new(), tmp_path / str(number)
            begun = uploads_of(inner)
            with pytest.raises(Crash):
                resumable(folder, faulty(inner, Die(write=number, when=When.AFTER)), FIRST)
            is_committed = bool(commits(inner))
            assert is_committed == (number == num_writes - 1)
            again = faulty(inner)
            done, write_id = resumable(folder, again, SECOND)
            assert is_committed == (again.num_writes == 0)  # type: ignore[union-attr]
            num_done.append(done)
            assert write_id == FIRST
            (one,) = commits(inner)
            assert verify(inner, one, threads=1, deep=True).is_intact, number
            assert {info.key.split("/")[1] for info in inner.list("steps")} == {f"000000005-{FIRST}"}
            assert not isinstance(inner, MemoryBucket) or not list(inner.list_uploads(""))
            assert len(begun) == len(set(begun))  # none for nothing: bytes that nobody completes cost money
            assert not list(folder.iterdir())
        assert (min(num_done), max(num_done) >= 8) == (0, True)


@pytest.mark.parametrize("new", [MemoryStore, new_bucket], ids=["folder", "bucket"])
def test_a_finished_result_is_that_of_its_own_job_alone_and_only_while_it_is_whole(
    tmp_path: Path, new: Callable[[], MemoryStore | MemoryBucket]
) -> None:
    with small_chunks(32), small_parts():
        inner = new()
        resumable(tmp_path, inner, FIRST)
        with pytest.raises(Conflict, match="expected no checkpoint of step 5, got write ") as caught:
            resumable(tmp_path, inner, SECOND, job=b"another")
        assert caught.value.code == "import-taken"
        (one,) = commits(inner)
        reject(inner, one, "a run took the store")
        assert resumable(tmp_path, inner, SECOND)[1] == SECOND
        for suffix in ("/0", "index", "zarr.json"):
            other = new()
            resumable(tmp_path, other, FIRST)
            other.delete([next(info.key for info in other.list("steps") if info.key.endswith(suffix))])
            with pytest.raises(Corrupt):
                resumable(tmp_path, other, SECOND)


def uploads_of(store: MemoryStore | MemoryBucket) -> list[str]:
    """Filled with the keys of the uploads that are begun there from now on."""
    begun: list[str] = []
    if isinstance(store, MemoryBucket):
        begin = store.begin_upload
        store.begin_upload = lambda key: (begun.append(key), begin(key))[1]  # type: ignore[method-assign,func-returns-value]
    return begun


@pytest.mark.parametrize("gone", ["shard", "zarr.json", "its size", "all of it, soon"])
@KINDS
def test_what_was_cleared_away_meanwhile_is_written_again_under_another_name(
    tmp_path: Path, new: Callable[[], MemoryStore | MemoryBucket], faulty: Callable[..., SavesTo], gone: str
) -> None:
    with small_chunks(32), small_parts():
        inner = new()
        with pytest.raises(Crash):
            resumable(tmp_path, faulty(inner, Die(write=16, when=When.AFTER)), FIRST)
        if gone == "zarr.json":
            inner.delete([next(info.key for info in inner.list("steps") if info.key.endswith(gone))])
        elif gone == "its size":
            key = next(info.key for info in inner.list("steps") if "/c/" in info.key)
            inner.delete([key])
            inner.create(key, b"short")
        elif gone == "all of it, soon":  # it was committed, and gc has taken the commit away, but no object yet
            put_up(inner, DELETING, (STEP, FIRST), reason="it is being deleted")
        elif isinstance(inner, MemoryBucket):
            for upload in list(inner.list_uploads("")):
                inner.abort_upload(upload.key, upload.upload_id)
        else:
            inner.delete([next(info.key for info in inner.list("steps") if "/c/" in info.key)])
        assert resumable(tmp_path, inner, SECOND)[1] == SECOND
        (one,) = commits(inner)
        assert verify(inner, one, threads=1, deep=True).is_intact


def test_an_object_that_is_whole_takes_no_part_whose_record_was_lost(tmp_path: Path) -> None:
    with small_chunks(32), small_parts():
        counted = FaultyBucket(new_bucket())
        resumable(tmp_path / "counted", counted, FIRST)
        inner = new_bucket()
        with pytest.raises(Crash):
            resumable(tmp_path, FaultyBucket(inner, Die(write=counted.num_writes - 1, when=When.BEFORE)), FIRST)
        assert not list(inner.list_uploads(""))
        (record,) = tmp_path.glob("*.jsonl")
        record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:-1]))  # a power cut may do that
        assert resumable(tmp_path, inner, SECOND)[1] == SECOND
        (one,) = commits(inner)
        assert verify(inner, one, threads=1, deep=True).is_intact


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (2, 8)])
def test_the_source_is_read_about_once_whatever_is_cut_where(before: int, after: int) -> None:
    spec = ArraySpec(name="w", dtype="uint8", shape=(512, 256), dims=((1, "tp"),))
    with small_chunks(1 << 10), small_parts(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(resharded, "MIN_BATCH_BYTES", 1 << 10)
        old = Layout(mesh=Mesh(tp=before, etp=before), arrays=(spec,))
        new = Layout(mesh=Mesh(tp=after, etp=after), arrays=(spec,), sharding="box")
        store, target = MemoryStore(), new_bucket()
        commit = open_commit(store, save(store, old, logical_arrays(old, 1), step=STEP).ref)
        counting = CountingStore(store)
        size_bytes = batch_bytes(old, new)
        assert size_bytes == 2 * 8 << 10  # a row of eight chunks, twice
        writing = writing_to(target, new, size_bytes=size_bytes, block_bytes=1 << 10)
        assert len(writing.batches()) >= 8
        write(counting, commit, target, writing, Unrecorded(), WriteId("one"))
        assert counting.read_bytes <= 1.1 * spec.num_bytes
