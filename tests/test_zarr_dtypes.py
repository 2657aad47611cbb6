"""The element types of low-precision training, in zarr-python and beside TensorStore."""

import importlib
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from zarr.core.array_spec import ArrayConfigParams
from zarr.dtype import data_type_registry

import behemoth.zarr_dtypes as zarr_dtypes

# An error that zarr-python 3.4 has moved: under its old name it warns.
MOVED = """
import warnings, zarr.dtype, zarr.errors
if not hasattr(zarr.errors, "DataTypeValidationError"):
    zarr.errors.DataTypeValidationError = zarr.dtype.DataTypeValidationError
    del zarr.dtype.DataTypeValidationError
    def moved(name):
        if name != "DataTypeValidationError":
            raise AttributeError(name)
        warnings.warn(name)
        return zarr.errors.DataTypeValidationError
    zarr.dtype.__getattr__ = moved
import behemoth.zarr_dtypes
print(zarr.dtype.data_type_registry.match_json("bfloat16", zarr_format=3))
"""
NAMES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")


def _every_value(name: str) -> np.ndarray:
    dtype = np.dtype(getattr(ml_dtypes, name))
    return np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)


def _write_with_zarr(path: Path, values: np.ndarray) -> None:
    config: ArrayConfigParams = {
        "write_empty_chunks": True
    }  # else zarr-python compares with the fill value, and numpy warns of NaNs
    array = zarr.create_array(
        path, shape=values.shape, chunks=(100,), dtype=values.dtype, compressors=None, config=config
    )
    array[:] = values


def _read_with_zarr(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(path, mode="r")[:])


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_zarr_python_returns_every_bit_pattern_that_it_wrote(name: str, tmp_path: Path) -> None:
    values = _every_value(name)
    _write_with_zarr(tmp_path / "a", values)
    assert _same_bytes(_read_with_zarr(tmp_path / "a"), values)


@pytest.mark.parametrize("name", NAMES)
def test_tensorstore_reads_what_zarr_python_wrote(name: str, tmp_path: Path) -> None:
    values = _every_value(name)
    _write_with_zarr(tmp_path / "a", values)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    assert _same_bytes(tensorstore.open(spec).result().read().result(), values)


@pytest.mark.parametrize("name", NAMES)
def test_zarr_python_reads_what_tensorstore_wrote(name: str, tmp_path: Path) -> None:
    values = _every_value(name)
    metadata = {"shape": list(values.shape), "data_type": name}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(tmp_path / "a")},
        "metadata": metadata,
        "create": True,
    }
    tensorstore.open(spec).result().write(values).result()
    assert _same_bytes(_read_with_zarr(tmp_path / "a"), values)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_survives_as_a_fill_value(name: str) -> None:
    data_type = zarr_dtypes.DATA_TYPES[name]()
    for value in _every_value(name)[:: 257 if name == "bfloat16" else 1]:
        told = json.loads(json.dumps(data_type.to_json_scalar(value, zarr_format=3), allow_nan=False))
        assert data_type.from_json_scalar(told, zarr_format=3).tobytes() == value.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", [0, 1.5, "NaN", "Infinity", "-Infinity", "0x7f"])
def test_a_fill_value_means_what_tensorstore_takes_it_for(name: str, fill: float | str) -> None:
    if name == "bfloat16" and fill == "0x7f":
        fill = "0x7fc1"
    if name == "float8_e8m0fnu" and fill == 1.5:
        fill = "0x80"  # TensorStore 0.1.86 reads numbers other than 0 wrongly
    metadata = {"shape": [1], "data_type": name, "fill_value": fill}
    spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": metadata, "create": True}
    theirs = np.asarray(tensorstore.open(spec).result().read().result())[0]
    ours = zarr_dtypes.DATA_TYPES[name]().from_json_scalar(fill, zarr_format=3)
    assert ours.tobytes() == theirs.tobytes() or (np.isnan(ours) and np.isnan(theirs))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", ["0x", "0x1", "0x123", "1.5", "nan", "0xzz", None, [1], True])
def test_a_senseless_fill_value_is_refused(name: str, fill: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"zarr fill value of {name}: expected"):
        zarr_dtypes.DATA_TYPES[name]().from_json_scalar(fill, zarr_format=3)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_leads_to_the_type_and_back(name: str) -> None:
    found = data_type_registry.match_json(name, zarr_format=3)
    assert found == zarr_dtypes.DATA_TYPES[name]()
    assert found.to_json(zarr_format=3) == name
    assert data_type_registry.match_dtype(np.dtype(getattr(ml_dtypes, name))) == found


def test_other_types_are_found_as_before() -> None:
    for name in ("float16", "float32", "int8", "uint16", "bool"):
        assert data_type_registry.match_dtype(np.dtype(name)).to_json(zarr_format=3) == name


def test_importing_again_registers_nothing_twice() -> None:
    before = dict(data_type_registry.contents)
    zarr_dtypes.register()
    assert data_type_registry.contents == before


def test_zarr_v2_has_no_such_types() -> None:
    with pytest.raises(ValueError, match="expected zarr format 3, got 2"):
        zarr_dtypes.BFloat16().to_json(zarr_format=2)


def test_big_endian_bfloat16_of_another_writer_is_read(tmp_path: Path) -> None:
    values = _every_value("bfloat16")
    codecs = [{"name": "bytes", "configuration": {"endian": "big"}}]
    metadata = {"shape": list(values.shape), "data_type": "bfloat16", "codecs": codecs}
    kvstore = {"driver": "file", "path": str(tmp_path / "a")}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
    tensorstore.open(spec).result().write(values).result()
    assert _same_bytes(_read_with_zarr(tmp_path / "a").astype(values.dtype), values)


def test_releases_that_have_moved_their_error_are_no_reason_to_warn() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MOVED], text=True, capture_output=True, check=False, timeout=120
    )
    assert done.stderr == ""
    assert "BFloat16" in done.stdout


def test_each_type_loads_as_an_entry_point() -> None:
    for name, cls in zarr_dtypes.DATA_TYPES.items():
        entry = EntryPoint(name=name, value=f"behemoth.zarr_dtypes:{cls.__name__}", group="zarr.data_type")
        assert entry.load()._zarr_v3_name == name
    assert importlib.import_module("behemoth.zarr_dtypes") is zarr_dtypes
