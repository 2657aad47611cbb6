"""Values of a state dict as typed records: equal after a round trip, or refused by name."""

from __future__ import annotations

import datetime
import enum
import io
import pickle
from collections import Counter, OrderedDict, defaultdict
from contextlib import closing, suppress
from typing import Any, NamedTuple

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.commit_log import latest
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.reader import read_array
from behemoth.checkpoint.records import Value, decode_record, encode_record, record_size_bytes
from behemoth.dcp.contents import Contents, Empty
from behemoth.dcp.plain_load import load_plain
from behemoth.dcp.values import MAX_LEVELS, from_record, to_record
from behemoth.storage.local import LocalStore
from checkpoint.golden_more import MORE
from checkpoint.mangled import mangled_document
from dcp.trees import same

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "file\udcff"])
    | st.binary(max_size=8)
    | st.complex_numbers(allow_nan=False)
    | st.frozensets(st.integers(0, 9) | st.text(max_size=3), max_size=3)
    | st.sets(st.integers(0, 9) | st.binary(max_size=3), max_size=3)
    | st.sampled_from([slice(None), slice(1, 9, 2), slice("a", None)])
    | st.sampled_from([torch.bfloat16, torch.float8_e5m2, torch.device("cpu"), torch.device("cuda", 1)])
)
keys = st.text(max_size=4) | st.sampled_from(["%tuple", "%", "", "\udcff"])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(st.integers(0, 9) | st.tuples(st.integers(0, 9)), inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


def through_a_record(value: Value) -> Value:
    return decode_record(encode_record(value, record_size_bytes(value)))


@given(trees)
def test_a_value_comes_back_with_its_types(value: Any) -> None:
    assert same(from_record(through_a_record(to_record(value, "key")), "key"), value)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(Invalid, match=r"key 'w\\udcff': expected one that UTF-8 can hold"):
        Contents(values={"w\udcff": 1}).encode()


def test_a_size_and_a_stream_come_back() -> None:
    assert from_record(to_record(torch.Size([2, 3]), "key"), "key") == torch.Size([2, 3])
    stream = from_record(to_record(io.BytesIO(b"bytes"), "key"), "key")
    assert isinstance(stream, io.BytesIO)
    assert stream.getvalue() == b"bytes"


plain_dtypes = (
    np_st.scalar_dtypes() | np_st.unicode_string_dtypes(max_len=4) | np_st.byte_string_dtypes(max_len=4)
).filter(lambda dtype: dtype.itemsize <= 16 and dtype.str[1:] not in ("f16",))
arrays = np_st.arrays(plain_dtypes, np_st.array_shapes(min_dims=0, min_side=0, max_side=3))


@given(arrays)
def test_an_array_of_numpy_comes_back_bit_by_bit(array: npt.NDArray[Any]) -> None:
    got = from_record(through_a_record(to_record({"a": [array]}, "key")), "key")
    assert isinstance(got, dict)
    (back,) = got["a"]
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert back.flags.writeable


@given(arrays)
def test_scalars_of_numpy_come_back_as_what_they_are(array: npt.NDArray[Any]) -> None:
    for scalar in array.reshape(-1):
        back = from_record(through_a_record(to_record(scalar, "key")), "key")
        assert type(back) is type(scalar)
        assert isinstance(back, np.generic)
        assert isinstance(scalar, np.generic)
        assert (back.dtype, back.tobytes()) == (scalar.dtype, scalar.tobytes())


@given(arrays)
def test_what_torch_saved_of_numpy_is_read_without_code_of_numpys(array: npt.NDArray[Any]) -> None:
    for value in (array, np.asfortranarray(array), *array.reshape(-1)[:1]):
        stream = io.BytesIO()
        torch.save({"a": [value, 1]}, stream)
        stream.seek(0)
        got = load_plain(stream)
        assert isinstance(got, dict)
        back, one = got["a"]
        assert one == 1
        assert (type(back), back.dtype, back.shape) == (type(value), value.dtype, value.shape)
        assert back.tobytes() == value.tobytes()


@pytest.mark.parametrize("text", ["", "end\0", "\ud800"])
def test_text_and_bytes_scalars_keep_their_ends(text: str) -> None:
    for scalar in (np.str_(text), np.bytes_(text.encode(errors="surrogatepass"))):
        back = from_record(through_a_record(to_record(scalar, "key")), "key")
        assert type(back) is type(scalar)
        assert back == scalar
        assert isinstance(back, np.str_ | np.bytes_)
        assert len(back) == len(scalar)


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([{}], dtype=object),
        np.zeros(2, dtype=[("x", "i4")]),
        np.zeros(2, dtype="V3"),
        np.zeros(2, dtype=np.longdouble),
        np.ma.masked_array([1, 2], mask=[False, True]),
        np.rec.array([(1,)], dtype=[("x", "i4")]),
        np.zeros(2, dtype=ml_dtypes.bfloat16),
        np.longdouble(1),
        ml_dtypes.bfloat16(1),
    ],
)
def test_arrays_of_objects_records_and_machine_types_are_refused(value: Any) -> None:
    with pytest.raises(Invalid, match=r"'key'.*(numpy|bfloat16)"):
        to_record(value, "key")


