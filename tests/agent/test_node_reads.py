"""Ranks of a node that restore on another layout read each chunk from the directory once, whatever one of them does."""

from __future__ import annotations

import errno
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.restoring_node import Node, ReadLog, nodes_of, saved_in_files
from behemoth.agent import node_reads, preparing
from behemoth.agent.node_reads import NodeReads
from behemoth.base.errors import BehemothError, Unavailable
from behemoth.base.ids import Rank
from behemoth.checkpoint import chunk_reader, scale_waves, scaled_reader
from behemoth.checkpoint.chunk_reader import Lent
from behemoth.checkpoint.common_chunks import CommonChunks, SharedObject
from behemoth.checkpoint.conversion import Cast, Intake, ScaledDown
from behemoth.checkpoint.crc import crc32c
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.layout import DTYPES, ArraySpec, Layout
from behemoth.checkpoint.reading_threads import reading_threads
from behemoth.checkpoint.scale_waves import Wave, plan_waves
from behemoth.checkpoint.units import ReadUnit
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import Logical, local_arrays, logical_arrays, raw_bytes
from checkpoint.plain_scales import scaled
from checkpoint.random_layouts import CHUNK_BYTES, layouts, reshared, small_chunks

SHAPE = (12, 40)


def columns(tp: int) -> Layout:
    array = ArraySpec(name="w", dtype="uint8", shape=SHAPE, dims=((1, "tp"),))
    return Layout(mesh=Mesh(tp=tp, edp=tp), arrays=(array,))


ARRAYS = logical_arrays(columns(2), 1)


@contextmanager
def node_of_four(before: Callable[[str], None] = lambda _key: None) -> Iterator[Node]:
    """Saved as TP 2 in chunks of 60 bytes; restored as TP 4 on one node. `before` is called before each read."""
    with (
        small_chunks(60),
        saved_in_files(columns(2), ARRAYS) as root,
        nodes_of(root, columns(4), ranks_per_node=4, before=before) as nodes,
    ):
        yield nodes[0]


def wanted_of_a(readers: Sequence[Set[int]]) -> CommonChunks:
    """Of units of ten bytes of the object `a`, one behind the other."""
    is_read = np.array([[rank in some for some in readers] for rank in range(3)])
    bits = np.packbits(is_read, axis=0, bitorder="little")
    return CommonChunks([Rank(rank) for rank in range(3)], {"a": SharedObject(10, 10, bits)}.get)


def is_right(node: Node, rank: Rank, layout: Layout, arrays: Logical) -> bool:
    expected = {name: raw_bytes(array) for name, array in local_arrays(layout, rank, arrays).items()}
    return node.held(rank) == expected


def is_chunk(key: str) -> bool:
    """Whether an object has chunks: what else is read is metadata."""
    return "/c/" in key


def chunk_reads(store: ReadLog) -> list[int]:
    """How often each chunk was read."""
    return [num for (key, _), num in store.num_reads.items() if is_chunk(key)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), old=layouts(), chunk_bytes=CHUNK_BYTES, ranks_per_node=st.integers(2, 8))
def test_each_chunk_is_read_once_by_each_node_and_every_element_is_right(
    data: st.DataObject, old: Layout, chunk_bytes: int, ranks_per_node: int
) -> None:
    new, arrays = data.draw(reshared(old)), logical_arrays(old, 1)
    assume(new.digest != old.digest)
    with (
        small_chunks(chunk_bytes),
        saved_in_files(old, arrays) as root,
        nodes_of(root, new, ranks_per_node=ranks_per_node) as nodes,
    ):
        for node in nodes:
            node.restore_all()
            assert all(is_right(node, rank, new, arrays) for rank in node.ranks)
            assert max(node.store.num_reads.values()) == 1


