"""A reshard to float8 reads each value once, in bounded memory, whatever shares a scale, and goes on after a kill."""

from __future__ import annotations

import signal
import threading
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.app.batches import reshard_job, run_writer
from behemoth.app.batches.record import Record, Unrecorded, recorded
from behemoth.app.batches.reshard_job import Reshard, reshard_work, reshard_writing
from behemoth.app.batches.scaled_units import ScaledUnits
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.app.batches.writing import WriteWork, write_in_batches
from behemoth.base.ids import Attempt, Step, WriteId
from behemoth.checkpoint import changes, scaled_reader
from behemoth.checkpoint.candidate import Candidate
from behemoth.checkpoint.chunk_parts import put
from behemoth.checkpoint.commit_log import commits
from behemoth.checkpoint.conversion import Intake, ScaledDown, ScalesOf, num_blocks
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.interop import resharded
from behemoth.checkpoint.interop.ingest import write_checkpoint
from behemoth.checkpoint.interop.relayout import Relayout
from behemoth.checkpoint.interop.resharded import reshard_units
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout, SplitAxes
from behemoth.checkpoint.matching import origins
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.paths import METADATA
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.verify import verify
from behemoth.ports import Into, ObjectStore, Part, SavesTo
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, FaultyBucket, FaultyStore, When
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import raw_bytes, save
from checkpoint.interop.rewriting import new_bucket, small_parts
from checkpoint.plain_scales import scaled
from checkpoint.random_layouts import CHUNK_BYTES, meshes, shared, small_chunks

