"""Exports as the safetensors library reads them, and what is left when one is cut off anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Invalid, Unavailable
from behemoth.base.ids import UploadId
from behemoth.checkpoint import filling
from behemoth.checkpoint.box import Box
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop import casts, export_plan
from behemoth.checkpoint.interop import export as export_module
from behemoth.checkpoint.interop.cells import Scaling
from behemoth.checkpoint.interop.export import INDEX, UNFINISHED, export, kept_files
from behemoth.checkpoint.interop.export_plan import SINGLE, ExportPlan, FilePlan, plan_export
from behemoth.checkpoint.interop.foreign import read_model
from behemoth.checkpoint.interop.stored import stored_tensors
from behemoth.checkpoint.interop.tensors import Raw, Tensor, read_box
from behemoth.checkpoint.interop.views import Permuted
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.checkpoint.paths import probe_key
from behemoth.ports import ObjectStore, Part, PartReceipt, SavesTo, WritesRanges
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from behemoth.testing.bucket import MemoryBucket
from behemoth.testing.faults import Crash, Die, Fail, FaultyBucket, FaultyStore, When, every_death
from behemoth.testing.store import MemoryStore, contents
from checkpoint.checkpoint_rig import logical_arrays, raw_bytes, save, toy_layout
from checkpoint.interop.tensor_trees import chunked, read
from checkpoint.random_layouts import small_chunks

PLAIN = "bool int8 int16 int32 int64 uint8 float16 float32 float64 bfloat16 float8_e4m3fn float8_e5m2 complex64"


def layout_of_dtypes() -> Layout:
    """Every dtype that torch reads, ways of sharing of the toy, and an array of several chunks with gaps behind."""
    extra = [ArraySpec(name=f"dtype/{name}", dtype=name, shape=(3, 5)) for name in PLAIN.split()]
    extra.append(ArraySpec(name="big", dtype="float32", shape=(3, 1300, 2048), dims=((2, "tp"),), flat_over="dp"))
    toy = toy_layout()
    return Layout(mesh=toy.mesh, arrays=(*toy.arrays, *extra))


def opened(store: WritesRanges, layout: Layout, arrays: Mapping[str, np.ndarray]) -> Commit:
    return open_commit(store, save(store, layout, arrays, step=1).ref)


def loaded(folder: Path) -> dict[str, bytes]:
    """All tensors of a folder by the library alone, as bytes with dtype and shape in front; each once."""
    found: dict[str, bytes] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened_file:
            for name in opened_file.keys():  # noqa: SIM118 (no mapping)
                assert name not in found
                tensor = opened_file.get_tensor(name)
                found[name] = described(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), bits(tensor))
    return found


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def described(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    return f"{dtype}{shape}".encode() + data


def expected(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: described(array.dtype.name, array.shape, raw_bytes(array)) for name, array in arrays.items()}


def small_plan() -> tuple[ExportPlan, dict[str, np.ndarray]]:
    """The toy in four files."""
    store, layout = MemoryStore(), toy_layout()
    arrays = logical_arrays(layout, 1)
    tensors = stored_tensors(store, opened(store, layout, arrays), threads=1)
    plan = plan_export(tensors, max_file_bytes=300, metadata={"format": "pt"})
    assert len(plan.files) == 4
    return plan, arrays


@pytest.mark.parametrize(("max_file_bytes", "num_files"), [(5 << 30, 1), (8 << 20, 2), (1, 22)])
def test_the_safetensors_library_reads_every_array_bit_for_bit(
    tmp_path: Path, max_file_bytes: int, num_files: int
) -> None:
    layout = layout_of_dtypes()
    arrays = logical_arrays(layout, 3)
    arrays["dtype/bool"] = arrays["dtype/int8"] % 2 == 0
    source, folder = LocalStore(tmp_path / "run"), LocalStore(tmp_path / "out")
    tensors = stored_tensors(source, opened(source, layout, arrays), threads=3)
    plan = plan_export(tensors, max_file_bytes=max_file_bytes, metadata={"format": "pt", "x": "y"})
    export(folder, plan)
    assert loaded(tmp_path / "out") == expected(arrays)
    files = sorted(file.name for file in (tmp_path / "out").iterdir() if file.suffix == ".safetensors")
    assert len(files) == num_files
    assert (SINGLE in files) == (num_files == 1) == (not (tmp_path / "out" / INDEX).exists())
    with safe_open(tmp_path / "out" / files[0], framework="np") as opened_file:
        assert opened_file.metadata() == {"format": "pt", "x": "y"}
    source.close()
    folder.close()


def test_the_index_says_which_file_has_a_tensor_and_how_large_all_are(tmp_path: Path) -> None:
    plan, arrays = small_plan()
    export(LocalStore(tmp_path), plan)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": sum(array.nbytes for array in arrays.values())}
    assert index["weight_map"].keys() == arrays.keys()
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="np") as opened_file:
            assert name in opened_file.keys()  # noqa: SIM118 (no mapping)


def test_a_tensor_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_plan, "BLOCK_BYTES", 64)
    array = np.arange(400, dtype=np.float32).reshape(20, 20)
    tensor = chunked(array, (3, 20))
    longest = 0

    class Watched(LocalStore):
        def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
            nonlocal longest
            longest = max(longest, *(len(bytes(buffer)) for part in parts for buffer in part.buffers))
            super().write_parts(key, size_bytes=size_bytes, parts=parts)

    plan = plan_export({"w": tensor}, max_file_bytes=1 << 20, metadata={})
    folder = Watched(tmp_path)
    export(folder, plan)
    assert longest <= max(64, len(plan.files[0].header))
    assert read(read_model(folder, threads=1).tensors["w"]).tobytes() == array.tobytes()


@pytest.mark.parametrize("new", [LocalStore, lambda _: MemoryBucket(min_part_bytes=64)], ids=["folder", "bucket"])
@pytest.mark.parametrize(
    ("scaling", "times"),
    [
        ("block", 1),
        ("channel", 1),
        ("tensor", 2),  # it is larger than what is held at a time
    ],
)
def test_a_tensor_is_read_once_for_values_and_scales_that_need_no_more_than_a_block_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: Callable[[Path], SavesTo], scaling: Scaling, times: int
) -> None:
    monkeypatch.setattr(export_plan, "BLOCK_BYTES", 256 * 64)
    monkeypatch.setattr(filling, "MIN_PART_BYTES", 64)
    monkeypatch.setattr(filling, "PIECE_BYTES", 64)
    spec = ArraySpec(name="w", dtype="bfloat16", shape=(1024, 64))
    with small_chunks(128 * 64 * 2):
        layout, memory = Layout(mesh=Mesh(), arrays=(spec,)), MemoryStore()
        commit = opened(memory, layout, logical_arrays(layout, 1))
        store, target = CountingStore(memory), new(tmp_path)
        tensors = casts.converted(stored_tensors(store, commit, threads=1), "float8_e4m3fn", scaling=scaling)
        export(target, plan_export(tensors, max_file_bytes=1 << 20, metadata={}))
        grid = grids(layout)[0]
        assert grid.chunk_shape[0] == 128
        read_bytes = store.read_bytes - grid.num_chunks * TRAILER_BYTES  # the CRCs come first
        assert read_bytes == times * grid.num_chunks * grid.stride_bytes
        found = read_model(target, threads=1).tensors
        assert {name: read(found[name]).tobytes() for name in tensors} == {
            name: read(one).tobytes() for name, one in tensors.items()
        }


@pytest.mark.parametrize(
    ("new", "dtype", "times"),
    [
        (LocalStore, None, 1),
        (LocalStore, "float8_e4m3fn", 2),  # once for the scale
        (lambda _: MemoryBucket(min_part_bytes=64), None, 8),  # a grain of 128 KiB in blocks of 16
    ],
    ids=["folder", "folder, float8", "bucket"],
)
def test_a_transposed_tensor_is_read_once_into_a_folder_and_in_few_turns_into_a_bucket(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    new: Callable[[Path], SavesTo],
    dtype: str | None,
    times: int,
) -> None:
    monkeypatch.setattr(export_plan, "BLOCK_BYTES", 4 << 10)
    monkeypatch.setattr(export_plan, "WIDE_BYTES", 16 << 10)
    monkeypatch.setattr(casts, "_BLOCK_BYTES", 4 << 10)
    monkeypatch.setattr(filling, "MIN_PART_BYTES", 64)
    monkeypatch.setattr(filling, "PIECE_BYTES", 64)
    spec = ArraySpec(name="w", dtype="bfloat16", shape=(256, 512), dims=((1, "tp"),))
    held: list[int] = []

    def noted(tensor: Tensor, box: Box) -> Raw:
        data = read_box(tensor, box)
        held.append(data.nbytes)
        return data

    monkeypatch.setattr(export_module, "read_box", noted)
    with small_chunks(2 << 10):
        layout, memory = Layout(mesh=Mesh(tp=2, etp=2), arrays=(spec,)), MemoryStore()
        arrays = logical_arrays(layout, 1)
        commit = opened(memory, layout, arrays)
        store, target = CountingStore(memory), new(tmp_path)
        turned = Permuted(inner=stored_tensors(store, commit, threads=2)["w"], order=(1, 0))
        tensors: dict[str, Tensor] = {"w": turned}
        plan = plan_export(
            tensors if dtype is None else casts.converted(tensors, dtype), max_file_bytes=1 << 20, metadata={}
        )
        export(target, plan)
        grid = grids(layout)[0]
        once_bytes = grid.num_chunks * grid.stride_bytes
        assert store.read_bytes - grid.num_chunks * TRAILER_BYTES == times * once_bytes  # the CRCs come first
        assert max(held) <= (16 << 10 if isinstance(target, MemoryBucket) else 4 << 10)
        if dtype is None:
            found = read(read_model(target, threads=1).tensors["w"])
            assert found.tobytes() == np.ascontiguousarray(arrays["w"].T).tobytes()


def test_every_tensor_begins_at_a_multiple_of_its_element() -> None:
    tensors: dict[str, Tensor] = {
        "a": chunked(np.ones(3, np.int8)),
        "b": chunked(np.ones(3, np.float64)),
        "c": chunked(np.ones(1, np.float32)),
    }
    (file,) = plan_export(tensors, max_file_bytes=1 << 20, metadata={}).files
    assert [(tensor.dtype, offset % 8) for tensor, offset in file.tensors] == [
        ("float64", 0),
        ("float32", 0),
        ("int8", 4),
    ]


def test_a_flipped_bit_of_the_source_stops_the_export_and_no_file_of_it_gets_its_name() -> None:
    store, layout = MemoryStore(), toy_layout()
    commit = opened(store, layout, logical_arrays(layout, 1))
    for position, array in enumerate(layout.arrays):
        key = commit.shard_key(position, 0)
        for at in range(0, store_size(store, key) - 4, 7):
            if at in index_bytes(commit, position):
                continue
            store._objects[key][at] ^= 4
            fresh = plan_export(stored_tensors(store, commit, threads=1), max_file_bytes=300, metadata={})
            folder = MemoryStore()
            with pytest.raises(Corrupt, match=f"array '{array.name}', .* file {key}"):
                export(folder, fresh)
            assert INDEX not in names(folder)
            assert not any(name.startswith(UNFINISHED) for name in names(folder))
            store._objects[key][at] ^= 4
    export(MemoryStore(), plan_export(stored_tensors(store, commit, threads=1), max_file_bytes=300, metadata={}))


def index_bytes(commit: Commit, position: int) -> range:
    """Of a shard's own index, from which nothing is exported."""
    grid = grids(commit.layout)[position]
    return range(grid.index_offset_bytes, grid.file_bytes)