@pytest.mark.parametrize(
    "told",
    [
        {"dtype": "|O", "shape": [1], "data": b"12345678"},
        {"dtype": "<f4", "shape": [2], "data": b"1234"},
        {"dtype": "<f4", "shape": [-1, -1], "data": b"1234"},
        {"dtype": "<f4", "shape": [1 << 60, 0, 1 << 60], "data": b"", "more": 1},
        {"dtype": "<f4,<i4", "shape": [1], "data": b"12345678"},
        {"dtype": "<f4", "shape": "12", "data": b"1234"},
        {"dtype": "|S0", "shape": [1], "data": b""},
        {"dtype": "str", "data": 1},
        {"dtype": 4},
        [],
    ],
)
def test_an_array_that_is_none_is_damage(told: Any) -> None:
    with pytest.raises(Corrupt, match="'key'"):
        from_record({"%scalar" if told and "shape" not in told else "%ndarray": told}, "key")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.fromfile, ("/etc/hostname",)


@pytest.mark.parametrize(
    "value", [Evil(), np.array([Evil()]), np.zeros(1, dtype=[("x", "O")]), np.random.default_rng()]
)
def test_what_needs_code_is_not_read(value: Any) -> None:
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_plain(stream)


class Point(NamedTuple):
    x: int


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Point(1), "Point"),
        (Colour.RED, "Colour"),
        (Counter("aab"), "Counter"),
        (np.array([None]), "ndarray of object"),
        (defaultdict(int), "defaultdict"),
        (datetime.timedelta(1), "timedelta"),
        (torch.zeros(1), "Tensor"),
        (torch.quint8, "dtype"),
    ],
)
def test_what_only_pickle_could_keep_is_refused_with_its_path_and_type(value: Any, kind: str) -> None:
    with pytest.raises(Invalid, match=rf"'optim\.extra\[1\]'.*{kind}"):
        to_record({"extra": [0, value]}, "optim")


def test_a_tensor_that_no_planner_has_found_is_told_where_planners_look() -> None:
    with pytest.raises(Invalid, match="Tensor") as caught:
        to_record({"inner": torch.zeros(1)}, "optim")
    assert "flatten_state_dict" in caught.value.hint
    assert "in dicts and lists, not in tuples" in caught.value.hint
    tensor = torch.zeros(1)
    flat, _ = flatten_state_dict({"dict": {"a": tensor}, "list": [tensor], "tuple": (tensor,)})
    assert {key for key, value in flat.items() if value is tensor} == {"dict.a", "list.0"}


def test_endless_nesting_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(Invalid, match="containers within one another"):
        to_record(value, "key")


