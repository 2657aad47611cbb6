"""Checkpoints of torch's own writer, imported: exact, a range at a time, and no pickle of theirs ever runs."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as EarlierProperties
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from behemoth.base.errors import Corrupt, Denied, Invalid, NotFound
from behemoth.base.ids import NodeId
from behemoth.checkpoint.interop.tensors import read_box
from behemoth.checkpoint.into import num_bytes
from behemoth.dcp import BehemothReader, BehemothWriter
from behemoth.dcp.foreign import read_dcp
from behemoth.dcp.metadata_file import METADATA_FILE, decode_metadata
from behemoth.ports import Into
from behemoth.rayrt.processes import SubprocessRuntime
from behemoth.storage.local import LocalStore
from behemoth.testing.store import MemoryStore, contents
from behemoth_cli import root
from checkpoint.mangled import mangled_bytes
from dcp.trees import blank, load, same, save


def state_of(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    wide = torch.randn(40, 64)
    return {
        "model": {"w": torch.randn(33, 17), "b": torch.randn(5).bfloat16(), "part": wide[3:9, 10:20], "t": wide.t()},
        "more": [torch.tensor(seed), torch.empty(0, 3), {"f8": torch.randn(4, 4).to(torch.float8_e5m2)}],
        "step": seed,
        "optim": {"betas": (0.9, 0.95), "name": "adam"},
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A checkpoint of torch's."""
    save(state_of(1), storage_writer=FileSystemWriter(tmp_path / "old", thread_count=2))
    return tmp_path / "old"