STEP, WRITE = Step(5), WriteId("reshard-1")
FLOAT8 = "float8_e4m3fn"
CHUNK = 4 << 10
EXPERTS = (4, 128, 96)
ONE_EACH = (1, 128, 96)
"""A scale for each expert's matrix."""
SPREAD, WHOLE = Mesh(tp=4, ep=2, etp=2), Mesh()
LIMIT_S = 60.0
"""Of any wait: it ends a hang and judges no speed."""
Values = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Those of a job, small enough that little data goes beyond them."""

    batch_bytes: int = 4 << 10
    large_bytes: int = 16 << 10
    held_bytes: int = 1 << 20

    def set(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(resharded, "MIN_BATCH_BYTES", self.batch_bytes)
        patch.setattr(resharded, "MAX_BATCH_BYTES", self.large_bytes)
        patch.setattr(run_writer, "MAX_BATCH_BYTES", self.large_bytes)
        patch.setattr(resharded, "BLOCK_BYTES", self.batch_bytes)
        patch.setattr(resharded, "HELD_BYTES", self.held_bytes)
        patch.setattr(reshard_job, "HELD_BYTES", self.held_bytes)


def numbers(shape: tuple[int, ...], dtype: str) -> Values:
    values: Values = np.random.default_rng(7).normal(size=shape).astype(DTYPES[dtype])
    return values


def saved(values: dict[str, Values], mesh: Mesh, *, shares: Sequence[ArraySpec] = ()) -> tuple[MemoryStore, Commit]:
    """Under `model/NAME`; `shares` says how arrays are cut, else experts are over ep and etp."""
    cut = {spec.name: spec for spec in shares}
    specs = tuple(cut.get(f"model/{name}") or _spec(f"model/{name}", one) for name, one in values.items())
    store = MemoryStore()
    arrays = {f"model/{name}": one for name, one in values.items()}
    return store, open_commit(store, save(store, Layout(mesh=mesh, arrays=specs), arrays, step=STEP).ref)


def _spec(name: str, values: Values) -> ArraySpec:
    return ArraySpec(name=name, dtype=values.dtype.name, shape=values.shape, dims=((0, "ep"), (2, "etp")))


def to_float8(commit: Commit, mesh: Mesh, block: tuple[int, ...], *, is_bucket: bool) -> Relayout:
    """All arrays, each with an array of its scales beside it."""
    specs, convert = list[ArraySpec](), dict[str, ScaledDown | ScalesOf]()
    for spec in commit.layout.arrays:
        scale = spec.name.replace("model", "scale")
        whole: tuple[tuple[int, SplitAxes], ...] = ((0, "ep"),) if spec.dims else ()
        specs += [
            replace(spec, dtype=FLOAT8),
            ArraySpec(name=scale, dtype="float32", shape=num_blocks(spec.shape, block), dims=whole),
        ]
        convert |= {
            spec.name: ScaledDown(array=spec.name, block=block),
            scale: ScalesOf(array=spec.name, block=block),
        }
    layout = Layout(mesh=mesh, arrays=tuple(specs), sharding="box" if is_bucket else "array")
    return Relayout(layout=layout, intake=Intake(convert=dict(convert)))


def write(
    store: ObjectStore,
    commit: Commit,
    made: Relayout,
    target: SavesTo,
    *,
    record: Record | None = None,
    threads: int = 1,
    told: threading.Event | None = None,
) -> Reshard:
    """`told` is set when the work is told to stop."""

    def opened(_job: bytes) -> WriteWork:
        work = reshard_work(store, commit, made, target, WRITE)
        if told is not None:
            _tell_of_stop(work, told)
        return work

    found = reshard_writing(commit, made, target, threads=threads)
    executor = ThreadExecutor(threads=threads, open_work=opened)
    write_checkpoint(
        target,
        Candidate(run="test", step=STEP, write_id=WRITE, attempt=Attempt(1)),
        made.layout,
        write_in_batches(executor, b"job", found.writing, record or Unrecorded(), progress=lambda _done, _total: None),
        keeps_unfinished=True,
    )
    return found


def _tell_of_stop(work: WriteWork, told: threading.Event) -> None:
    stop = work.stop

    def stopped() -> None:
        stop()
        told.set()

    vars(work)["stop"] = stopped


def assert_scaled(target: SavesTo, values: dict[str, Values], block: tuple[int, ...]) -> None:
    """As numpy scales the whole array; and proven."""
    (ref,) = commits(target)
    assert isinstance(ref, CommitRef)
    assert verify(target, ref, threads=1, deep=True).is_intact
    commit = open_commit(target, ref)
    for name, one in values.items():
        stored, scales = scaled(one, block, FLOAT8)
        assert raw_bytes(read_array(target, commit, f"model/{name}")) == raw_bytes(stored)
        assert raw_bytes(read_array(target, commit, f"scale/{name}")) == raw_bytes(scales)


def new_target(*, is_bucket: bool) -> MemoryStore | MemoryBucket:
    return new_bucket() if is_bucket else MemoryStore()


@pytest.mark.parametrize("is_bucket", [False, True], ids=["folder", "bucket"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "block", [(1, 8, 8), (1, 20, 20), ONE_EACH, EXPERTS], ids=["aligned", "astride", "a matrix", "the stack"]
)
@pytest.mark.parametrize(
    ("before", "after"), [(SPREAD, WHOLE), (WHOLE, SPREAD), (Mesh(tp=4, ep=4), SPREAD)], ids=["join", "cut", "turn"]
)
def test_every_value_is_read_once_whatever_shares_a_scale(
    monkeypatch: pytest.MonkeyPatch, before: Mesh, after: Mesh, block: tuple[int, ...], dtype: str, is_bucket: bool
) -> None:
    Limits().set(monkeypatch)
    values = {"experts": numbers(EXPERTS, dtype), "small": numbers((4, 16, 8), dtype)}
    with small_chunks(CHUNK), small_parts():
        store, commit = saved(values, before)
        target, counting = new_target(is_bucket=is_bucket), CountingStore(store)
        found = write(counting, commit, to_float8(commit, after, block, is_bucket=is_bucket), target)
        assert_scaled(target, values, block)
    assert found.again_bytes == 0
    assert counting.read_bytes <= 1.01 * sum(one.nbytes for one in values.values())


@pytest.mark.parametrize(("held_rows", "again_rows"), [(128, 0), (127, 4), (64, 64), (4, 124)])
def test_of_a_matrix_that_memory_does_not_hold_the_rest_is_read_twice_and_told(
    monkeypatch: pytest.MonkeyPatch, held_rows: int, again_rows: int
) -> None:
    """Of 128 rows, each a chunk, and four of them one of the result."""
    values = {"w": numbers((128, 256), "float32")}
    row_bytes = 256 * 4
    Limits(batch_bytes=1, held_bytes=held_rows * (row_bytes + 256)).set(monkeypatch)
    with small_chunks(row_bytes):
        store, commit = saved(values, WHOLE, shares=[_plain("model/w", values["w"])])
        target, counting = MemoryStore(), CountingStore(store)
        made = to_float8(commit, WHOLE, (128, 256), is_bucket=False)
        found = write(counting, commit, made, target)
        assert_scaled(target, values, (128, 256))
    assert found.again_bytes == again_rows * row_bytes
    assert counting.read_bytes == pytest.approx((128 + again_rows) * row_bytes, rel=0.02)


def _plain(name: str, values: Values) -> ArraySpec:
    return ArraySpec(name=name, dtype=values.dtype.name, shape=values.shape)


def test_a_batch_holds_no_more_than_allowed_and_large_ones_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four matrices of 512 KiB in float32, each with one scale, on four threads; what is allocated is counted."""
    matrix_bytes = 512 << 10
    values = {f"w{number}": numbers((256, 512), "float32") for number in range(4)}
    limits = Limits(batch_bytes=16 << 10, large_bytes=64 << 10, held_bytes=matrix_bytes * 5 // 4)
    limits.set(monkeypatch)
    monkeypatch.setattr(changes, "_BLOCK_ELEMENTS", 4096)
    with small_chunks(16 << 10):
        store, commit = saved(values, WHOLE, shares=[_plain(f"model/{name}", one) for name, one in values.items()])
        made = to_float8(commit, WHOLE, (256, 512), is_bucket=False)
        peaks = []
        for _ in range(2):  # what is computed once has been, then
            target, counting = MemoryStore(), CountingStore(store)
            tracemalloc.start()
            write(counting, commit, made, target, threads=4)
            peaks.append(tracemalloc.get_traced_memory()[1] - sum(map(len, target._objects.values())))
            tracemalloc.stop()
        assert_scaled(target, values, (256, 512))
    assert counting.read_bytes <= 1.01 * 4 * matrix_bytes
    assert peaks[-1] < 2 * limits.held_bytes


@pytest.mark.parametrize("is_bucket", [False, True], ids=["folder", "bucket"])
def test_killed_at_any_write_it_goes_on_behind_the_batches_that_are_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_bucket: bool
) -> None:
    Limits().set(monkeypatch)
    values = {name: numbers((2, 32, 32), "float32") for name in "ab"}
    block = (1, 32, 32)

    def go(folder: Path, target: SavesTo) -> tuple[int, int]:
        """Batches that were done before, and bytes that were read now."""
        counting = CountingStore(store)
        made = to_float8(commit, WHOLE, block, is_bucket=is_bucket)
        with recorded(folder, verb="reshard", job=b"job", note=WRITE) as record:
            num_done = len(record.done())
            write(counting, commit, made, target, record=record)
        return num_done, counting.read_bytes

    with small_chunks(2 << 10), small_parts():
        store, commit = saved(values, SPREAD)
        faulty: Any = FaultyBucket if is_bucket else FaultyStore
        counted = faulty(new_target(is_bucket=is_bucket))
        _, whole_bytes = go(tmp_path / "counted", counted)
        most_done = 0
        for number in range(counted.num_writes - 1):
            inner, folder = new_target(is_bucket=is_bucket), tmp_path / str(number)
            with pytest.raises(Crash):
                go(folder, faulty(inner, Die(write=number, when=When.AFTER)))
            num_done, again_bytes = go(folder, inner)
            assert_scaled(inner, values, block)
            assert (num_done > 0) == (again_bytes < whole_bytes)
            most_done = max(most_done, num_done)
        assert most_done == 1


