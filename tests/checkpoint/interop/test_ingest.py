"""Safetensors files become checkpoints like any other, and files that are wrong become none."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Invalid, NotFound, Unavailable
from behemoth.base.ids import RunUid
from behemoth.checkpoint.commit_log import commits, latest
from behemoth.checkpoint.gc import execute, plan_gc
from behemoth.checkpoint.interop import foreign, ingest
from behemoth.checkpoint.interop.foreign import read_model
from behemoth.checkpoint.interop.tensors import Tensor
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.verify import verify
from behemoth.ports import ObjectStore
from behemoth.storage.linked import LinkedFolder
from behemoth.storage.local import LocalStore
from behemoth.testing.faults import Crash, FaultyStore, every_death
from behemoth.testing.store import MemoryStore
from checkpoint.between import Between
from checkpoint.interop.imported import import_tensors
from checkpoint.interop.tensor_trees import chunked
from checkpoint.late_bucket import Late
from checkpoint.mangled import mangled_document

MODEL = {
    "a.weight": torch.randn(5, 7).to(torch.bfloat16),
    "a.weight_scale": torch.tensor(0.5),
    "f8": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "flags": torch.tensor([True, False]),
    "steps": torch.arange(3),
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def saved(folder: Path, model: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    safetensors.torch.save_file(model, folder / name)


def test_a_file_of_the_library_becomes_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    saved(tmp_path, MODEL)
    store = LocalStore(tmp_path / "store")
    record = import_tensors(store, dict(read_model(LocalStore(tmp_path), threads=2).tensors))
    assert (record.step, record.run, record.committed_us) == (5, "import:x", 7)
    assert latest(store) == record.ref
    commit = open_commit(store, record.ref)
    assert commit.layout.positions.keys() == MODEL.keys()
    for name, tensor in MODEL.items():
        array = read_array(store, commit, name)
        assert (array.dtype.name, array.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert array.tobytes() == bits(tensor), name
    assert verify(store, record.ref, threads=1, deep=True).is_intact
    store.close()


def test_large_arrays_are_read_and_written_in_blocks_of_whole_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 20 << 20)
    array = np.random.default_rng(1).integers(0, 1 << 16, (5, 1300, 2048), dtype=np.uint16)
    boxes = []
    tensor = chunked(array, (1, 400, 2048))

    class Watched:
        dtype, shape = tensor.dtype, tensor.shape

        def grain(self, dim: int) -> int:
            return tensor.grain(dim)

        def read_into(self, box: Any, out: Any) -> None:
            boxes.append(out.nbytes)
            tensor.read_into(box, out)

    store = MemoryStore()
    record = import_tensors(store, {"w": Watched()})
    assert max(boxes) <= 20 << 20
    assert len(boxes) < 5 * 2
    assert read_array(store, open_commit(store, record.ref), "w").tobytes() == array.tobytes()
    assert verify(store, record.ref, threads=1, deep=True).is_intact


def test_chunks_of_a_foreign_tensor_cover_it_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"w": torch.arange(2 * 3 * 5 * 7, dtype=torch.int16).reshape(2, 3, 5, 7), "s": torch.tensor(3.0)}
    saved(tmp_path, model)
    for chunk_bytes in (1, 2, 14, 20, 71, 1000):
        monkeypatch.setattr(foreign, "CHUNK_BYTES", chunk_bytes)
        store = MemoryStore()
        record = import_tensors(store, dict(read_model(LocalStore(tmp_path), threads=2).tensors))
        commit = open_commit(store, record.ref)
        assert all(read_array(store, commit, name).tobytes() == bits(tensor) for name, tensor in model.items())


def test_an_import_that_dies_at_any_write_leaves_no_checkpoint_or_a_whole_one() -> None:
    tensors: dict[str, Tensor] = {
        "a": chunked(np.arange(10, dtype=np.float32)),
        "b": chunked(np.zeros((2, 2), ml_dtypes.bfloat16), dtype="bfloat16"),
    }
    counted = FaultyStore(MemoryStore())
    import_tensors(counted, tensors)
    for death in every_death(counted.num_writes):
        inner = MemoryStore()
        with pytest.raises(Crash):
            import_tensors(FaultyStore(inner, death), tensors)
        after = inner.after_power_loss(seed=death.write)
        found = commits(after)
        if not found:
            import_tensors(after, tensors, write_id="import-2")
            found = commits(after)
        (one,) = found
        assert verify(after, one, threads=1, deep=True).is_intact, death


def test_an_import_that_fails_takes_away_what_it_wrote(tmp_path: Path) -> None:
    class Broken:
        dtype, shape = "float32", (4,)

        def grain(self, dim: int) -> int:  # noqa: ARG002 (a Tensor's)
            return 4

        def read_into(self, box: Any, out: Any) -> None:  # noqa: ARG002 (a Tensor's)
            raise Corrupt("tensor b: damaged")

    store = LocalStore(tmp_path)
    with pytest.raises(Corrupt, match="tensor b"):
        import_tensors(store, {"a": chunked(np.arange(10, dtype=np.float32)), "b": Broken()})
    assert not list(tmp_path.iterdir())


def test_a_commit_that_arrives_when_its_import_has_taken_away_what_it_wrote_counts_for_nobody() -> None:
    store = Late()
    w = chunked(np.arange(6, dtype=np.float32).reshape(2, 3), (1, 3))
    with pytest.raises(Unavailable):
        import_tensors(store, {"w": w})
    assert list(store.list("steps")) == []
    store.arrive()
    assert commits(store) == []
    import_tensors(store, {"w": w}, write_id="import-2")
    assert [verify(store, one, threads=1, deep=True).is_intact for one in commits(store)] == [True]


@pytest.mark.parametrize("is_after", [False, True])
def test_a_run_that_takes_the_store_in_the_middle_of_an_import_finds_no_half_of_it(is_after: bool) -> None:
    tensors: dict[str, Tensor] = {"a": chunked(np.arange(10, dtype=np.float32))}
    counted = FaultyStore(MemoryStore())
    import_tensors(counted, tensors)
    codes = []
    for number in range(counted.num_writes):
        inner = MemoryStore()

        def begin_a_run(store: ObjectStore = inner) -> None:
            take(store, Owner.of_run(RunUid("u1"), name="big", directory="/runs/big"), url="memory")
            execute(store, plan_gc(store, in_flight=()))

        with pytest.raises(BehemothError) as told:
            import_tensors(Between(inner, number, begin_a_run, is_after=is_after), tensors)
        codes.append(told.value.code)
        assert commits(inner) == []
    assert codes[-1] == "import-owned"


def test_another_import_of_the_step_keeps_its_checkpoint_and_the_later_one_takes_its_own_away() -> None:
    tensors: dict[str, Tensor] = {"a": chunked(np.arange(10, dtype=np.float32))}
    counted = FaultyStore(MemoryStore())
    import_tensors(counted, tensors)
    inner = MemoryStore()
    last = counted.num_writes - 1
    with pytest.raises(Conflict, match="got write 'import-2'"):
        import_tensors(
            Between(inner, last, lambda: import_tensors(inner, tensors, write_id="import-2"), is_after=False), tensors
        )
    assert {info.key.split("/")[1] for info in inner.list("steps")} == {"000000005-import-2"}
    (one,) = commits(inner)
    assert verify(inner, one, threads=1, deep=True).is_intact


def test_a_step_that_is_there_and_a_store_of_a_run_are_refused() -> None:
    tensors: dict[str, Tensor] = {"a": chunked(np.arange(3, dtype=np.float32))}
    store = MemoryStore()
    first = import_tensors(store, tensors)
    with pytest.raises(Conflict, match="expected no checkpoint of step 5, got write import-1, which something else"):
        import_tensors(store, tensors, write_id="import-2")
    assert latest(store) == first.ref
    assert verify(store, first.ref, threads=1, deep=True).is_intact
    owned = MemoryStore()
    take(owned, Owner.of_run(RunUid("u1"), name="big", directory="/runs/big"), url="memory")
    with pytest.raises(Conflict, match="got that of run/big in /runs/big"):
        import_tensors(owned, tensors)


def test_a_tensor_without_elements_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match="array 'e': expected at most 32 sizes of 1"):
        import_tensors(MemoryStore(), {"e": chunked(np.zeros((0, 2), np.float32), (1, 2))})


def test_several_files_need_their_index(tmp_path: Path) -> None:
    saved(tmp_path, {"a": MODEL["steps"]}, "model-00001-of-00002.safetensors")
    saved(tmp_path, {"b": MODEL["flags"]}, "model-00002-of-00002.safetensors")
    folder = LocalStore(tmp_path)
    with pytest.raises(Invalid, match="expected one file or an index that names several, got 2 files"):
        read_model(folder, threads=1)
    assert list(read_model(folder, file="model-00002-of-00002.safetensors", threads=1).tensors) == ["b"]
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    assert set(read_model(folder, threads=1).tensors) == {"a", "b"}


def test_of_two_models_in_one_folder_none_is_guessed_and_links_choose_one(tmp_path: Path) -> None:
    """As repositories have them that hold a model under its maker's names too."""
    both, one = tmp_path / "both", tmp_path / "one"
    both.mkdir()
    one.mkdir()
    for model, tensor in (("model", "a"), ("consolidated", "b")):
        saved(both, {tensor: MODEL["steps"]}, f"{model}-00001-of-00001.safetensors")
        index = {"weight_map": {tensor: f"{model}-00001-of-00001.safetensors"}}
        (both / f"{model}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Invalid, match=r"expected one .safetensors.index.json file, got ") as caught:
        read_model(LocalStore(both), threads=1)
    assert "a folder of links to one of them" in caught.value.hint
    for file in both.glob("consolidated*"):
        (one / file.name).symlink_to(file)
    assert list(read_model(LinkedFolder(one), threads=1).tensors) == ["b"]


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_an_index_may_name_files_in_folders_below_and_none_outside(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    saved(model / "sub", {"a": MODEL["steps"]}, "one.safetensors")
    saved(model, {"b": MODEL["flags"]}, "two.safetensors")
    saved(tmp_path, {"a": MODEL["steps"]}, "one.safetensors")
    write_index(model, {"a": "sub/one.safetensors", "b": "two.safetensors"})
    found = read_model(LocalStore(model), threads=1)
    assert found.files == ("sub/one.safetensors", "two.safetensors")
    store = MemoryStore()
    commit = open_commit(store, import_tensors(store, dict(found.tensors)).ref)
    assert read_array(store, commit, "a").tobytes() == bits(MODEL["steps"])
    write_index(model, {"a": "../one.safetensors", "b": "two.safetensors"})
    with pytest.raises(Corrupt, match="beside it, or in a folder there, got none") as caught:
        read_model(LocalStore(model), threads=1)
    assert caught.value.code == "safetensors-missing"


@pytest.mark.parametrize(
    ("weight_map", "text"),
    [
        ({"a": "one.safetensors", "b": "gone.safetensors"}, "expected the file 'gone.safetensors' beside it"),
        ({"a": "one.safetensors"}, "tensor 'z': expected it in no file, got it in one.safetensors"),
        ({"a": "one.safetensors", "z": "one.safetensors", "b": "one.safetensors"}, "tensor 'b': expected it in one"),
        (
            {"a": "../one.safetensors"},
            r"expected the file '\.\./one\.safetensors' beside it, or in",
        ),
        ({"a": "/one.safetensors"}, "expected the file '/one"),
        ({"a": "./one.safetensors"}, r"expected the file '\./one"),
        ({"a": ""}, "expected the file ''"),
        ({"a": 3}, "expected a safetensors index"),
        ({}, "expected a safetensors index"),
        ([], "expected a safetensors index"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path, weight_map: object, text: str) -> None:
    saved(tmp_path, {"a": MODEL["steps"], "z": MODEL["flags"]}, "one.safetensors")
    write_index(tmp_path, weight_map)
    with pytest.raises(Corrupt, match=text):
        read_model(LocalStore(tmp_path), threads=1)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(tmp_path, {"a": MODEL["steps"], name: MODEL["flags"]}, f"{name}.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "one": "one.safetensors", "two": "two.safetensors"})
    with pytest.raises(Corrupt, match=r"tensor 'a': expected it in one file, got it in one.safetensors and two"):
        read_model(LocalStore(tmp_path), threads=1)


def test_a_file_cut_anywhere_is_refused_before_its_data_is_read(tmp_path: Path) -> None:
    saved(tmp_path, MODEL)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in [*range(0, 64), *range(64, len(whole), 37), len(whole) - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(Corrupt, match=r"model\.safetensors: expected"):
            read_model(LocalStore(tmp_path), threads=1)


def test_a_bool_that_is_neither_0_nor_1_is_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch and numpy read such a byte as it is, and differ in what they make of it."""
    monkeypatch.setattr("behemoth.checkpoint.interop.foreign.CHUNK_BYTES", 16)
    saved(tmp_path, {"mask": torch.ones(5, 7, dtype=torch.bool)})
    file = tmp_path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] = 2
    file.write_bytes(data)
    with pytest.raises(Corrupt, match=r"'mask': expected 0 or 1 for each BOOL, got 2 for element 32") as caught:
        import_tensors(MemoryStore(), dict(read_model(LocalStore(tmp_path), threads=2).tensors))
    assert caught.value.code == "safetensors-bool"
    data[-3] = 0
    file.write_bytes(data)
    store = MemoryStore()
    record = import_tensors(store, dict(read_model(LocalStore(tmp_path), threads=2).tensors))
    assert read_array(store, open_commit(store, record.ref), "mask").sum() == 34


def test_a_flip_anywhere_in_a_head_is_corrupt_or_invalid_or_another_model(tmp_path: Path) -> None:
    saved(tmp_path, MODEL)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    (head_bytes,) = struct.unpack("<Q", whole[:8])
    refused = 0
    for at in range(8 + head_bytes):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 7]) + whole[at + 1 :])
        try:
            read_model(LocalStore(tmp_path), threads=1)
        except (Corrupt, Invalid):
            refused += 1
    assert refused > head_bytes // 2


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60) | st.text(alphabet='{}[]":weight_map,a1', max_size=40).map(str.encode))
def test_rubbish_for_an_index_is_corrupt_and_nothing_else(data: bytes) -> None:
    store = MemoryStore()
    store.create("model.safetensors.index.json", data)
    with pytest.raises(Corrupt):
        read_model(store, threads=1)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mangled_index_is_told_or_names_what_is_there(data: st.DataObject) -> None:
    store = MemoryStore()
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    store.create("a.safetensors", len(header).to_bytes(8, "little") + header + bytes(8))
    index = {"metadata": {"total_size": 8}, "weight_map": {"w": "a.safetensors"}}
    store.create("model.safetensors.index.json", data.draw(mangled_document(index, encode=msgspec.json.encode)))
    with suppress(Corrupt, Invalid):
        assert read_model(store, threads=1).files == ("a.safetensors",)


def test_an_empty_folder_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^out: expected safetensors files, got none"):
        read_model(LocalStore(tmp_path), threads=1, source="out")
