"""A rank's arrays filled from the shard files themselves, through the page cache and past it."""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from behemoth.base.errors import Corrupt, Invalid, Unavailable
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint import cuts
from behemoth.checkpoint.grid import Grid, grids
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import plan_rank
from behemoth.sdk import cold_files, files
from behemoth.sdk.cold_files import read_cold_files
from behemoth.sdk.files import read_files
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import local_arrays, logical_arrays, out_buffers, raw_bytes, save, toy_layout
from checkpoint.random_layouts import layouts, small_chunks

PREFIX = step_prefix(Step(3), WriteId("a1-1"))


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, cold_files):
        monkeypatch.setattr(module, "BLOCK_BYTES", 5)
        monkeypatch.setattr(module, "BATCH_BYTES", 100)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path)
    yield store
    store.close()


def shard(store: LocalStore, layout: Layout, name: str) -> Path:
    at = layout.positions[name]
    return Path(store.root, PREFIX, layout.paths[at], grids(layout)[at].shard_key(0))


@pytest.fixture(params=[read_files, read_cold_files], ids=["cached", "cold"])
def read(request: pytest.FixtureRequest) -> Callable[..., None]:
    reader: Callable[..., None] = request.param
    return reader


class Filled(Protocol):
    def __call__(self, store: LocalStore, layout: Layout, rank: int, *, threads: int = 1) -> dict[str, bytes]: ...


@pytest.fixture
def filled(read: Callable[..., None]) -> Filled:
    """The bytes of a rank's arrays that one of the readers has filled."""
    return partial(filled_by, read)


def filled_by(
    read: Callable[..., None], store: LocalStore, layout: Layout, rank: int, *, threads: int = 1
) -> dict[str, bytes]:
    plan = plan_rank(layout, Rank(rank))
    out = out_buffers(plan)
    read(os.path.join(store.root, PREFIX), layout, plan, out, threads=threads)
    return {name: array.tobytes() for name, array in out.items()}


@pytest.mark.parametrize("chunk_bytes", [64, cuts.MAX_CHUNK_BYTES])
def test_every_rank_gets_what_was_saved_however_chunks_and_pieces_lie(
    store: LocalStore, chunk_bytes: int, filled: Filled
) -> None:
    layout = toy_layout()
    arrays = logical_arrays(layout, 1)
    with small_chunks(chunk_bytes):
        save(store, layout, arrays, step=3)
        for rank in range(4):
            local = local_arrays(layout, rank, arrays)
            expected = {name: raw_bytes(array) for name, array in local.items()}
            assert filled(store, layout, rank, threads=1 + rank % 3) == expected


def test_a_flipped_bit_anywhere_in_a_chunk_is_corrupt_and_named(store: LocalStore, filled: Filled) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)
    path = shard(store, layout, "model/norm")
    intact = path.read_bytes()
    grid = grids(layout)[layout.positions["model/norm"]]
    for at in range(grid.payload_bytes + 4):
        damaged = bytearray(intact)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(Corrupt, match=r"'model/norm', chunk 0, file .*norm"):
            filled(store, layout, 0)
    path.write_bytes(intact)
    filled(store, layout, 0)


@pytest.mark.parametrize("kept_bytes", [0, 7, 132, 135])
def test_a_file_that_ends_too_early_is_corrupt(store: LocalStore, kept_bytes: int, filled: Filled) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)
    os.truncate(shard(store, layout, "model/norm"), kept_bytes)
    with pytest.raises(Corrupt, match="bytes, got"):
        filled(store, layout, 1, threads=2)


@pytest.mark.parametrize("extra", [b"\0", bytes(4096)])
def test_a_file_that_is_too_long_is_not_believed(store: LocalStore, extra: bytes, filled: Filled) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)
    with shard(store, layout, "model/norm").open("ab") as file:
        file.write(extra)
    with pytest.raises(Corrupt, match="bytes, got"):
        filled(store, layout, 1)


class _FailingDisk(io.FileIO):
    """Opens, and cannot be read."""

    def readinto(self, buffer: object) -> int:  # noqa: ARG002 (a FileIO's)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class _FewAtOnce(io.FileIO):
    """Gives three bytes at most for each call, as a network's file system may."""

    def readinto(self, buffer: Buffer) -> int:
        return super().readinto(memoryview(buffer).cast("B")[:3])