class Moment:
    """The `number`-th of some calls, at which ctrl-C comes; that call goes on once the work was told of it."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._lock = threading.Lock()
        self.told = threading.Event()
        self.num_behind = 0

    def pass_by(self) -> None:
        with self._lock:
            self._left -= 1
            is_it = self._left == 0
            self.num_behind += self._left < 0 and self.told.is_set()
        if is_it:
            ident = threading.main_thread().ident
            assert ident is not None
            signal.pthread_kill(ident, signal.SIGINT)
            assert self.told.wait(LIMIT_S)


class ReadsPassing(CountingStore):
    """Reads pass by a moment."""

    def __init__(self, inner: ObjectStore, moment: Moment) -> None:
        super().__init__(inner)
        self._moment = moment

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self._moment.pass_by()
        super().read_into(key, offset_bytes=offset_bytes, into=into)


class PutsPassing:
    """Conversions of a part of a chunk pass by `moment`."""

    moment = Moment(0)

    def __call__(self, *arguments: Any) -> None:
        self.moment.pass_by()
        put(*arguments)


class WritesPassing(MemoryStore):
    """Writes to objects of the checkpoint pass by `moment`."""

    moment = Moment(0)

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        if not key.endswith(METADATA):  # a small one, and another with it
            self.moment.pass_by()
        super().write_parts(key, size_bytes=size_bytes, parts=parts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("of", "numbers_of"),
    [("read", (1, 2, 30, 64, 65, 100, 128)), ("conversion", (1, 2, 64, 65, 100)), ("write", (1, 2, 4, 5, 6, 9))],
)
def test_an_interrupt_ends_a_large_batch_at_once_and_the_next_call_goes_on_behind_those_that_are_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, of: str, numbers_of: Sequence[int], threads: int
) -> None:
    """Two matrices of 64 chunks, each with one scale: all of a matrix is read, then converted, then written."""
    Limits(batch_bytes=2 << 10, large_bytes=4 << 10).set(monkeypatch)
    converted = PutsPassing()
    monkeypatch.setattr(scaled_reader, "put", converted)
    values = {name: numbers((64, 128), "float32") for name in "ab"}
    block = (64, 128)

    def go(folder: Path, target: WritesPassing, moment: Moment) -> tuple[int, int]:
        """Batches that were done before, and bytes that were read now."""
        counting = ReadsPassing(store, moment if of == "read" else Moment(0))
        target.moment = moment if of == "write" else Moment(0)
        converted.moment = moment if of == "conversion" else Moment(0)
        made = to_float8(commit, WHOLE, block, is_bucket=False)
        with recorded(folder, verb="reshard", job=b"job", note=WRITE) as record:
            num_done = len(record.done())
            write(counting, commit, made, target, record=record, threads=threads, told=moment.told)
        return num_done, counting.read_bytes

    with small_chunks(512):
        store, commit = saved(values, WHOLE, shares=[_plain(f"model/{name}", one) for name, one in values.items()])
        most_done = 0
        for number in numbers_of:
            target, folder, moment = WritesPassing(), tmp_path / str(number), Moment(number)
            with pytest.raises(KeyboardInterrupt):
                go(folder, target, moment)
            assert moment.num_behind < threads
            num_done, again_bytes = go(folder, target, Moment(0))
            assert_scaled(target, values, block)
            assert again_bytes == pytest.approx((2 - num_done) * 64 * 512, rel=0.05)
            most_done = max(most_done, num_done)
        assert most_done >= 1


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3).map(tuple),
    chunk_bytes=CHUNK_BYTES,
    block_bytes=st.sampled_from([1, 40, 1000]),
    run_bytes=st.sampled_from([1, 60, 500]),
    held_bytes=st.sampled_from([1, 100, 600, 1 << 20]),
    is_bucket=st.booleans(),
)
def test_batches_and_runs_have_each_unit_once_and_no_run_more_than_allowed(
    data: st.DataObject,
    shape: tuple[int, ...],
    chunk_bytes: int,
    block_bytes: int,
    run_bytes: int,
    held_bytes: int,
    is_bucket: bool,
) -> None:
    """And what comes out is right, on random meshes and shares."""
    was, now = data.draw(meshes()), data.draw(meshes())
    block = tuple(data.draw(st.sampled_from([1, 2, 5, 128])) for _ in shape)
    values = {"w": numbers(shape, "float32")}
    with small_chunks(chunk_bytes), small_parts(), pytest.MonkeyPatch.context() as patch:
        Limits(batch_bytes=run_bytes, large_bytes=run_bytes, held_bytes=held_bytes).set(patch)
        patch.setattr(resharded, "BLOCK_BYTES", block_bytes)
        store, commit = saved(values, was, shares=[data.draw(shared(_plain("model/w", values["w"]), was))])
        made = to_float8(commit, now, block, is_bucket=is_bucket)
        arrays = tuple(data.draw(shared(spec, now)) for spec in made.layout.arrays)
        made = replace(made, layout=replace(made.layout, arrays=arrays))
        target, counting = new_target(is_bucket=is_bucket), CountingStore(store)
        found = write(counting, commit, made, target)
        assert_scaled(target, values, block)
        _assert_planned(commit, made, found, target, run_bytes=run_bytes, held_bytes=held_bytes)


def _assert_planned(
    commit: Commit, made: Relayout, found: Reshard, target: SavesTo, *, run_bytes: int, held_bytes: int
) -> None:
    origin = origins(commit.layout, made.layout, step=STEP, intake=made.intake)
    scaled_units = ScaledUnits(
        saved=commit.layout, layout=made.layout, found=origin, run_bytes=run_bytes, limit_bytes=held_bytes
    )
    units = reshard_units(made.layout, target, origin)
    together = scaled_units.together(units)
    assert together == found.writing.together
    assert sorted(number for ranges in together for one in ranges for number in one) == list(range(len(units)))
    for ranges in together:
        batch = [units[number] for one in ranges for number in one]
        runs = scaled_units.runs(batch)
        assert sorted(map(repr, (unit for run in runs for unit in run.units))) == sorted(map(repr, batch))
        for run in runs:
            converted = [unit for unit in run.units if made.layout.arrays[unit.array].dtype == FLOAT8]
            scale_bytes = sum(unit.num_bytes for unit in run.units if unit not in converted)
            assert len(converted) <= 1 or run.held_bytes - scale_bytes <= held_bytes
