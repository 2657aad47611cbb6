"""One process reads a checkpoint block by block: everything once, in order, and never more than it was allowed."""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Corrupt, Invalid
from behemoth.checkpoint.chunk_reader import ChunkReader
from behemoth.checkpoint.counting import CountingStore
from behemoth.checkpoint.crc import TRAILER_BYTES
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.interop.stream import stream
from behemoth.checkpoint.into import num_bytes
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.checkpoint.opened import Commit, open_commit
from behemoth.ports import Into
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import logical_arrays, raw_bytes, save, toy_layout
from checkpoint.random_layouts import CHUNK_BYTES, layouts, small_chunks


def saved(layout: Layout) -> tuple[MemoryStore, Commit]:
    store = MemoryStore()
    return store, open_commit(store, save(store, layout, logical_arrays(layout, 1), step=5).ref)


@settings(max_examples=50, deadline=None)
@given(layout=layouts(), chunk_bytes=CHUNK_BYTES, limit=st.sampled_from([1, 40, 1 << 20]), threads=st.integers(1, 2))
def test_blocks_of_any_size_are_the_arrays_in_order(layout: Layout, chunk_bytes: int, limit: int, threads: int) -> None:
    with small_chunks(chunk_bytes):
        store, opened = saved(layout)
        found = {spec.name: np.zeros(spec.shape, DTYPES[spec.dtype]) for spec in layout.arrays}
        seen: Counter[str] = Counter()
        last = ""
        for block in stream(store, opened, limit_bytes=limit, threads=threads):
            assert block.name >= last
            last = block.name
            assert block.values.dtype == found[block.name].dtype
            found[block.name][tuple(slice(*ends) for ends in block.box)] = block.values
            seen[block.name] += block.values.size
        assert seen == {spec.name: spec.num_elements for spec in layout.arrays}
        wanted = logical_arrays(layout, 1)
        assert {name: raw_bytes(one) for name, one in found.items()} == {
            name: raw_bytes(one) for name, one in wanted.items()
        }


def test_each_chunk_is_read_once_where_a_block_has_room_for_a_row_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ArraySpec(name="w", dtype="float32", shape=(64, 48), dims=((1, "tp"),))
    read: Counter[int] = Counter()
    stride = ChunkReader.stride

    def counted(reader: ChunkReader, array: int, chunk: int) -> tuple[memoryview, int]:
        read[chunk] += 1
        return stride(reader, array, chunk)

    with small_chunks(1024):
        layout = Layout(mesh=Mesh(tp=3, edp=3), arrays=(spec,))
        store, opened = saved(layout)
        monkeypatch.setattr(ChunkReader, "stride", counted)
        num_blocks = sum(1 for _ in stream(store, opened, limit_bytes=4096))
        assert num_blocks > 1
        assert set(read.values()) == {1}
        assert len(read) == grids(layout)[0].num_chunks


def test_a_tensor_that_is_one_block_is_read_once_for_values_and_scale() -> None:
    spec = ArraySpec(name="w", dtype="float32", shape=(64, 48))
    with small_chunks(1024):
        memory, opened = saved(Layout(mesh=Mesh(), arrays=(spec,)))
        store = CountingStore(memory)
        found = {block.name: block.values for block in stream(store, opened, dtype="float8_e4m3fn", limit_bytes=4096)}
        grid = grids(opened.layout)[0]
        assert store.read_bytes == grid.num_chunks * (grid.stride_bytes + TRAILER_BYTES)  # the CRCs come first
    largest = np.abs(logical_arrays(opened.layout, 1)["w"].astype(np.float32)).max()
    assert found["w_scale"] == largest / np.float32(448)
    assert np.abs(found["w"].astype(np.float32)).max() == 448


def test_memory_is_a_block_and_a_chunk_whatever_the_size_of_the_tensor() -> None:
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="float32", shape=(4096, 2048)),))
    with small_chunks(1 << 18):
        store, opened = saved(layout)
        tracemalloc.start()
        try:
            total = sum(block.values.nbytes for block in stream(store, opened, limit_bytes=1 << 20))
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert total == 32 << 20
    assert peak_bytes < 3 << 20


class InPairs(MemoryStore):
    """Answers for the CRC beside a chunk only when another thread asks for one too."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__()
        self._objects = inner._objects
        self._both = threading.Barrier(2, timeout=60)

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        super().read_into(key, offset_bytes=offset_bytes, into=into)
        if num_bytes(into) == TRAILER_BYTES:
            self._both.wait()


def test_crcs_of_an_array_are_asked_for_on_several_threads() -> None:
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="float32", shape=(16, 64)),))
    with small_chunks(256):
        store, opened = saved(layout)
        blocks = list(stream(InPairs(store), opened, limit_bytes=1 << 20, threads=2))
    assert raw_bytes(blocks[0].values) == raw_bytes(logical_arrays(layout, 1)["w"])


def test_patterns_choose_and_a_precision_is_changed_on_the_way() -> None:
    store, opened = saved(toy_layout())
    got = {block.name: block.values for block in stream(store, opened, only=["model/*"], dtype="bfloat16")}
    arrays = logical_arrays(toy_layout(), 1)
    assert sorted(got) == sorted(name for name in arrays if name.startswith("model/"))
    assert raw_bytes(got["model/norm"]) == raw_bytes(arrays["model/norm"].astype(DTYPES["bfloat16"]))
    with pytest.raises(Invalid, match=r"expected patterns of its arrays, got \['modle/\*'\]"):
        stream(store, opened, only=["model/*", "modle/*"])


def test_a_damaged_chunk_is_never_given_out() -> None:
    store, opened = saved(toy_layout())
    position = opened.layout.positions["model/dense"]
    store._objects[opened.shard_key(position, 0)][0] ^= 1
    with pytest.raises(Corrupt, match="array 'model/dense', chunk 0, file "):
        list(stream(store, opened, only=["model/dense"]))
