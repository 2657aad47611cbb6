"""Buffers with several tensors and padding, shared in ranges that end anywhere: what is saved are the tensors."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid
from behemoth.base.ids import Attempt, Rank, Step, WriteId
from behemoth.checkpoint.opened import open_commit
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import prove_coverage
from behemoth.checkpoint.rank_write import RankWrite
from behemoth.checkpoint.reader import read_rank
from behemoth.checkpoint.receipt import Receipt
from behemoth.checkpoint.staging import stage, unstage
from behemoth.checkpoint.writer import write_rank
from behemoth.sdk import State
from behemoth.sdk.bucket import Slot, declare_bucket
from behemoth.sdk.place import RankMesh
from behemoth.sdk.state import BoundState
from behemoth.spec.mesh import Mesh
from behemoth.testing.store import MemoryStore
from checkpoint.checkpoint_rig import arena_of, commit_receipts
from checkpoint.random_layouts import small_chunks
from sdk.host_memory import raw_of

Buffer = npt.NDArray[np.float32]
ALIGNMENTS = st.sampled_from([1, 4, 16])


def world(slots: list[Slot], mesh: Mesh, size: int, buffers: list[Any]) -> list[BoundState]:
    """Each rank of a mesh of tp x dp, with its range of its tp coordinate's buffer."""
    bound = []
    for rank in range(mesh.num_ranks):
        state, here = State(), RankMesh(sizes=mesh, rank=Rank(rank))
        declare_bucket(state, here, buffers[rank], slots, size=size)
        bound.append(BoundState(state, mesh, Rank(rank)))
    return bound


def saved(store: MemoryStore, bound: list[BoundState]) -> Any:
    receipts = []
    for rank, one in enumerate(bound):
        with arena_of(one.plan) as arena:
            snapshot = stage(arena, one.plan, one.sources(), WriteId("a1-1"), Step(5))
            receipt = write_rank(
                store,
                RankWrite(
                    prefix=step_prefix(Step(5), WriteId("a1-1")),
                    layout=one.layout,
                    plan=one.plan,
                    arena=arena,
                    generation=snapshot.generation,
                    attempt=Attempt(1),
                    threads=1,
                    cancelled=lambda: False,
                    updated_step=Step(5),
                ),
            )
            assert receipt.rank == rank
            receipts.append(Receipt.decode(receipt.encode()))
    return open_commit(store, commit_receipts(store, bound[0].layout, receipts, step=5).ref)


def filled(slots: list[Slot], shapes: dict[str, tuple[int, ...]], values: dict[str, Buffer], size: int) -> Buffer:
    """A whole buffer, made by hand: blocks at their places, zeros between them."""
    buffer = np.zeros(size, dtype=np.float32)
    for slot in slots:
        assert slot.begin is not None
        buffer[slot.begin : slot.begin + math.prod(shapes[slot.name])] = values[slot.name].reshape(-1)
    return buffer


