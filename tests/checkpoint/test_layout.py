"""Layouts refuse what cannot be, and keep their form."""

from __future__ import annotations

import itertools
from typing import get_args

import msgspec
import pytest

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.commit_record import FormatVersion, format_of
from behemoth.checkpoint.cuts import MAX_CHUNK_BYTES
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import ArraySpec, Chunking, Layout
from behemoth.checkpoint.names import escaped_paths, groups_of
from behemoth.spec.mesh import Mesh
from checkpoint.checkpoint_rig import toy_layout


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"dtype": "float128"}, "known dtype, got 'float128'"),
        ({"shape": (0,)}, r"sizes of 1 .. 2\^46 - 1, got shape \(0,\)"),
        ({"shape": (True,)}, "sizes of 1 "),
        ({"shape": (1 << 40, 1 << 40)}, r"fewer than 2\^62 bytes"),
        ({"dims": ((1, "tp"),)}, r"split dim once within 0 \.\. 0, got \[1\]"),
        ({"dims": ((0, "tp"), (0, "dp"))}, "split dim once"),
        ({"dims": ((0, "xp"),)}, "mesh axes, got .'xp'"),
        ({"dims": ((0, "tp"),), "flat_over": "tp"}, "each axis once"),
        ({"dims": ((0, "rank"),), "flat_over": "dp"}, "rank alone"),
        ({"dims": ((0, "tp"),), "flat_over": "edp"}, r"one mesh, dense or expert, got \['edp', 'tp'\]"),
        (
            {"dims": ((0, "cp"),), "flat_over": ("cp", "dp")},
            r"each axis once, and rank alone, got \['cp', \('cp', 'dp'\)\]",
        ),
        ({"dims": ((0, ()),)}, r"each axis once, .* got \[\(\)\]"),
        ({"dims": ((0, ("dp", "etp")),)}, r"one mesh, dense or expert, got \['dp', 'etp'\]"),
        ({"dims": ((0, ("dp", "rank")),)}, "rank alone"),
        ({"flat_over": ("dp", "cp")}, r"'w': expected an axis, or .* in the order of the mesh, got \('dp', 'cp'\)"),
        ({"flat_over": ("dp", "pp"), "stage": 0}, "no axis pp"),
        ({"dims": ((0, "pp"),), "stage": 0}, "no axis pp"),
        ({"stage": -1}, "stage >= 0"),
        ({"packed": (0, (4, 4))}, "add up to a split dim"),
        ({"dims": ((0, "tp"),), "packed": (0, (4, 3))}, r"add up to a split dim, got \[4, 3\]"),
        ({"dims": ((0, "tp"),), "packed": (0, (8,))}, "two or more packed parts"),
        ({"dims": ((0, "tp"),), "packed": (0, (8, 0))}, "each >= 1"),
        ({"flat_rows": True}, "flat_over and a shape with rows"),
        ({"flat_bucket": (0, 99)}, "flat_over and no flat_rows beside flat_bucket"),
        ({"flat_over": "dp", "flat_bucket": (-1, 99)}, "a begin >= 0"),
        ({"padded": (0, 16)}, "for a split dim that is not packed, got 16 for dim 0 .* split dims .."),
        ({"dims": ((0, "tp"),), "padded": (0, 7)}, "a padded size of at least its own .* got 7"),
        ({"dims": ((0, "tp"),), "packed": (0, (4, 4)), "padded": (0, 16)}, "a split dim that is not packed"),
        ({"name": ""}, "1 .. 1024 bytes"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "a\0b"}, "printable"),
        ({"name": "x" * 1025}, "1 .. 1024 bytes of printable text, got 1025 bytes"),
        ({"name": "x" * 300}, "at most 240 bytes between two slashes, escaped, got 300 bytes"),
        ({"name": "/".join(["é" * 40] * 4)}, "at most 900 bytes, escaped, got 963 bytes"),
    ],
)
def test_an_impossible_array_is_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        ArraySpec(**{"name": "w", "dtype": "float32", "shape": (8,), **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (ArraySpec(name="w", dtype="int8", shape=(7,), stage=1), "stage below mesh.pp = 1, got 1"),
    ],
)
def test_an_array_that_does_not_fit_the_mesh_is_refused(array: ArraySpec, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        Layout(mesh=Mesh(tp=2, edp=2), arrays=(array,))


def test_arrays_are_sorted_and_unique() -> None:
    first, second = (ArraySpec(name=name, dtype="int8", shape=(1,)) for name in "ab")
    assert Layout(mesh=Mesh(), arrays=(second, first)) == Layout(mesh=Mesh(), arrays=(first, second))
    with pytest.raises(Invalid, match="'a' twice"):
        Layout(mesh=Mesh(), arrays=(first, second, first))


def test_a_layout_survives_encoding_and_keeps_its_digest() -> None:
    layout = toy_layout()
    again = Layout.decode(layout.encode())
    assert (again, again.digest) == (layout, layout.digest)
    assert toy_layout(scale_may_be_zero=True).digest != layout.digest


def test_a_layout_with_several_axes_survives_too_and_asks_for_a_reader_that_knows_them() -> None:
    several, one = (
        Layout(mesh=Mesh(cp=2, dp=2, edp=4), arrays=(ArraySpec(name="m", dtype="int8", shape=(5,), flat_over=over),))
        for over in (("cp", "dp"), "dp")
    )
    again = Layout.decode(several.encode())
    assert (again, again.arrays) == (several, several.arrays)
    assert several.digest != one.digest
    assert format_of(several) == (FormatVersion(major=1, minor=3), ("joint-axes",))
    assert format_of(one) == (FormatVersion(major=1, minor=0), ())


def test_a_dim_over_several_axes_survives_in_its_order_and_asks_for_a_reader_that_knows_it() -> None:
    mesh = Mesh(dp=4, etp=2, edp=2)
    first, second = (
        Layout(mesh=mesh, arrays=(ArraySpec(name="m", dtype="int8", shape=(8,), dims=((0, axes),)),))
        for axes in (("edp", "etp"), ("etp", "edp"))
    )
    assert Layout.decode(first.encode()).arrays == first.arrays
    assert first.digest != second.digest
    assert format_of(first) == (FormatVersion(major=1, minor=4), ("joint-dims",))
    alone = first.arrays[0].without_idle_axes(Mesh(dp=2, edp=2))
    assert alone.dims == ((0, "edp"),)
    assert format_of(Layout(mesh=mesh, arrays=(alone,))) == (FormatVersion(major=1, minor=0), ())


def test_a_layout_of_close_chunks_survives_too_and_no_rules_but_two_are_known() -> None:
    plain, close = (Layout(mesh=Mesh(), arrays=(PLAIN,), chunking=rules) for rules in get_args(Chunking))
    again = Layout.decode(close.encode())
    assert (again, again.chunking) == (close, "close")
    assert plain.digest != close.digest
    assert b"chunking" not in plain.encode()
    with pytest.raises(Invalid, match="expected chunking plain or close, got 'fine'"):
        Layout(mesh=Mesh(), arrays=(PLAIN,), chunking="fine")  # type: ignore[arg-type]


PLAIN = ArraySpec(name="plain", dtype="int8", shape=(8,))
PADDED = ArraySpec(name="padded", dtype="int8", shape=(7,), dims=((0, "etp"),), padded=(0, 8))
FLAT_OVER_TWO = ArraySpec(name="flat", dtype="int8", shape=(8,), flat_over=("cp", "dp"))
DIM_OVER_TWO = ArraySpec(name="dim", dtype="int8", shape=(8,), dims=((0, ("edp", "etp")),))
FEATURES = {
    "box-shards": None,
    "padded-dims": PADDED,
    "joint-axes": FLAT_OVER_TWO,
    "joint-dims": DIM_OVER_TWO,
    "close-chunks": None,
}


@pytest.mark.parametrize("used", list(itertools.product([False, True], repeat=len(FEATURES))))
def test_one_array_that_needs_a_feature_makes_it_required_and_the_newest_of_them_the_format(
    used: tuple[bool, ...],
) -> None:
    names = tuple(name for name, is_used in zip(FEATURES, used, strict=True) if is_used)
    layout = Layout(
        mesh=Mesh(cp=2, dp=2, etp=2, edp=2),
        arrays=(PLAIN, *(array for name in names if (array := FEATURES[name]) is not None)),
        sharding="box" if used[0] else "array",
        chunking="close" if used[-1] else "plain",
    )
    newest = max((number for number, is_used in enumerate(used, start=1) if is_used), default=0)
    assert format_of(layout) == (FormatVersion(major=1, minor=newest), names)


def test_rubbish_is_no_layout_and_a_newer_one_is_refused_with_a_hint() -> None:
    data = toy_layout().encode()
    for bad in (b"", b"\x00", data[:-1], data + b"\x00", b"\x81\xa7version\x01"):
        with pytest.raises(Corrupt):
            Layout.decode(bad)
    document = msgspec.msgpack.decode(data)
    with pytest.raises(Invalid, match="expected format version 1, got 2") as caught:
        Layout.decode(msgspec.msgpack.encode({**document, "version": 2}))
    assert "upgrade" in caught.value.hint
    document["arrays"][0]["dtype"] = "float7"
    with pytest.raises(Invalid, match="got 'float7'"):
        Layout.decode(msgspec.msgpack.encode(document))


def test_troublesome_names_get_safe_paths_none_inside_another() -> None:
    names = [
        "a",
        "a/b",
        ".",
        "..",
        "a/../b",
        "c",
        "x/c",
        "x/zarr.json",
        "index",
        "a//b",
        "a/",
        "__m",
        ".behemoth-tmp-1",
        "é",
        "a b",
        "%2E",
        "a%.",
    ]
    paths = escaped_paths(names)
    assert len(set(paths)) == len(names)
    assert dict(zip(names, paths, strict=True)) | {"a": "a%.", "index": "%69ndex", "x/c": "x/%63"} == dict(
        zip(names, paths, strict=True)
    )
    for path in paths:
        assert all(segment not in ("", ".", "..", "c", "zarr.json") for segment in path.split("/"))
        assert not any(segment.startswith(("__", ".behemoth-tmp-")) for segment in path.split("/"))
        assert not any(other.startswith(path + "/") for other in paths)
    assert not set(groups_of(paths)) & set(paths)


@pytest.mark.parametrize(
    ("shape", "dims", "chunk"),
    [
        ((), (), ()),
        ((100,), (), (100,)),
        ((16, 4096, 4096), ((0, "ep"),), (1, 512, 4096)),  # whole rows, a divisor of the block
        ((4096, 8192), ((1, "tp"),), (512, 4096)),  # never over a block's boundary
        ((9_000_011,), (), (1_800_003,)),  # a prime: padded by four elements, not cut to single ones
        ((2 * 9_000_011,), ((0, "tp"),), (9_000_011,)),  # a split dim is never padded
        ((3, 5_000_000), (), (1, 1_250_000)),
    ],
)
def test_chunks_follow_blocks_and_divisors(
    shape: tuple[int, ...], dims: tuple[tuple[int, str], ...], chunk: tuple[int, ...]
) -> None:
    spec = ArraySpec(name="w", dtype="float32", shape=shape, dims=dims)  # type: ignore[arg-type]
    (grid,) = grids(Layout(mesh=Mesh(tp=2, ep=2), arrays=(spec,)))
    assert grid.chunk_shape == chunk
    assert grid.payload_bytes <= MAX_CHUNK_BYTES or dims == ((0, "tp"),)
    assert grid.file_bytes == grid.num_chunks * (grid.stride_bytes + 16) + 4