def store_size(store: ObjectStore, key: str) -> int:
    return next(info.size_bytes for info in store.list("") if info.key == key)


def names(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list("")]


def test_a_chunk_of_another_write_is_found_although_its_own_crc_is_right() -> None:
    store, layout = MemoryStore(), toy_layout()
    commit = opened(store, layout, logical_arrays(layout, 1))
    other = MemoryStore()
    opened(other, layout, logical_arrays(layout, 2))
    key = commit.shard_key(layout.positions["model/dense"], 0)
    store._objects[key] = other._objects[key]
    with pytest.raises(
        Corrupt, match=r"'model/dense', the CRCs beside its chunks, .*expected those that were committed"
    ):
        export(MemoryStore(), plan_export(stored_tensors(store, commit, threads=1), max_file_bytes=300, metadata={}))


def test_an_export_that_dies_at_any_write_leaves_whole_files_only_and_goes_on_when_told_again() -> None:
    plan, _ = small_plan()
    counted = FaultyStore(MemoryStore())
    export(counted, plan)
    whole = contents(counted)
    for death in every_death(counted.num_writes):
        inner = MemoryStore()
        with pytest.raises(Crash):
            export(FaultyStore(inner, death), plan)
        after = inner.after_power_loss(seed=death.write)
        left = {name: data for name, data in contents(after).items() if not name.startswith(UNFINISHED)}
        assert left.items() <= whole.items(), death
        assert INDEX not in left or left == whole, death
        done = export(after, plan)
        assert contents(after) == whole, death
        assert set(done.kept) == left.keys() - {INDEX}
        assert set(done.kept) | set(done.written) == whole.keys() - {INDEX}


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads of parts of 64 bytes and more, made of blocks of at most 32."""
    monkeypatch.setattr(filling, "MIN_PART_BYTES", 64)
    monkeypatch.setattr(filling, "PIECE_BYTES", 64)
    monkeypatch.setattr(export_plan, "BLOCK_BYTES", 32)


@pytest.mark.usefixtures("_small_parts")
def test_a_bucket_gets_the_same_files_in_parts_none_of_which_is_larger_than_it_must_be() -> None:
    tensors: dict[str, Tensor] = {
        name: chunked(np.arange(size, dtype=np.float32), (8,)) for name, size in (("a", 3), ("b", 400), ("c", 17))
    }
    plan = plan_export(tensors, max_file_bytes=1 << 20, metadata={})
    folder, longest = MemoryStore(), 0

    class Watched(MemoryBucket):
        def upload_part(self, key: str, upload_id: UploadId, **part: Any) -> PartReceipt:
            nonlocal longest
            longest = max(longest, sum(memoryview(buffer).nbytes for buffer in part["buffers"]))
            return super().upload_part(key, upload_id, **part)

    bucket = Watched(min_part_bytes=64)
    export(folder, plan)
    export(bucket, plan)
    assert contents(bucket) == contents(folder)
    assert 64 <= longest <= len(plan.files[0].header) + 32
    assert export(bucket, plan).written == ()


@pytest.mark.usefixtures("_small_parts")
def test_an_export_to_a_bucket_that_dies_at_any_write_shows_whole_files_only_and_leaves_no_upload_when_told_again() -> (
    None
):
    plan, _ = small_plan()
    counted = FaultyBucket(MemoryBucket(min_part_bytes=64))
    export(counted, plan)
    whole = contents(counted)
    num_left = 0
    for death in every_death(counted.num_writes):
        inner = MemoryBucket(min_part_bytes=64)
        with pytest.raises(Crash):
            export(FaultyBucket(inner, death), plan)
        num_left += len(list(inner.list_uploads("")))
        left = contents(inner)
        assert left.items() <= whole.items(), death
        assert INDEX not in left or left == whole, death
        assert set(export(inner, plan).kept) == left.keys() - {INDEX}
        assert contents(inner) == whole, death
        assert not list(inner.list_uploads("")), death
    assert num_left > 10


@pytest.mark.usefixtures("_small_parts")
def test_uploads_of_others_below_the_same_prefix_stay() -> None:
    plan, _ = small_plan()
    bucket = MemoryBucket(min_part_bytes=64)
    bucket.begin_upload("run/steps/000000001-a1-1/w/c/0")
    bucket.begin_upload(plan.files[0].name)
    export(bucket, plan)
    assert [upload.key for upload in bucket.list_uploads("")] == ["run/steps/000000001-a1-1/w/c/0"]


def test_an_unfinished_file_is_in_a_folder_that_no_reader_looks_into(tmp_path: Path) -> None:
    plan, _ = small_plan()
    folder = LocalStore(tmp_path)
    with pytest.raises(Crash):
        export(FaultyStore(folder, Die(write=1, when=When.AFTER)), plan)
    (left,) = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert left.parent.name.startswith(UNFINISHED)
    with pytest.raises(BehemothError):
        read_model(folder, threads=1)
    assert not loaded(tmp_path)


def test_nothing_that_a_killed_export_left_is_in_the_folder_of_the_one_that_ends(tmp_path: Path) -> None:
    """Killed behind the last file of its own folder, and while it created the index."""
    plan, _ = small_plan()
    (tmp_path / f"{UNFINISHED}dead").mkdir()
    (tmp_path / ".behemoth-tmp-dead").write_bytes(b"{")
    (tmp_path / "lost+found").mkdir()
    export(LocalStore(tmp_path), plan)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "lost+found").exists()


def test_a_second_call_writes_nothing() -> None:
    plan, _ = small_plan()
    store = MemoryStore()
    first = export(store, plan)
    again = export(store, plan)
    assert (first.kept, again.written) == ((), ())
    assert set(first.written) == set(again.kept)


def test_an_export_that_was_killed_while_it_tried_its_bucket_out_is_begun_again() -> None:
    plan, _ = small_plan()
    store = MemoryStore()
    store.create(probe_key(1_795_698_337, "1c07f070457846b4"), b"first")
    assert export(store, plan).written
    assert set(kept_files(store, plan)) == {file.name for file in plan.files}


@pytest.mark.parametrize(
    "name", ["README.md", "other.safetensors", SINGLE, "a/b", INDEX, "probe/x", "probe/behemoth-1-notes"]
)
def test_a_folder_with_anything_else_is_refused_and_stays_as_it_is(name: str) -> None:
    plan, _ = small_plan()
    store = MemoryStore()
    store.create(name, b"somebody's")
    with pytest.raises(Conflict, match=f"got {name} in it") as refused:
        export(store, plan)
    assert refused.value.hint == "name another one, or remove what lies there"
    assert contents(store) == {name: b"somebody's"}


def test_files_of_another_export_under_the_same_names_are_refused() -> None:
    plan, _ = small_plan()
    layout = toy_layout()
    source = MemoryStore()
    tensors = stored_tensors(source, opened(source, layout, logical_arrays(layout, 2)), threads=1)
    store = MemoryStore()
    export(store, plan_export(tensors, max_file_bytes=300, metadata={"format": "pt", "behemoth": "another step"}))
    with pytest.raises(Conflict, match=r"model-00001-of-00004\.safetensors in it"):
        kept_files(store, plan)


def test_two_exports_into_one_folder_never_publish_holes() -> None:
    """The second clears away what the first is writing; the first goes on into a new file, and must not pass it on."""
    plan, _ = small_plan()
    store = MemoryStore()

    class Meddled(MemoryStore):
        def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
            if parts[0].offset_bytes:
                store.delete([name for name in names(store) if name.startswith(UNFINISHED)])
            super().write_parts(key, size_bytes=size_bytes, parts=parts)

    meddled = Meddled()
    meddled._objects = store._objects
    with pytest.raises(Conflict, match="expected the file that was being written, got another"):
        export(meddled, plan)
    assert not names(store)


@pytest.mark.parametrize("max_file_bytes", [1 << 20, 500])
@pytest.mark.parametrize("new", [MemoryStore, MemoryBucket])
def test_of_two_exports_that_begin_at_once_in_one_place_one_is_told_that_it_is_not_alone(
    new: Callable[[], MemoryStore | MemoryBucket], max_file_bytes: int
) -> None:
    """With other options, so that their files have other names: one without an index, or fewer than the other's."""
    plan, arrays = small_plan()
    source, layout = MemoryStore(), toy_layout()
    tensors = stored_tensors(source, opened(source, layout, arrays), threads=1)
    other = plan_export(tensors, max_file_bytes=max_file_bytes, metadata={"format": "pt"})
    assert len(other.files) < len(plan.files)
    store = new()

    def beside(files: Sequence[FilePlan]) -> Iterator[str]:
        export(store, other)
        for file in files:
            list(export_module.write_file(store, UNFINISHED, file))
            yield file.name

    with pytest.raises(Conflict, match="expected an empty place, or one that this very export began to fill"):
        export(store, plan, spread=beside)
    assert contents(store).get(INDEX) == other.index