def opened_as(kind: type[io.FileIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "opened", lambda path, grid: io.BufferedReader(kind(path)))  # noqa: ARG005


def test_bytes_that_the_disk_does_not_give_are_an_error(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)
    opened_as(_FailingDisk, monkeypatch)
    with pytest.raises(Unavailable, match="Input/output error"):
        filled_by(read_files, store, layout, 0)


def test_a_file_that_is_cut_while_it_is_read_is_corrupt(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, filled: Filled
) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)
    opened = files.opened

    def cut_after_opening(path: str, grid: Grid) -> io.BufferedReader:
        file = opened(path, grid)
        os.truncate(path, 3)
        return file

    for module in (files, cold_files):
        monkeypatch.setattr(module, "opened", cut_after_opening)
    with pytest.raises(Corrupt, match=r"chunk 0, file .*: the file became shorter"):
        filled(store, layout, 0)


def test_a_file_system_that_gives_few_bytes_at_once_is_asked_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = toy_layout()
    arrays = logical_arrays(layout, 1)
    save(store, layout, arrays, step=3)
    opened_as(_FewAtOnce, monkeypatch)
    expected = {name: raw_bytes(array) for name, array in local_arrays(layout, 3, arrays).items()}
    assert filled_by(read_files, store, layout, 3) == expected


def test_an_error_of_a_direct_read_is_told(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)

    def failing(fd: int, _views: object, _at: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(fd))

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(Unavailable, match=r"read .*: Input/output error"):
        filled_by(read_cold_files, store, layout, 0)


@pytest.mark.parametrize("skew_bytes", [0, 64])
@pytest.mark.parametrize("answer", ["all", "few", "no"])
def test_whole_chunks_go_past_the_page_cache_whatever_the_disk_gives_at_once(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, skew_bytes: int, answer: str
) -> None:
    """`no`: a file system without direct I/O of such pieces; `few`: one page at most for each call."""
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="a", dtype="uint8", shape=(5, cuts.MAX_CHUNK_BYTES // 4)),))
    arrays = logical_arrays(layout, 1)
    save(store, layout, arrays, step=3)
    into = np.frombuffer(mmap.mmap(-1, arrays["a"].nbytes + 4096), np.uint8)[skew_bytes:][: arrays["a"].nbytes]
    direct: list[int] = []
    preadv = os.preadv

    def asked(fd: int, views: list[memoryview], at: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT == 0:
            return preadv(fd, views, at)
        direct.append(at)
        if answer == "no":
            raise OSError(errno.EINVAL, "no direct I/O")
        return preadv(fd, [views[0][:4096]] if answer == "few" else views, at)

    monkeypatch.setattr(os, "preadv", asked)
    monkeypatch.setattr(cold_files, "BLOCK_BYTES", 1 << 20)
    read_cold_files(os.path.join(store.root, PREFIX), layout, plan_rank(layout, Rank(0)), {"a": into.data}, threads=2)
    assert into.tobytes() == arrays["a"].tobytes()
    assert len(direct) == len(plan_rank(layout, Rank(0)).spans)


def test_a_missing_file_and_a_link_in_its_place_are_not_read(store: LocalStore, tmp_path: Path, filled: Filled) -> None:
    layout = toy_layout()
    save(store, layout, logical_arrays(layout, 1), step=3)
    path = shard(store, layout, "optim/dense")
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    with pytest.raises(Unavailable, match=r"dense.*No such file"):
        filled(store, layout, 2)
    path.symlink_to(elsewhere)
    with pytest.raises(Unavailable, match="dense"):
        filled(store, layout, 2)


def test_a_buffer_of_another_size_is_refused_before_anything_is_read(
    store: LocalStore, read: Callable[..., None]
) -> None:
    layout = Layout(mesh=Mesh(), arrays=tuple(ArraySpec(name=n, dtype="uint8", shape=(9,)) for n in "ab"))
    save(store, layout, logical_arrays(layout, 1), step=3)
    out = {"a": np.zeros(9, np.uint8), "b": np.zeros(8, np.uint8)}
    with pytest.raises(Invalid, match="'b'"):
        read(os.path.join(store.root, PREFIX), layout, plan_rank(layout, Rank(0)), out)
    assert not out["a"].any()


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), chunk_bytes=st.sampled_from([16, 64, 300]), seed=st.integers(0, 99))
def test_random_worlds_are_read_from_their_files(layout: Layout, chunk_bytes: int, seed: int) -> None:
    with small_chunks(chunk_bytes), pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for module in (files, cold_files):
            patch.setattr(module, "BLOCK_BYTES", 5)
        store, arrays = LocalStore(folder), logical_arrays(layout, seed)
        save(store, layout, arrays, step=3)
        for rank in range(layout.mesh.num_ranks):
            local = local_arrays(layout, rank, arrays)
            expected = {name: raw_bytes(array) for name, array in local.items()}
            assert filled_by(read_files, store, layout, rank) == expected
            assert filled_by(read_cold_files, store, layout, rank, threads=rank % 3) == expected
        store.close()
