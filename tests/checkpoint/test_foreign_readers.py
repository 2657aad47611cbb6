"""What lies in the store is plain Zarr v3: readers that are not ours agree on every byte."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import behemoth.zarr_dtypes  # noqa: F401  (registers bfloat16 and float8 with zarr)
from behemoth.base.ids import Step, WriteId
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout, Sharding
from behemoth.checkpoint.paths import step_prefix
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import logical_arrays, raw_bytes, save, toy_layout

# TensorStore runs in a process of its own, so that "nothing of ours" is checked and not only meant.
TENSORSTORE = """
import sys, tensorstore
for line in sys.stdin.read().splitlines():
    path, out = line.split("\\t")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    array = tensorstore.open(spec, open=True, read=True).result()
    data = array.read().result()
    with open(out, "wb") as file:
        file.write(f"{array.dtype.name} {list(array.shape)}\\n".encode() + data.tobytes())
assert not [name for name in sys.modules if name.startswith("behemoth")]
"""

# zarr-python without our data types, likewise: it says of each array what it reads, or why it cannot. Releases after
# 3.1.6 would load what an installed package of ours registers.
STOCK_ZARR = """
import hashlib, json, sys, warnings, zarr
warnings.simplefilter("ignore")
zarr.dtype.data_type_registry._lazy_load_list.clear()
for path in sys.stdin.read().splitlines():
    try:
        data = zarr.open_array(path, mode="r")[...]
        print(json.dumps([data.dtype.name, hashlib.sha256(data.tobytes()).hexdigest()]))
    except ValueError as error:
        print(json.dumps(["refused", str(error)]))
assert "behemoth.zarr_dtypes" not in sys.modules
"""
OURS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")


def layout_of_all_dtypes(sharding: Sharding) -> Layout:
    """Every dtype; a large array with many chunks split inside; a padded one; every way of sharing of the toy."""
    toy = toy_layout()
    extra = [ArraySpec(name=f"dtype/{name}", dtype=name, shape=(4, 3), dims=((0, "dp"),)) for name in DTYPES]
    extra.append(ArraySpec(name="big/split", dtype="float32", shape=(2, 1300, 2048), dims=((2, "tp"),), flat_over="dp"))
    extra.append(ArraySpec(name="big/padded", dtype="uint8", shape=(9_000_011,), flat_over="edp"))
    extra += [
        ArraySpec(name="uneven/columns", dtype="float32", shape=(700, 1031), dims=((1, "tp"),), flat_over="dp"),
        ArraySpec(name="uneven/vocabulary", dtype="bfloat16", shape=(50_021, 64), dims=((0, "tp"),), flat_over="dp"),
        ArraySpec(name="uneven/rows", dtype="float32", shape=(7, 5), flat_over="dp", flat_rows=True),
        ArraySpec(
            name="packed/gate_up",
            dtype="bfloat16",
            shape=(4, 64, 2 * 48),
            dims=((0, "ep"), (2, "etp")),
            packed=(2, (48, 48)),
            flat_over="edp",
        ),
        ArraySpec(
            name="packed/qkv",
            dtype="float32",
            shape=(96 + 24 + 24, 64),
            dims=((0, "tp"),),
            packed=(0, (96, 24, 24)),
            flat_over="dp",
        ),
        ArraySpec(name="packed/columns", dtype="float32", shape=(33, 2 * 20), dims=((1, "tp"),), packed=(1, (20, 20))),
    ]
    extra.append(ArraySpec(name="names", dtype="uint8", shape=(1,)))
    extra.append(ArraySpec(name="names/../c/__x/index é", dtype="uint8", shape=(1,)))
    return Layout(mesh=toy.mesh, arrays=(*toy.arrays, *extra), sharding=sharding)


@pytest.fixture(scope="module", params=["array", "box"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Layout, dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("run")
    layout = layout_of_all_dtypes(request.param)
    arrays = logical_arrays(layout, 3)
    arrays["dtype/bool"] = arrays["dtype/int8"] % 2 == 0
    store = LocalStore(str(root))
    save(store, layout, arrays, step=120)
    store.close()
    return root / step_prefix(Step(120), WriteId("a1-1")), layout, arrays


def test_tensorstore_with_nothing_of_ours_reads_every_array(
    saved: tuple[Path, Layout, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    root, layout, arrays = saved
    lines = [f"{root / path}\t{tmp_path / str(index)}" for index, path in enumerate(layout.paths)]
    subprocess.run(
        [sys.executable, "-I", "-c", TENSORSTORE], input="\n".join(lines), text=True, check=True, timeout=120
    )
    for index, spec in enumerate(layout.arrays):
        head, _, data = (tmp_path / str(index)).read_bytes().partition(b"\n")
        assert head.decode() == f"{spec.dtype} {list(spec.shape)}"
        assert data == raw_bytes(arrays[spec.name]), spec.name


@pytest.mark.filterwarnings("default::zarr.errors.UnstableSpecificationWarning")
def test_zarr_python_reads_every_array(saved: tuple[Path, Layout, dict[str, np.ndarray]]) -> None:
    root, layout, arrays = saved
    for spec, path in zip(layout.arrays, layout.paths, strict=True):
        array = zarr.open_array(root / path, mode="r")
        data = np.asarray(array[...])
        assert (data.dtype, data.shape) == (DTYPES[spec.dtype], spec.shape)
        assert raw_bytes(data) == raw_bytes(arrays[spec.name]), spec.name
        assert array.attrs["behemoth"] == {"name": spec.name}


def test_zarr_python_with_nothing_of_ours_reads_every_core_dtype_and_refuses_the_others_by_name(
    saved: tuple[Path, Layout, dict[str, np.ndarray]],
) -> None:
    root, layout, arrays = saved
    paths = "\n".join(str(root / path) for path in layout.paths)
    done = subprocess.run(
        [sys.executable, "-I", "-c", STOCK_ZARR], input=paths, text=True, capture_output=True, check=True, timeout=120
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    for spec, (dtype, said) in zip(layout.arrays, told, strict=True):
        if spec.dtype in OURS:
            assert (dtype, said) == ("refused", f"No Zarr data type found that matches {spec.dtype!r}"), spec.name
        else:
            assert (dtype, said) == (spec.dtype, sha256(raw_bytes(arrays[spec.name])).hexdigest()), spec.name


def test_zarr_python_walks_the_groups(saved: tuple[Path, Layout, dict[str, np.ndarray]]) -> None:
    root, layout, _ = saved
    group: Any = zarr.open_group(root, mode="r")
    found = {array.attrs["behemoth"]["name"] for _, array in group["dtype"].arrays()}
    assert found == {spec.name for spec in layout.arrays if spec.name.startswith("dtype/")}