def test_the_deepest_value_that_is_taken_fits_a_record() -> None:
    value: Any = 1
    for _ in range(MAX_LEVELS):
        value = {0: value}
    contents = Contents(values={"key": to_record(value, "key")})
    assert from_record(Contents.decode(contents.encode()).values["key"], "key") == value


@pytest.mark.parametrize(
    "value",
    [
        {"%later": 1},
        {"%tuple": 1},
        {"%dict": [[1]]},
        {"%dtype": "float3"},
        {"%int": "x"},
        {"%str": 1},
        {"%device": "x:y"},
    ],
)
def test_a_mark_that_is_unknown_or_misused_is_damage(value: Value) -> None:
    with pytest.raises(Corrupt, match="'key'"):
        from_record(value, "key")


def test_contents_come_back_and_are_the_same_bytes_in_any_order() -> None:
    one = Contents(
        values={"a": 1, "b": [2]},
        pickled={"p": b"x"},
        empty={"e": Empty(dtype="int16", shape=(3, 0))},
        paths={"a": ("a",), "list.0": ("list", 0)},
    )
    other = Contents(values={"b": [2], "a": 1}, pickled=one.pickled, empty=one.empty, paths=one.paths)
    assert Contents.decode(one.encode()) == one
    assert one.encode() == other.encode()


@given(st.binary(max_size=64))
def test_rubbish_is_no_contents(data: bytes) -> None:
    with pytest.raises(Corrupt):
        Contents.decode(data)


KEPT = Contents(
    values={"lr": 0.5, "betas": {"%tuple": [0.9, 0.1]}, "ids": {"%dict": [[0, "w"]]}, "shape": {"%size": [2, 3]}},
    pickled={"p": b"x"},
    empty={"e": Empty(dtype="int16", shape=(3, 0))},
    paths={"lr": ("optim", 0, "lr")},
)


@given(data=st.data())
def test_mangled_contents_are_told_or_are_values(data: st.DataObject) -> None:
    document = decode_record(KEPT.encode())
    body = data.draw(mangled_document(document, encode=msgspec.msgpack.encode))
    record = len(body).to_bytes(8, "little") + body
    with suppress(Corrupt, Invalid):
        for key, value in Contents.decode(record).values.items():
            from_record(value, key)


@pytest.mark.parametrize("num_levels", [100, 900, 100_000])
@pytest.mark.parametrize("outer", [b"\x91", b"\x81\xa6%tuple", b"\x81\xa1a"])
def test_values_that_are_nested_too_deeply_are_damage(num_levels: int, outer: bytes) -> None:
    body = msgspec.msgpack.encode({"version": 1, "pickled": {}, "empty": {}, "paths": {}, "values": {"key": 0}})
    body = body[:-1] + outer * num_levels + b"\x90"
    with pytest.raises(Corrupt, match=r"levels|recursion"):
        from_record(Contents.decode(len(body).to_bytes(8, "little") + body).values["key"], "key")


def test_contents_of_a_newer_release_are_refused() -> None:
    record: Value = {"version": 2, "values": {}}
    with pytest.raises(Invalid, match="expected version 1, got 2"):
        Contents.decode(encode_record(record, record_size_bytes(record)))


def test_the_values_of_the_golden_checkpoint_still_read() -> None:
    with closing(LocalStore(MORE)) as store:
        ref = latest(store)
        assert ref is not None
        contents = Contents.decode(read_array(store, open_commit(store, ref), "state/dcp").data)
    found = {key: from_record(value, key) for key, value in contents.values.items()}
    array, scalar = found.pop("array"), found.pop("scalar")
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.tolist()) == (np.dtype("<i2"), [1, -1])
    assert (type(scalar), scalar) == (np.float32, 1.0)
    assert found == {
        "betas": (0.9, 0.5 - 1j),
        "by number": {1: {2, 3}},
        "large": 1 << 70,
        "odd": "a\udc80",
        "plain": {"nested": [None, True, "text", b"bytes"]},
    }
    assert contents.empty == {"none": Empty(dtype="bfloat16", shape=(0, 4))}
    assert contents.paths == {"plain": ("optim", 0, "plain")}
