"""docs/format.md is enough to read a checkpoint, and what it says is what lies on disk: a golden one, bit for bit.

Set BEHEMOTH_UPDATE_GOLDEN=1 to write the golden files anew; a change there breaks old checkpoints.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from behemoth.base.ids import RunUid, Step, WriteId
from behemoth.checkpoint.commit_log import commits, latest, reject
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.cuts import with_close_chunks
from behemoth.checkpoint.framing import framed, unframed
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout, Sharding, SplitAxes
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.owner import Owner, take
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.records import encode_record, run_record_spec
from behemoth.checkpoint.verify import verify
from behemoth.spec.mesh import Mesh
from behemoth.state.effect import CommitRef
from behemoth.storage.local import LocalStore
from checkpoint import independent_reader
from checkpoint.checkpoint_rig import commit_receipts, logical_arrays, raw_bytes, save, write_all_ranks
from checkpoint.independent_reader import newest, read_checkpoint, record_of

FORMS = ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5")
GOLDENS = {form: Path(__file__).parent / "golden" / f"format-{form}" for form in FORMS}
GOLDEN = GOLDENS["1.0"]
each_golden = pytest.mark.parametrize("form", list(GOLDENS))


def golden_layout(form: str = "1.0") -> Layout:
    """Two ranks: a padded chunk, columns, experts, flat ranges, names that are no paths, a record. In 1.1 shards of
    boxes; in 1.2 a dim that the program pads; in 1.3 eight ranks, flat ranges over two axes; in 1.4 columns, too; in
    1.5 an array of which a third would be padding, cut closely."""
    is_padded, has_new = form >= "1.2", form >= "1.3"
    columns: SplitAxes = ("dp", "tp") if form >= "1.4" else "tp"
    arrays = [
        ArraySpec(
            name="model/uneven", dtype="float32", shape=(7, 3), dims=((0, "tp"),), padded=(0, 10) if is_padded else None
        ),
        ArraySpec(name="model/columns", dtype="bfloat16", shape=(6, 10), dims=((1, columns),)),
        ArraySpec(name="model/experts", dtype="float8_e4m3fn", shape=(4, 2, 3), dims=((0, "ep"),)),
        ArraySpec(name="model/gate_up", dtype="float16", shape=(3, 8), dims=((1, "tp"),), packed=(1, (4, 4))),
        ArraySpec(name="optim/flat", dtype="float64", shape=(5,), flat_over=("cp", "dp") if has_new else "edp"),
        ArraySpec(name="index", dtype="uint8", shape=(2,)),
        ArraySpec(name="index/../c/__x//é", dtype="int8", shape=(2,)),
        ArraySpec(name="state/count", dtype="int64", shape=()),
        ArraySpec(name="state/flags", dtype="bool", shape=(3,)),
        run_record_spec(64),
    ]
    if form >= "1.5":
        arrays.append(ArraySpec(name="model/third", dtype="uint8", shape=(3, 350_000), dims=((0, "tp"),)))
    mesh = Mesh(tp=2, cp=2, dp=2, ep=2, edp=4) if has_new else Mesh(tp=2, ep=2)
    return with_close_chunks(Layout(mesh=mesh, arrays=tuple(arrays), sharding="array" if form == "1.0" else "box"))


def golden_arrays(form: str = "1.0") -> dict[str, np.ndarray]:
    """Bytes that follow from the place alone, so that they need no generator."""
    arrays = {
        spec.name: (np.arange(spec.num_bytes) % 101 + 1).astype(np.uint8).view(DTYPES[spec.dtype]).reshape(spec.shape)
        for spec in golden_layout(form).arrays
    }
    arrays["state/flags"] = np.array([True, False, True])
    record = encode_record({"cursor": 12, "seed": [7, b"x", 0.5, None]}, 64)
    return {**arrays, "state/run": np.frombuffer(record, np.uint8)}


def write_golden(root: Path, form: str) -> None:
    """What the engine makes of it, twice: the second time the commit is taken back."""
    layout = golden_layout(form)
    with closing(LocalStore(root)) as store:
        take(store, Owner.of_run(RunUid("0123456789abcdef"), name="golden", directory="/runs/golden"), url="golden")
        for step in (120, 121):
            receipts = write_all_ranks(store, layout, golden_arrays(form), step=step)
            receipts = [replace(one, freshness=msgspec.UNSET) for one in receipts]
            commit_receipts(store, layout, receipts, step=step)
        reject(store, CommitRef(step=Step(121), write_id=WriteId("a1-1"), size_bytes=0), "golden")
        store.delete([info.key for info in store.list("steps/000000121-a1-1")])


def files_of(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        (array.shape, raw_bytes(array)) == (expected[name].shape, raw_bytes(expected[name]))
        for name, array in found.items()
    )


@each_golden
def test_the_engine_still_writes_the_golden_checkpoint_bit_for_bit(tmp_path: Path, form: str) -> None:
    write_golden(tmp_path, form)
    golden = GOLDENS[form]
    if os.environ.get("BEHEMOTH_UPDATE_GOLDEN"):
        shutil.rmtree(golden, ignore_errors=True)
        shutil.copytree(tmp_path, golden)
    assert files_of(tmp_path) == files_of(golden)


@each_golden
def test_the_engine_still_reads_it(form: str) -> None:
    with closing(LocalStore(GOLDENS[form])) as store:
        ref = latest(store)
        assert ref is not None
        assert commits(store) == [ref]
        commit = open_commit(store, ref)
        assert same_bits(
            {name: read_array(store, commit, name) for name in commit.layout.positions}, golden_arrays(form)
        )
        assert verify(store, ref, threads=1, deep=True).is_intact


def test_fields_that_a_reader_does_not_know_are_passed_over(tmp_path: Path) -> None:
    """Later minors add some; early commits have one that is gone."""
    shutil.copytree(GOLDEN, tmp_path / "copy")
    file = tmp_path / "copy" / "commits" / "000000120.json"
    record = json.loads(unframed(file.read_bytes(), name="commit"))
    record = {**record, "format": {"major": 1, "minor": 7}, "rank_prints": "0123", "later": {"a": [1]}}
    file.write_bytes(framed(json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()))
    assert same_bits(read_checkpoint(tmp_path / "copy", 120), golden_arrays())
    with closing(LocalStore(tmp_path / "copy")) as store:
        ref = latest(store)
        assert ref is not None
        assert verify(store, ref, threads=1, deep=True).is_intact


def test_the_independent_reader_imports_nothing_but_the_standard_library_and_numpy() -> None:
    tree = ast.parse(Path(independent_reader.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"numpy"}


@each_golden
def test_the_independent_reader_reads_it(form: str) -> None:
    assert newest(GOLDENS[form]) == 120
    found = read_checkpoint(GOLDENS[form], 120)
    assert same_bits(found, golden_arrays(form))
    assert record_of(found["state/run"]) == {"cursor": 12, "seed": [7, b"x", 0.5, None]}


def test_an_older_release_would_refuse_a_checkpoint_whose_arrays_are_several_objects() -> None:
    """It knows no feature, and says that a newer one wrote it."""
    record = json.loads(unframed((GOLDENS["1.1"] / "commits/000000120.json").read_bytes(), name="commit"))
    assert (record["format"], record["required_features"]) == ({"major": 1, "minor": 1}, ["box-shards"])
    folder = GOLDENS["1.1"] / "steps/000000120-a1-1/model/columns"
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()) == [
        "c/0/0",
        "c/0/1",
        "zarr.json",
    ]


@pytest.mark.parametrize(("sharding", "features"), [("array", ["padded-dims"]), ("box", ["box-shards", "padded-dims"])])
def test_a_padded_dim_is_saved_without_its_padding_and_said_to_older_releases(
    tmp_path: Path, sharding: Sharding, features: list[str]
) -> None:
    """Eleven rows over two ranks that hold eight each: chunks end where the first share does."""
    spec = ArraySpec(name="embedding", dtype="float32", shape=(11, 4), dims=((0, "tp"),), padded=(0, 16))
    layout = Layout(mesh=Mesh(tp=2, ep=2), arrays=(spec,), sharding=sharding)
    arrays = logical_arrays(layout, seed=1)
    with closing(LocalStore(tmp_path)) as store:
        commit = save(store, layout, arrays, step=120)
        record = json.loads(unframed((tmp_path / "commits/000000120.json").read_bytes(), name="commit"))
        assert (record["format"], record["required_features"]) == ({"major": 1, "minor": 2}, features)
        assert grids(layout)[0].chunk_shape == (8, 4)
        assert same_bits({"embedding": read_array(store, open_commit(store, commit.ref), "embedding")}, arrays)
    assert same_bits(read_checkpoint(tmp_path, 120), arrays)


def test_a_layout_of_which_some_array_would_be_padded_much_is_cut_closely_and_said_to_older_releases() -> None:
    layout = golden_layout("1.5")
    record = json.loads(unframed((GOLDENS["1.5"] / "commits/000000120.json").read_bytes(), name="commit"))
    assert record["format"] == {"major": 1, "minor": 5}
    assert record["required_features"] == ["box-shards", "padded-dims", "joint-axes", "joint-dims", "close-chunks"]
    at = layout.positions["model/third"]
    close, plain = grids(layout)[at], grids(replace(layout, chunking="plain"))[at]
    assert (close.chunk_shape, plain.chunk_shape) == ((3, 350_000), (2, 350_000))
    assert (close.num_chunks * close.payload_bytes, plain.num_chunks * plain.payload_bytes) == (1_050_000, 1_400_000)


@each_golden
def test_the_independent_reader_finds_flips_in_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """With our CRC: its own, bit by bit, is too slow for so many."""
    monkeypatch.setattr(independent_reader, "crc32c", crc32c)
    root = tmp_path / "copy"
    shutil.copytree(GOLDENS[form], root)
    names = [name for name in files_of(root) if name.startswith(("commits/", "steps/"))]
    num_shards = sum(grid.num_shards for grid in grids(golden_layout(form)))
    num_arrays = len(golden_layout(form).arrays)
    assert num_shards - num_arrays == {"1.0": 0, "1.1": 5, "1.2": 5, "1.3": 5, "1.4": 4, "1.5": 4}[form]
    assert len(names) == 1 + 1 + num_arrays + num_shards + 9  # commit, index, arrays, shards, groups
    for name in names:
        whole = (root / name).read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 30)):
            (root / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with pytest.raises(ValueError):  # noqa: PT011 (of any kind: json's and numpy's too)
                read_checkpoint(root, 120)
        (root / name).write_bytes(whole)
    read_checkpoint(root, 120)


def test_the_independent_reader_reads_every_dtype_padding_and_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 1 MiB and more have gaps behind them; its CRC, bit by bit, is too slow for those."""
    monkeypatch.setattr(independent_reader, "crc32c", crc32c)
    specs = [ArraySpec(name=f"dtype/{name}", dtype=name, shape=(4, 3), dims=((0, "tp"),)) for name in DTYPES]
    specs.append(ArraySpec(name="large", dtype="float32", shape=(3, 1 << 19), dims=((0, "tp"),)))
    layout = Layout(mesh=Mesh(tp=2, edp=2), arrays=tuple(specs))
    large = grids(layout)[layout.positions["large"]]
    assert (large.num_chunks, large.gap_bytes, large.data_bytes(1)) == (2, 4092, large.payload_bytes // 2)
    arrays = logical_arrays(layout, 3)
    with closing(LocalStore(tmp_path)) as store:
        save(store, layout, arrays, step=7)
    assert same_bits(read_checkpoint(tmp_path, 7), arrays)