@pytest.fixture
def store(old: Path) -> Iterator[LocalStore]:
    with closing(LocalStore(old)) as opened:
        yield opened


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = root.run(["ckpt", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_what_torch_saved_is_imported_and_loads_as_torch_loads_it(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "import", str(old), "--to", str(tmp_path / "new"), "--step", "12")[0] == 0
    assert run(capsys, "verify", str(tmp_path / "new"))[0] == 0
    got = load(blank(state_of(0)), storage_reader=BehemothReader(tmp_path / "new" / "step-12"))
    expected = load(blank(state_of(0)), storage_reader=FileSystemReader(old))
    assert same(got, expected)
    assert same(got["model"], state_of(1)["model"])


def test_a_conjugate_or_a_negative_that_torch_saved_lazily_is_imported_as_what_it_shows(tmp_path: Path) -> None:
    """torch saves the elements below the view, and beside them which view it was."""
    numbers = torch.tensor([[1 + 2j, 3 - 4j], [-0.0 + 0j, complex("nan-infj")]])
    state = {
        "conj": numbers.conj(),
        "conj128": numbers.to(torch.complex128).t().conj(),
        "neg": torch._neg_view(torch.tensor([1.5, -0.0, float("inf")])),
        "bfloat16": torch._neg_view(torch.tensor([1.5, -2.0]).bfloat16()),
        "both": torch._neg_view(numbers.conj()),
        "imag": numbers.conj().imag,
        "plain": numbers,
    }
    save(dict(state), storage_writer=FileSystemWriter(tmp_path / "old"))
    with closing(LocalStore(tmp_path / "old")) as store:
        tensors = read_dcp(store, threads=1).tensors
    for name, shown in state.items():
        got = read_box(tensors[name], tuple((0, size) for size in shown.shape))
        expected = shown.clone().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert got.tobytes() == expected.tobytes(), name


def test_workers_of_a_ray_import_what_threads_import(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [NodeId("n0"), NodeId("n1")]
    monkeypatch.setattr("behemoth.wiring.batch.embed_ray", lambda _nodes: SubprocessRuntime(nodes))
    places = {place: str(tmp_path / place) for place in ("threads", "ray")}
    for place, to in places.items():
        code, _, err = run(capsys, "import", str(old), "--to", to, "--on", place)
        assert code == 0, err
    told = [run(capsys, "show", to, "--digest")[1].splitlines()[-1] for to in places.values()]
    assert told[0] == told[1]


def test_a_part_is_selected_and_a_dry_run_writes_nothing(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "new"
    code, out, _ = run(capsys, "import", str(old), "--to", str(to), "--select", "model.*", "--dry-run")
    assert code == 0
    assert "4 arrays" in out
    assert not to.exists()


def test_values_that_need_a_pickle_are_named_and_left_out_only_when_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"w": torch.ones(3), "began": timedelta(1), "step": 4}
    save(state, storage_writer=FileSystemWriter(tmp_path / "old"))
    code, _, err = run(capsys, "import", str(tmp_path / "old"), "--to", str(tmp_path / "new"))
    assert code == 2
    assert "began" in err
    assert "--skip-pickled" in err
    code, _, err = run(capsys, "import", str(tmp_path / "old"), "--to", str(tmp_path / "new"), "--skip-pickled")
    assert code == 0
    assert "left out" in err
    assert "began" in err
    got = load({"w": torch.zeros(3), "step": None}, storage_reader=BehemothReader(tmp_path / "new"))
    assert same(got, {"w": torch.ones(3), "step": 4})


def test_values_of_numpy_are_imported_and_come_back_as_torch_loads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = {
        "order": np.arange(6).reshape(2, 3).T,
        "none": np.zeros((0, 2)),
        "seed": np.random.RandomState(1).get_state(),
    }
    state = {"w": torch.ones(3), "loader": loader, "best": np.float32(0.5), "names": np.array(["a", "bc"])}
    save(state, storage_writer=FileSystemWriter(tmp_path / "old"))
    assert run(capsys, "import", str(tmp_path / "old"), "--to", str(tmp_path / "new"))[0] == 0
    got = load(blank(state), storage_reader=BehemothReader(tmp_path / "new"))
    assert same(got, load(blank(state), storage_reader=FileSystemReader(tmp_path / "old")))
    assert same(got, state)


def test_the_folder_of_a_checkpoint_of_ours_is_not_imported_as_one_of_torchs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(state_of(1), storage_writer=BehemothWriter(tmp_path / "out" / "step-3"))
    code, _, err = run(capsys, "import", str(tmp_path / "out" / "step-3"), "--to", str(tmp_path / "new"))
    assert (code, "code: dcp-signpost" in err) == (2, True)


def test_skipping_pickles_of_safetensors_is_an_option_without_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files").mkdir()
    code, _, err = run(capsys, "import", str(tmp_path / "files"), "--to", str(tmp_path / "new"), "--skip-pickled")
    assert code == 2
    assert "option-without-effect" in err


class Counting(LocalStore):
    """Counts the bytes that are read."""

    num_bytes = 0

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        self.num_bytes += num_bytes(into)
        super().read_into(key, offset_bytes=offset_bytes, into=into)


def test_only_what_is_asked_for_is_read_of_a_large_tensor(tmp_path: Path) -> None:
    whole = torch.arange(1 << 20, dtype=torch.int64).reshape(1024, -1)
    save({"w": whole}, storage_writer=FileSystemWriter(tmp_path))
    with closing(Counting(tmp_path)) as counting:
        tensor = read_dcp(counting, threads=1).tensors["w"]
        first = read_box(tensor, ((5, 6), (0, 1024)))
        before = counting.num_bytes
        rows = read_box(tensor, ((100, 110), (0, 1024)))
        assert counting.num_bytes - before == rows.nbytes == 10 * 1024 * 8
    assert np.array_equal(first.view(np.int64)[0], whole[5].numpy())
    assert np.array_equal(rows.view(np.int64), whole[100:110].numpy())


def test_metadata_of_torch_before_2_3_names_the_properties_of_tensors_elsewhere(old: Path, tmp_path: Path) -> None:
    path = old / METADATA_FILE
    metadata = pickle.loads(path.read_bytes())  # noqa: S301  made by this test
    for told in metadata.state_dict_metadata.values():
        if isinstance(told, TensorStorageMetadata):
            told.properties = EarlierProperties(dtype=told.properties.dtype)  # type: ignore[assignment]
    path.write_bytes(pickle.dumps(metadata))
    assert b"sharded_tensor.metadata" in path.read_bytes()
    assert root.run(["ckpt", "import", str(old), "--to", str(tmp_path / "new"), "--step", "12"]) == 0
    got = load(blank(state_of(0)), storage_reader=BehemothReader(tmp_path / "new" / "step-12"))
    assert same(got, load(blank(state_of(0)), storage_reader=FileSystemReader(old)))
    assert same(got["model"], state_of(1)["model"])


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_names_anything_else_is_refused_and_does_not_run(old: Path, tmp_path: Path) -> None:
    metadata = pickle.loads((old / METADATA_FILE).read_bytes())  # noqa: S301  made by this test
    assert isinstance(metadata, Metadata)
    metadata.planner_data = Bomb(tmp_path / "ran")
    (old / METADATA_FILE).write_bytes(pickle.dumps(metadata))
    with closing(LocalStore(old)) as store, pytest.raises(Denied, match=r"got posix\.mkdir"):
        read_dcp(store, threads=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"ctorch\nload\n.",
        b"ctorch.hub\nload\n.",
        b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93.",
        b"ctorch.distributed.checkpoint.metadata\nos\n.",
    ],
)
def test_names_that_are_no_metadata_give_nothing_that_could_be_called(pickled: bytes) -> None:
    with pytest.raises((Denied, Corrupt)):
        decode_metadata(pickled)


def test_classes_of_torch_cannot_be_changed_through_the_pickle() -> None:
    before = dict(vars(Metadata))
    build = b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'__init__'\nS'x'\nstb."
    with pytest.raises(Corrupt):
        decode_metadata(build)
    assert dict(vars(Metadata)) == before


def test_a_large_number_in_the_pickle_takes_no_memory() -> None:
    put_at_2_billion = b"Nr\xff\xff\xff\x7f."  # the unpickler in C makes a table of 32 GiB for it
    tracemalloc.start()
    with pytest.raises(Corrupt):
        decode_metadata(put_at_2_billion)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_damaged_metadata_is_refused_and_never_a_raw_error(old: Path, data: st.DataObject) -> None:
    raw = (old / METADATA_FILE).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        raw = data.draw(mangled_bytes(raw))
    with suppress(Corrupt, Denied, Invalid):
        decode_metadata(raw)


def test_metadata_with_a_hole_or_a_box_beyond_the_tensor_is_damage(old: Path) -> None:
    metadata = pickle.loads((old / METADATA_FILE).read_bytes())  # noqa: S301  made by this test
    metadata.state_dict_metadata["model.w"].chunks[0].sizes = torch.Size([32, 17])
    with pytest.raises(Corrupt, match="boxes of 561 elements in all, got 544"):
        decode_metadata(pickle.dumps(metadata))
    metadata.state_dict_metadata["model.w"].chunks[0].sizes = torch.Size([34, 17])
    with pytest.raises(Corrupt, match=r"boxes within \(33, 17\)"):
        decode_metadata(pickle.dumps(metadata))


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_damaged_items_are_refused_or_read_and_never_a_raw_error(old: Path, data: st.DataObject) -> None:
    """The heads of archives, and the pickles in them, too; of the numbers in a tensor nobody knows what they were."""
    with closing(LocalStore(old)) as files:
        whole = contents(files)
    file = data.draw(st.sampled_from(sorted(name for name in whole if name.endswith(".distcp"))))
    damaged = MemoryStore()
    for name, body in whole.items():
        damaged.create(name, data.draw(mangled_bytes(body)) if name == file else body)
    with suppress(Corrupt, Denied, Invalid, NotFound):
        for tensor in read_dcp(damaged, threads=1, skips_pickles=True).tensors.values():
            read_box(tensor, tuple((0, size) for size in tensor.shape))


def test_a_file_that_is_cut_off_or_not_torchs_is_named_with_the_tensor(store: LocalStore, old: Path) -> None:
    for file in old.glob("*.distcp"):
        file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(Invalid, match="expected no pickled values"):
        read_dcp(store, threads=1)
    tensor = read_dcp(store, threads=1, skips_pickles=True).tensors["model.w"]
    with pytest.raises(Corrupt, match=r"tensor 'model.w', file __0_\d.distcp at \d+"):
        read_box(tensor, ((0, 33), (0, 17)))


def test_a_folder_without_metadata_is_no_checkpoint(tmp_path: Path) -> None:
    with closing(LocalStore(tmp_path)) as store, pytest.raises(NotFound, match=r"\.metadata"):
        read_dcp(store, threads=1)


def test_a_stream_is_imported_as_a_pickle_since_torch_does_not_load_one_without_code(tmp_path: Path) -> None:
    save({"s": io.BytesIO(b"x")}, storage_writer=FileSystemWriter(tmp_path))
    with closing(LocalStore(tmp_path)) as store:
        assert read_dcp(store, threads=1, skips_pickles=True).skipped == ("s",)