def test_a_disk_that_fills_up_leaves_nothing_unfinished(tmp_path: Path) -> None:
    plan, _ = small_plan()
    folder = LocalStore(tmp_path)
    full = Unavailable("write: no space left", code="no-space")
    with pytest.raises(Unavailable, match="no space left"):
        export(FaultyStore(folder, Fail(write=3, when=When.BEFORE, error=full)), plan)
    assert not list(tmp_path.iterdir())


def test_progress_adds_up_to_all_bytes_also_when_files_were_there() -> None:
    plan, _ = small_plan()
    store = MemoryStore()
    told: list[tuple[int, int]] = []
    export(store, plan, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    files_bytes = sum(file.size_bytes for file in plan.files)
    assert told[-1] == (files_bytes, plan.size_bytes)
    store.delete([plan.files[1].name])
    told.clear()
    export(store, plan, progress=lambda done, total: told.append((done, total)))
    assert told[0][0] == files_bytes - plan.files[1].size_bytes + len(plan.files[1].header)
    assert told[-1] == (files_bytes, plan.size_bytes)


def test_nothing_to_export_and_a_store_that_cannot_move_are_refused() -> None:
    with pytest.raises(Invalid, match="expected at least one tensor"):
        plan_export({}, max_file_bytes=1, metadata={})

    class NoMoves:
        pass

    plan, _ = small_plan()
    with pytest.raises(Invalid, match="expected a folder of files or a bucket"):
        export(NoMoves(), plan)  # type: ignore[arg-type]


def test_the_library_refuses_a_file_that_was_cut_short(tmp_path: Path) -> None:
    """What a half file would look like to a reader; so none may ever have its name."""
    plan, _ = small_plan()
    export(LocalStore(tmp_path), plan)
    file = tmp_path / plan.files[0].name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        loaded(tmp_path)