def placed(names: list[str], shapes: dict[str, tuple[int, ...]], alignment: int) -> tuple[list[Slot], int]:
    """Slots that begin at multiples of `alignment`, and where the last ends."""
    rooms = [-(-math.prod(shapes[name]) // alignment) * alignment for name in names]
    begins = list(accumulate(rooms, initial=0))
    return [
        Slot(name=name, shape=shapes[name], begin=begin) for name, begin in zip(names, begins, strict=False)
    ], begins[-1]


@settings(max_examples=50, deadline=None)
@given(data=st.data(), sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_what_one_bucket_saved_another_restores_with_other_order_padding_and_ranks(
    data: st.DataObject, sizes: list[tuple[int, int]]
) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"t{index}": shape for index, shape in enumerate(sizes)}
    rng = np.random.default_rng(3)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    names = list(shapes)
    slots, end = placed(names, shapes, data.draw(ALIGNMENTS))
    dp, new_dp = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    size = -(-end // (dp * 8)) * dp * 8
    whole = filled(slots, shapes, values, size)
    store, mesh = MemoryStore(), Mesh(dp=dp, edp=dp)
    with small_chunks(data.draw(st.sampled_from([16, 64, 8 << 20]))):
        bound = world(slots, mesh, size, [part.copy() for part in np.split(whole, dp)])
        prove_coverage(bound[0].layout)
        opened = saved(store, bound)
        new_slots, new_end = placed(data.draw(st.permutations(names)), shapes, data.draw(ALIGNMENTS))
        new_size = new_end + data.draw(st.integers(0, 20))
        share = -(-new_size // new_dp)
        lengths = [min(share, max(new_size - rank * share, 0)) for rank in range(new_dp)]
        buffers = [np.full(length, 9, dtype=np.float32) for length in lengths]
        for rank, one in enumerate(world(new_slots, Mesh(dp=new_dp, edp=new_dp), new_size, buffers)):
            with arena_of(one.plan) as arena:
                snapshot = read_rank(store, opened, one.layout, one.plan, arena, 0, threads=1)
                unstage(arena, one.plan, snapshot.generation, one.targets())
            assert len(buffers[rank]) == lengths[rank]
        assert np.array_equal(np.concatenate(buffers), filled(new_slots, shapes, values, new_size))


def test_blocks_of_split_tensors_share_a_bucket_of_their_own_tp_rank() -> None:
    mesh, rng = Mesh(tp=2, dp=2, edp=4), np.random.default_rng(4)
    gate_up, norm = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    slots = [
        Slot(name="norm", shape=(5,)),
        Slot(name="gate_up", shape=(3, 8), dims={1: "tp"}, packed={1: (4, 4)}, begin=8),
    ]
    size, buffers = 24, []
    for rank in range(4):
        tp, dp = rank % 2, rank // 2
        whole = np.zeros(size, dtype=np.float32)
        whole[:5] = norm
        columns = [2 * tp, 2 * tp + 1, 4 + 2 * tp, 4 + 2 * tp + 1]
        whole[8:20] = gate_up[:, columns].reshape(-1)
        buffers.append(whole[12 * dp : 12 * dp + 12].copy())
    store = MemoryStore()
    opened = saved(store, world(slots, mesh, size, buffers))
    lone = world(
        [Slot(name="gate_up", shape=(3, 8)), Slot(name="norm", shape=(5,))], Mesh(), 29, [np.zeros(29, np.float32)]
    )[0]
    with arena_of(lone.plan) as arena:
        read_rank(store, opened, lone.layout, lone.plan, arena, 0, threads=1)
        targets = lone.targets()
        unstage(arena, lone.plan, 0, targets)
    assert raw_of(targets["gate_up"]) == gate_up.tobytes()
    assert raw_of(targets["norm"]) == norm.tobytes()


def test_the_padded_rows_of_a_vocabulary_stay_in_the_buffer_and_take_the_same_room_on_each_rank() -> None:
    """11 rows over two ranks that hold 8 each, of which the second has three; what follows lies behind all eight."""
    mesh, rng = Mesh(tp=2, dp=2, edp=4), np.random.default_rng(5)
    embedding, norm = rng.normal(size=(11, 3)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    slots = [
        Slot(name="embedding", shape=(11, 3), dims={0: "tp"}, padded={0: 16}),
        Slot(name="norm", shape=(5,)),
    ]
    size, buffers = 30, []
    for rank in range(4):
        tp, dp = rank % 2, rank // 2
        whole = np.full(size, 7, dtype=np.float32)  # whatever a program has in its padding
        rows = embedding[8 * tp : 8 * tp + 8].reshape(-1)
        whole[: rows.size] = rows
        whole[24:29] = norm
        buffers.append(whole[15 * dp : 15 * dp + 15].copy())
    store = MemoryStore()
    bound = world(slots, mesh, size, buffers)
    prove_coverage(bound[0].layout)
    opened = saved(store, bound)
    assert not buffers[1][9:].any()
    assert not buffers[3][:9].any()
    other = [Slot(name="norm", shape=(5,)), Slot(name="embedding", shape=(11, 3), dims={0: "tp"}, padded={0: 20})]
    again = [np.full(36, 7, dtype=np.float32) for _ in range(2)]
    for rank, one in enumerate(world(other, Mesh(tp=2, edp=2), 36, again)):
        with arena_of(one.plan) as arena:
            snapshot = read_rank(store, opened, one.layout, one.plan, arena, 0, threads=1)
            unstage(arena, one.plan, snapshot.generation, one.targets())
        rows = embedding[10 * rank : 10 * rank + 10].reshape(-1)
        assert np.array_equal(again[rank], np.concatenate([norm, rows, np.zeros(31 - rows.size, np.float32)]))


def test_padding_is_cleared_in_torch_tensors_too() -> None:
    torch = pytest.importorskip("torch")
    shard = torch.full((6,), 7.0, requires_grad=True)
    here = RankMesh(sizes=Mesh(dp=2, edp=2), rank=Rank(1))
    declare_bucket(State(), here, shard, [Slot(name="a", shape=(7,)), Slot(name="b", shape=(2,), begin=8)], size=12)
    assert shard.tolist() == [7, 0, 7, 7, 0, 0]


@pytest.mark.parametrize(
    ("value", "slots", "text"),
    [
        (np.zeros(5), [], r"expected this rank's 6 of 12 elements over dp, got shape \(5,\)"),
        (np.zeros((6, 1)), [], r"got shape \(6, 1\)"),
        ([0] * 6, [], "expected a numpy array or a torch tensor, got list"),
        (np.zeros(6), [Slot(name="a", shape=(7,)), Slot(name="b", shape=(2,), begin=6)], "'b' behind .* 7 on, got 6"),
    ],
)
def test_a_bucket_that_cannot_be_is_refused(value: object, slots: list[Slot], text: str) -> None:
    here = RankMesh(sizes=Mesh(dp=2, edp=2), rank=Rank(0))
    with pytest.raises(Invalid, match=text):
        declare_bucket(State(), here, value, slots, size=12)


def test_a_tensor_that_leaves_its_bucket_is_refused_before_anything_is_saved() -> None:
    state, mesh = State(), Mesh(dp=2, edp=2)
    declare_bucket(state, RankMesh(sizes=mesh, rank=Rank(0)), np.zeros(6), [Slot(name="a", shape=(13,))], size=12)
    with pytest.raises(Invalid, match=r"'a': expected its 13 elements .* a bucket of 12 .* 1 too many"):
        BoundState(state, mesh, Rank(0))


def test_other_stages_declare_a_bucket_without_its_memory() -> None:
    mesh = Mesh(pp=2)
    slots = [Slot(name="a", shape=(7,))]
    layouts = []
    for rank in range(2):
        state, here = State(), RankMesh(sizes=mesh, rank=Rank(rank))
        value = np.zeros(8, dtype=np.float32) if rank == 1 else None
        declare_bucket(state, here, value, slots, size=8, stage=1, dtype="float32")
        layouts.append(BoundState(state, mesh, Rank(rank)).layout)
    assert layouts[0].digest == layouts[1].digest