@settings(max_examples=40, deadline=None)
@given(data=st.data(), old=layouts(), limit_bytes=st.sampled_from([0, 20, 100, 700]))
def test_memory_for_what_others_want_is_bounded_and_every_element_is_right_without_it(
    data: st.DataObject, old: Layout, limit_bytes: int
) -> None:
    new, arrays = data.draw(reshared(old)), logical_arrays(old, 1)
    peaks = [0]

    class Watched(NodeReads):
        def _memory(self, num_bytes: int) -> memoryview | None:
            memory = super()._memory(num_bytes)
            held = sum(unit.length_bytes for unit in self._held) + sum(
                size * len(some) for size, some in self._free.items()
            )
            peaks.append(held + num_bytes * (memory is not None))
            return memory

    with (
        small_chunks(16),
        saved_in_files(old, arrays) as root,
        nodes_of(root, new, ranks_per_node=4) as nodes,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(preparing, "NodeReads", Watched)
        patch.setattr(preparing, "NODE_BYTES", limit_bytes)
        for node in nodes:
            node.restore_all()
            assert all(is_right(node, rank, new, arrays) for rank in node.ranks)
    assert max(peaks) <= limit_bytes


@pytest.mark.parametrize("axis", ["tp", "dp"])
def test_values_that_are_converted_and_looked_through_for_scales_are_read_once(axis: Literal["tp", "dp"]) -> None:
    values = np.linspace(-3, 3, 480, dtype=np.float32).reshape(SHAPE)
    scale = np.array([[np.float32(3) / np.float32(448)]], dtype=np.float32)
    array = ArraySpec(name="w", dtype="float32", shape=SHAPE, dims=((1, "tp"),))
    old = Layout(mesh=Mesh(tp=2, edp=2), arrays=(array,))
    is_flat = axis == "dp"
    shared = replace(array, dims=() if is_flat else array.dims, flat_over="dp" if is_flat else None)
    wanted = {
        "half": values.astype(DTYPES["bfloat16"]),
        "small": (values / scale).astype(DTYPES["float8_e4m3fn"]),
    }
    arrays = tuple(replace(shared, name=name, dtype=one.dtype.name) for name, one in wanted.items())
    new = Layout(mesh=Mesh(dp=4, edp=4) if is_flat else Mesh(tp=4, edp=4), arrays=arrays)
    intake = Intake(convert={"half": Cast(array="w"), "small": ScaledDown(array="w", block=SHAPE)}, extra=("w",))
    with (
        small_chunks(64),
        saved_in_files(old, {"w": values}) as root,
        nodes_of(root, new, ranks_per_node=4) as (node,),
    ):
        node.restore_all(intake)
        assert all(is_right(node, rank, new, wanted) for rank in node.ranks)
        assert chunk_reads(node.store) == grids(old)[0].num_chunks * [1]


@pytest.mark.parametrize("number", range(4))
def test_a_rank_whose_read_fails_fails_alone_and_gets_everything_when_it_tries_again(number: int) -> None:
    """Of a chunk that it reads for others too: these read it themselves."""
    taken, lock = itertools.count(), threading.Lock()

    def before(key: str) -> None:
        with lock:
            if is_chunk(key) and next(taken) == number:
                raise Unavailable(f"read {key}: the disk is away")

    with node_of_four(before) as node:
        failed: list[Rank] = []
        threads = [threading.Thread(target=_restore, args=(node, rank, failed)) for rank in node.ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(failed) == 1
        assert all(is_right(node, rank, columns(4), ARRAYS) for rank in node.ranks if rank not in failed)
        node.restore(failed[0])
        assert is_right(node, failed[0], columns(4), ARRAYS)


def _restore(node: Node, rank: Rank, failed: list[Rank]) -> None:
    try:
        node.restore(rank)
    except BehemothError:
        failed.append(rank)


def test_ranks_do_not_wait_for_one_whose_read_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_reads, "WAIT_LIMIT_S", 0.0)
    first, stuck, freed = threading.Lock(), threading.Event(), threading.Event()

    def before(key: str) -> None:
        if is_chunk(key) and first.acquire(blocking=False):
            stuck.set()
            freed.wait(60)

    with node_of_four(before) as node:
        hanging = threading.Thread(target=node.restore, args=(Rank(0),))
        hanging.start()
        assert stuck.wait(60)
        for rank in node.ranks[1:]:
            node.restore(rank)
            assert is_right(node, rank, columns(4), ARRAYS)
        freed.set()
        hanging.join(60)
        assert is_right(node, Rank(0), columns(4), ARRAYS)


def test_a_rank_waits_for_one_of_the_reads_that_another_is_stuck_in_and_not_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [ReadUnit("a", at, 10) for at in (0, 10)]
    reads = NodeReads(wanted_of_a([{0, 1}, {0, 1}]), unit_of=ReadUnit, limit_bytes=20)
    begun, freed = threading.Semaphore(0), threading.Event()

    def get_stuck(_data: memoryview) -> None:
        begun.release()
        freed.wait(60)

    def read(unit: ReadUnit) -> None:
        with reads.lent(unit, Rank(0), get_stuck):
            pass

    with closing(ReadLog(tmp_path)) as store, reads.of(Rank(0), store), reads.of(Rank(1), store) as one:
        store.create("a", bytes(range(20)))
        stuck = [threading.Thread(target=read, args=(unit,)) for unit in units]
        for thread in stuck:
            thread.start()
            assert begun.acquire(timeout=60)
        into = [bytearray(10), bytearray(10)]
        monkeypatch.setattr(node_reads, "WAIT_LIMIT_S", 0.0)
        one.read_into("a", offset_bytes=0, into=into[0])
        monkeypatch.setattr(node_reads, "WAIT_LIMIT_S", 3600.0)
        last = threading.Thread(target=one.read_into, args=("a",), kwargs={"offset_bytes": 10, "into": into[1]})
        last.start()
        last.join(20)
        is_waiting = last.is_alive()
        freed.set()
        for thread in (*stuck, last):
            thread.join(60)
    assert not is_waiting
    assert b"".join(into) == bytes(range(20))


def test_a_rank_reads_for_itself_where_the_machine_has_no_memory_for_what_others_want(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_num_bytes: int) -> memoryview:
        raise OSError(errno.ENOMEM, "cannot allocate memory")

    with node_of_four() as node:
        monkeypatch.setattr(node_reads, "own_memory", refuse)
        node.restore_all()
        assert all(is_right(node, rank, columns(4), ARRAYS) for rank in node.ranks)
        assert max(chunk_reads(node.store)) == 2


def test_a_chunk_that_no_other_rank_wants_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[ReadUnit] = Counter()
    lend = NodeReads.lent

    def counted(self: NodeReads, unit: ReadUnit, *arguments: Any) -> AbstractContextManager[Lent | None]:
        asked[unit] += 1
        return lend(self, unit, *arguments)

    monkeypatch.setattr(NodeReads, "lent", counted)
    arrays = logical_arrays(columns(4), 1)
    with (
        small_chunks(60),
        saved_in_files(columns(4), arrays) as root,
        nodes_of(root, columns(2), ranks_per_node=2) as (node,),
    ):
        node.restore_all()
        assert all(is_right(node, rank, columns(2), arrays) for rank in node.ranks)
        assert list(asked.values()) == grids(columns(4))[0].num_chunks * [1]


def test_a_chunk_that_several_ranks_take_where_it_lies_is_summed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    summed: list[int] = []

    def counted(data: memoryview) -> int:
        summed.append(data.nbytes)
        return crc32c(data)

    monkeypatch.setattr(chunk_reader, "crc32c", counted)
    with node_of_four() as node:
        node.restore_all()
        assert all(is_right(node, rank, columns(4), ARRAYS) for rank in node.ranks)
        assert summed == grids(columns(2))[0].num_chunks * [60]


def test_the_kernel_is_asked_once_for_all_ranks_of_a_restore_what_it_has_of_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[LocalStore] = []

    def counted(store: LocalStore, *arguments: Any, threads: int) -> int:
        asked.append(store)
        return reading_threads(store, *arguments, threads=threads)

    monkeypatch.setattr(preparing, "reading_threads", counted)
    with node_of_four() as node:
        node.restore_all()
        assert asked == [node.store]
        node.clear()  # it saves meanwhile, and the page cache holds other files
        node.restore_all()
        assert asked == [node.store, node.store]


def test_a_gang_that_restores_again_reads_each_chunk_once_more() -> None:
    with node_of_four() as node:
        node.restore_all()
        node.restore_all()
        num_chunks = grids(columns(2))[0].num_chunks
        assert chunk_reads(node.store) == num_chunks * [2]


def test_a_node_that_takes_another_slot_before_anything_is_saved_restores_that_one_together_as_well() -> None:
    with (
        small_chunks(60),
        saved_in_files(columns(2), ARRAYS) as root,
        nodes_of(root, columns(4), ranks_per_node=2) as (node, other),
    ):
        node.restore_all()
        node.take(other.ranks[0])
        node.restore_all()
        assert all(is_right(node, rank, columns(4), ARRAYS) for rank in other.ranks)
        assert max(chunk_reads(node.store)) == 1


@pytest.mark.parametrize(("node_bytes", "num_reads"), [(4 * 480, 1), (4 * 480 - 4, 2)])
def test_what_all_ranks_of_a_node_keep_for_scales_is_bounded_for_the_node(
    monkeypatch: pytest.MonkeyPatch, node_bytes: int, num_reads: int
) -> None:
    """Each of four ranks converts 480 bytes by the one scale of a tensor; what it may not keep it reads again."""
    allowed: list[int] = []

    def planned(*arguments: Any, kept_bytes: int) -> list[Wave]:
        allowed.append(kept_bytes)
        return plan_waves(*arguments, kept_bytes=kept_bytes)

    monkeypatch.setattr(scale_waves, "NODE_KEPT_BYTES", node_bytes)
    monkeypatch.setattr(scaled_reader, "plan_waves", planned)
    values = {"w": np.linspace(-1, 1, 480, dtype=np.float32).reshape(SHAPE)}
    old, new = (
        replace(columns(4), arrays=(replace(columns(4).arrays[0], dtype=dtype),))
        for dtype in ("float32", "float8_e4m3fn")
    )
    weights, _ = scaled(values["w"], SHAPE, "float8_e4m3fn")
    with (
        small_chunks(48),
        saved_in_files(old, values) as root,
        nodes_of(root, new, ranks_per_node=4) as nodes,
    ):
        nodes[0].restore_all(Intake(convert={"w": ScaledDown(array="w", block=SHAPE)}))
        assert sum(allowed) <= node_bytes
        assert max(chunk_reads(nodes[0].store)) == num_reads
        assert all(is_right(nodes[0], rank, new, {"w": weights}) for rank in nodes[0].ranks)


def test_ranks_of_the_saved_layout_read_files_straight_into_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "read_by_several", pytest.fail)
    with saved_in_files(columns(2), ARRAYS) as root, nodes_of(root, columns(2), ranks_per_node=2) as nodes:
        nodes[0].restore_all()
        assert is_right(nodes[0], Rank(1), columns(2), ARRAYS)


def test_what_is_kept_for_ranks_that_do_not_come_makes_room_for_those_that_do(tmp_path: Path) -> None:
    units = [ReadUnit("a", at, 10) for at in range(0, 40, 10)]
    reads, into = (
        NodeReads(wanted_of_a([{0, 2}, {0, 2}, {0, 2}, {0, 1}]), unit_of=ReadUnit, limit_bytes=20),
        bytearray(10),
    )
    with closing(ReadLog(tmp_path)) as store, reads.of(Rank(0), store) as zero, reads.of(Rank(1), store) as one:
        store.create("a", bytes(range(40)))
        for unit in units:
            zero.read_into("a", offset_bytes=unit.offset_bytes, into=bytearray(10))
        one.read_into("a", offset_bytes=30, into=into)
    assert into == bytes(range(30, 40))
    assert store.num_reads == dict.fromkeys((("a", 0), ("a", 10), ("a", 20), ("a", 30)), 1)
