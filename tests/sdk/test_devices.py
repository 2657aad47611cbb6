"""Arrays on a device, on a stand-in for one: each byte goes straight between it and the staging memory, and is there
before anybody is told so. Nothing here ever ran on a GPU."""

from __future__ import annotations

import gc
import inspect
import os
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from behemoth.base.errors import Invalid, Unavailable
from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint import staging
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.held import Memory
from behemoth.checkpoint.layout import ArraySpec, Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import RankPlan, plan_rank
from behemoth.checkpoint.staging import Stager, stage, unstage
from behemoth.checkpoint.windows import ByteRun
from behemoth.sdk import State, cold_files, files, saver
from behemoth.sdk.bucket import Slot, declare_bucket
from behemoth.sdk.cold_files import read_cold_files
from behemoth.sdk.devices import DeviceBytes, Lanes, WaitingLane
from behemoth.sdk.files import read_files
from behemoth.sdk.place import RankMesh
from behemoth.sdk.state import BoundState
from behemoth.spec.mesh import Mesh
from behemoth.storage.local import LocalStore
from behemoth.wire.session import Ready, Staged, StagingFailed
from checkpoint.checkpoint_rig import arena_of, local_arrays, logical_arrays, raw_bytes, save
from checkpoint.random_layouts import layouts, small_chunks
from sdk.agent_end import LIMIT_S, Agent
from sdk.stand_in import DEVICE, FakeCuda, FakeStream, OnDevice, stand_in


def on_device(raw: bytes) -> OnDevice:
    return OnDevice(torch.tensor(list(raw), dtype=torch.uint8))


def content(memory: Memory | OnDevice) -> bytes:
    return memory.inner.numpy().tobytes() if isinstance(memory, OnDevice) else np.asarray(memory).tobytes()


class Held:
    """A rank's arrays, some of which are on the device."""

    def __init__(self, local: Mapping[str, npt.NDArray[np.generic]], lanes: Lanes, *, every: int) -> None:
        self.raw = {name: raw_bytes(array) for name, array in local.items()}
        self._lanes = lanes
        self._every = every

    def filled(self, with_: bytes | None = None) -> dict[str, Memory | OnDevice]:
        raw = self.raw if with_ is None else {name: with_ * len(value) for name, value in self.raw.items()}
        return {
            name: memoryview(bytearray(value)) if number % self._every else on_device(value)
            for number, (name, value) in enumerate(raw.items())
        }

    def memories(self, arrays: Mapping[str, Memory | OnDevice]) -> dict[str, Memory]:
        lane = self._lanes.to(torch.device(DEVICE))
        return {
            name: DeviceBytes(name, cast(Any, array), lane) if isinstance(array, OnDevice) else array
            for name, array in arrays.items()
        }


@settings(max_examples=40, deadline=None)
@given(
    layout=layouts(),
    chunk_bytes=st.sampled_from([16, 64, 300]),
    block_bytes=st.sampled_from([3, 7, 8 << 20]),
    every=st.sampled_from([1, 2]),
    threads=st.integers(1, 3),
)
def test_whatever_a_rank_holds_goes_from_the_device_and_back_bit_by_bit(
    layout: Layout, chunk_bytes: int, block_bytes: int, every: int, threads: int
) -> None:
    with (
        stand_in(),
        small_chunks(chunk_bytes),
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
    ):
        patch.setattr(staging, "BLOCK_BYTES", block_bytes)
        patch.setattr(staging, "CHECKED_BYTES", block_bytes)
        for module in (files, cold_files):
            patch.setattr(module, "BLOCK_BYTES", 5)
        store, arrays = LocalStore(folder), logical_arrays(layout, 1)
        save(store, layout, arrays, step=3)
        path = os.path.join(store.root, step_prefix(Step(3), WriteId("a1-1")))
        for rank in range(layout.mesh.num_ranks):
            plan, held = plan_rank(layout, Rank(rank)), Held(local_arrays(layout, rank, arrays), Lanes(), every=every)
            with arena_of(plan) as arena:
                expected = bytes(arena.data(stage(arena, plan, held.raw, WriteId("a1-1"), Step(1)).generation))
                stager = Stager(
                    arena, plan, held.memories(held.filled()), write_id=WriteId("a1-2"), step=Step(2), threads=threads
                )
                taken = stager.seal()
                assert bytes(arena.data(taken.generation)) == expected
                out = held.filled(b"\xee")
                unstage(arena, plan, taken.generation, held.memories(out), threads=threads, is_checked=True)
                assert {name: content(array) for name, array in out.items()} == held.raw
            for read in (read_files, read_cold_files):
                out = held.filled(b"\xee")
                read(path, layout, plan, held.memories(out), threads=threads)
                assert {name: content(array) for name, array in out.items()} == held.raw
        store.close()


def values() -> dict[str, Any]:
    """Of every kind of element, and of every form."""
    bits = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    floats = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "bfloat16", "float16", "float32", "float64")
    found = {name: bits.flatten().view(getattr(torch, name)) for name in (*floats, "complex64", "int64", "uint16")}
    found["bool"] = torch.tensor([True, False, True])
    found["matrix"] = torch.arange(12.0).reshape(3, 4)
    found["scalar"] = torch.tensor(2.5)
    found["of a larger buffer"] = torch.arange(9.0)[4:7]
    return found


def state_of(tensors: Mapping[str, Any]) -> State:
    state = State()
    for name, tensor in tensors.items():
        state.array(name, tensor, shape=tuple(tensor.shape), mutable_in_forward=name == "scalar")
    return state


def trained(agent: Agent, step: int) -> None:
    agent.run.report(step)
    agent.run.save(step, agent.state)
    agent.run.fence()


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with stand_in() as made:
        yield made


@pytest.mark.parametrize("inline_bytes", [0, 1 << 20], ids=["in the background", "inside save"])
def test_a_run_saves_and_restores_tensors_of_every_kind_beside_others_in_host_memory(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, inline_bytes: int
) -> None:
    monkeypatch.setattr(saver, "INLINE_BYTES", inline_bytes)
    expected = values()
    saving = Agent(state=state_of({"host": np.arange(5), **{name: OnDevice(t) for name, t in expected.items()}}))
    saving.call(3, "a1-1")
    trained(saving, 3)
    saving.next(Staged)

    def holding(arena: Arena, plan: RankPlan) -> Ready:
        arena.begin(1, WriteId("a1-1"), Step(3), plan.layout_digest)[:] = saving.arena.data(0)
        arena.seal(1)
        return Ready(step=Step(3), generation=1, is_checked=True)

    restored = {name: torch.zeros_like(value) for name, value in expected.items()}
    host = np.zeros(5, np.int64)
    fresh = Agent(
        state=state_of({"host": host, **{name: OnDevice(t) for name, t in restored.items()}}), holding=holding
    )
    assert host.tolist() == [0, 1, 2, 3, 4]
    for name, value in expected.items():
        assert bits_of(restored[name]) == bits_of(value), name
    assert not set(OnDevice.seen) - {"detach", "view", "slice", "as_strided", "copy_"}
    assert any(line.endswith("on lane") for line in cuda.log)
    saving.close()
    fresh.close()


def bits_of(tensor: Any) -> bytes:
    raw: bytes = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return raw


@pytest.mark.parametrize("inline_bytes", [0, 1 << 20], ids=["in the background", "inside save"])
@pytest.mark.parametrize("is_current", [False, True], ids=["first stream", "another stream"])
def test_what_is_saved_comes_behind_the_optimizers_work_and_before_the_next_steps(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, inline_bytes: int, is_current: bool
) -> None:
    monkeypatch.setattr(saver, "INLINE_BYTES", inline_bytes)
    weight, scale = torch.zeros(1000), torch.zeros(3)
    state = State()
    state.array("weight", OnDevice(weight), shape=(1000,))
    state.array("scale", OnDevice(scale), shape=(3,), mutable_in_forward=True)
    agent = Agent(state=state)
    agent.call(3, "a1-1")
    stream = FakeStream("program's") if is_current else cuda.main
    with cuda.stream(stream):
        stream.give(lambda: weight.fill_(7.0))
        stream.give(lambda: scale.fill_(5.0))
        agent.run.report(3)
        agent.run.save(3, state)
        stream.give(lambda: scale.fill_(9.0))  # the forward pass
        stream.finish()
        agent.run.fence()
        stream.give(lambda: weight.fill_(8.0))  # the optimizer
        stream.finish()
    agent.next(Staged)
    saved = np.frombuffer(agent.arena.data(0), np.uint8)
    found = {p.name: set(saved[p.arena_offset :][: p.nbytes].view(np.float32).tolist()) for p in agent.plan.pieces}
    assert found == {"weight": {7.0}, "scale": {5.0}}
    agent.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_is_told_of_before_the_device_has_put_it_there(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(staging, "BLOCK_BYTES", 64)
    tensors = {f"w{number}": torch.full((100 + 7 * number,), 0xAB, dtype=torch.uint8) for number in range(5)}
    bound = BoundState(state_of({name: OnDevice(tensor) for name, tensor in tensors.items()}), Mesh(), Rank(0))
    told: list[int] = []

    def advance(arena: Arena, generation: int, num_bytes: int) -> None:
        cuda.log.append("advance")
        told.append(num_bytes)
        there = np.frombuffer(arena.filling(generation), np.uint8)[:num_bytes]
        for piece in bound.plan.pieces:
            assert set(there[piece.arena_offset : piece.arena_offset + piece.nbytes].tolist()) <= {0xAB}

    monkeypatch.setattr(Arena, "advance", advance)
    with arena_of(bound.plan) as arena:
        stager = Stager(arena, bound.plan, bound.sources(), write_id=WriteId("a1-1"), step=Step(1), threads=threads)
        stager.seal()
        assert told == sorted(told)
        assert len(told) > 5
    first = cuda.log.index("advance")
    assert "copy 64 on lane" in cuda.log[:first]
    assert "synchronize" in cuda.log[:first]


def test_one_thread_for_a_state_has_the_device_copy_on_while_it_waits(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "BLOCK_BYTES", 64)
    has_second = threading.Event()
    waits: list[bool] = []
    monkeypatch.setattr(cuda, "before_wait", lambda: waits.append(has_second.wait(LIMIT_S)))
    monkeypatch.setattr(cuda, "before_copy", lambda: has_second.set() if "copy 64 on lane" in cuda.log else None)
    bound = BoundState(state_of({"w": OnDevice(torch.zeros(128, dtype=torch.uint8))}), Mesh(), Rank(0))
    with arena_of(bound.plan) as arena:
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1))
    assert waits == [True, True]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_copy_that_fails_leaves_no_other_under_way(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, threads: int
) -> None:
    """What is under way would reach memory that is somebody else's by then."""
    monkeypatch.setattr(cold_files, "BLOCK_BYTES", 64)

    def fail_at_third() -> None:
        if sum(line.startswith("copy") for line in cuda.log) == 2:
            raise RuntimeError("CUDA out of memory")

    tensors = {f"w{number}": torch.zeros(256, dtype=torch.uint8) for number in range(4)}
    bound = BoundState(state_of({name: OnDevice(tensor) for name, tensor in tensors.items()}), Mesh(), Rank(0))
    store = LocalStore(tmp_path)
    save(store, bound.layout, logical_arrays(bound.layout, 1), step=3)
    folder = os.path.join(store.root, step_prefix(Step(3), WriteId("a1-1")))
    with arena_of(bound.plan) as arena:
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1), generation=0)
        stager = Stager(arena, bound.plan, bound.sources(), write_id=WriteId("a1-2"), step=Step(2), threads=threads)
        for work in (
            stager.copy,
            lambda: unstage(arena, bound.plan, 0, bound.targets(), threads=threads, is_checked=True),
            lambda: read_cold_files(folder, bound.layout, bound.plan, bound.targets()),
        ):
            cuda.log.clear()
            monkeypatch.setattr(cuda, "before_copy", fail_at_third)
            with pytest.raises(Unavailable, match="out of memory"):
                work()
            assert [stream.is_idle for stream in cuda.lanes] == [True]
    store.close()


def test_a_packed_block_of_a_file_that_fails_is_not_left_under_way(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It takes several copies, all out of memory that the next block is read into, or that goes with the reader."""
    monkeypatch.setattr(files, "BLOCK_BYTES", 100)

    def fail_at_second() -> None:
        if any(line.startswith("copy") for line in cuda.log):
            raise RuntimeError("CUDA out of memory")

    state = State()
    state.array("gate_up", OnDevice(torch.zeros(64, 12)), shape=(64, 24), dims={1: "tp"}, packed={1: (12, 12)})
    bound = BoundState(state, Mesh(tp=2, edp=2), Rank(0))
    store = LocalStore(tmp_path)
    save(store, bound.layout, logical_arrays(bound.layout, 1), step=3)
    folder = os.path.join(store.root, step_prefix(Step(3), WriteId("a1-1")))
    monkeypatch.setattr(cuda, "before_copy", fail_at_second)
    with pytest.raises(Unavailable, match="out of memory"):
        read_files(folder, bound.layout, bound.plan, bound.targets())
    assert len([line for line in cuda.log if line.startswith("copy")]) == 1
    assert [stream.is_idle for stream in cuda.lanes] == [True]
    store.close()


def test_a_device_that_refuses_one_block_is_not_asked_for_all_the_others(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program waits for the end of a copy that is lost, however large its state."""
    monkeypatch.setattr(staging, "BLOCK_BYTES", 64)
    asked: list[int] = []

    def fails() -> None:
        asked.append(len(asked))
        time.sleep(0.01)  # else all have been asked for before this thread hears of the first
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(cuda, "before_copy", fails)
    bound = BoundState(state_of({"w": OnDevice(torch.zeros(64 * 200, dtype=torch.uint8))}), Mesh(), Rank(0))
    with arena_of(bound.plan) as arena, pytest.raises(Unavailable, match="out of memory"):
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1))
    assert len(asked) < 200


def test_no_host_memory_as_large_as_a_tensor_is_taken(cuda: FakeCuda) -> None:  # noqa: ARG001
    size = 12 << 20
    weight = torch.arange(size, dtype=torch.int32).view(torch.uint8)[:size]
    bound = BoundState(state_of({"weight": OnDevice(weight)}), Mesh(), Rank(0))
    expected = bits_of(weight)
    with arena_of(bound.plan) as arena:
        tracemalloc.start()
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1), generation=0)
        weight.zero_()
        unstage(arena, bound.plan, 0, bound.targets(), threads=2, is_checked=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert bits_of(weight) == expected
    assert peak < size // 8  # numpy's and Python's; torch's would be an operation on the tensor:
    assert not set(OnDevice.seen) - {"detach", "view", "slice", "copy_"}


def test_a_packed_dims_rows_are_copied_by_the_block_and_not_one_by_one(cuda: FakeCuda) -> None:
    gate_up = torch.arange(64 * 12, dtype=torch.float32).reshape(64, 12)
    state = State()
    state.array("gate_up", OnDevice(gate_up), shape=(64, 24), dims={1: "tp"}, packed={1: (12, 12)})
    bound = BoundState(state, Mesh(tp=2, edp=2), Rank(0))
    expected = bits_of(gate_up)
    with arena_of(bound.plan) as arena:
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1), generation=0)
        assert len([line for line in cuda.log if line.startswith("copy")]) == len(bound.plan.pieces) == 2
        gate_up.zero_()
        unstage(arena, bound.plan, 0, bound.targets(), is_checked=True)
    assert bits_of(gate_up) == expected


def test_a_bucket_on_the_device_is_declared_and_comes_back_without_its_padding(cuda: FakeCuda) -> None:  # noqa: ARG001
    buffer = torch.arange(1, 25, dtype=torch.float32)
    state, mesh = State(), RankMesh(sizes=Mesh(), rank=Rank(0))
    slots = [Slot(name="a", shape=(3, 2), begin=1), Slot(name="b", shape=(5,), begin=9)]
    declare_bucket(state, mesh, OnDevice(buffer), slots, size=24)
    bound = BoundState(state, Mesh(), Rank(0))
    kept = buffer.clone()
    assert kept.tolist() == [0.0, *range(2, 8), 0.0, 0.0, *range(10, 15), *[0.0] * 10]
    with arena_of(bound.plan) as arena:
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1), generation=0)
        buffer[1:14] = -1
        unstage(arena, bound.plan, 0, bound.targets(), is_checked=True)
    assert buffer[1:7].equal(kept[1:7])
    assert buffer[9:14].equal(kept[9:14])
    assert buffer[7:9].tolist() == [-1, -1]


def test_the_local_part_of_a_dtensor_of_the_device_is_saved_and_filled(cuda: FakeCuda) -> None:  # noqa: ARG001
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    rows = torch.arange(12.0).reshape(4, 3)
    meta = TensorMeta(torch.Size((7, 3)), (3, 1), torch.float32)
    mesh = DeviceMesh("cpu", [0, 1], _init_backend=False, _rank=0)
    whole = DTensor(OnDevice(rows), DTensorSpec(mesh, (Shard(0),), tensor_meta=meta), requires_grad=False)
    state = State()
    state.array("w", whole.to_local(), shape=(7, 3), flat_over="dp", flat_rows=True)
    bound = BoundState(state, Mesh(dp=2, edp=2), Rank(0))
    expected = bits_of(rows)
    with arena_of(bound.plan) as arena:
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1), generation=0)
        rows.zero_()
        unstage(arena, bound.plan, 0, bound.targets(), is_checked=True)
    assert bits_of(rows) == expected


@pytest.mark.parametrize("in_inference_mode", [False, True])
@pytest.mark.parametrize("kind", ["parameter", "computed", "of a larger one", "made in inference mode"])
def test_any_thread_copies_whatever_torch_would_track_of_a_tensor(kind: str, in_inference_mode: bool) -> None:
    """Real tensors, in host memory: the stand-in has nothing that is tracked."""
    with torch.inference_mode():
        untracked = torch.zeros(24)
    tensor = {
        "parameter": torch.nn.Parameter(torch.zeros(24)),
        "computed": torch.zeros(24, requires_grad=True) * 2,
        "of a larger one": torch.zeros(100)[10:34],
        "made in inference mode": untracked,
    }[kind]
    rows = ByteRun(at=0, begin=4, num_rows=5, row_bytes=8, pitch_bytes=16)
    with torch.inference_mode(in_inference_mode):
        memory = DeviceBytes("w", cast(Any, tensor), WaitingLane(lambda: None, tensor.device))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(memory.write, rows, np.full(rows.nbytes, 7, np.uint8)).result()
            found = np.zeros(rows.nbytes, np.uint8)
            pool.submit(memory.read, rows, found).result()
    raw = np.frombuffer(bits_of(tensor.detach()), np.uint8)
    assert set(found.tolist()) == set(rows.view(raw).flatten().tolist()) == {7}
    assert (raw != 0).sum() == rows.nbytes


def test_what_has_no_bytes_in_a_row_is_refused_on_a_device_too(cuda: FakeCuda) -> None:  # noqa: ARG001
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    lazy = OnDevice(torch.tensor([1 + 2j]).conj())
    for value, told in (
        (OnDevice(torch.zeros(4, 4).t()[:2]), "expected contiguous memory"),
        (OnDevice(freed), "expected memory behind its tensor"),
        (lazy, "lazy conjugate"),
    ):
        bound = BoundState(state_of({"w": value}), Mesh(), Rank(0))
        for ask in (bound.sources, bound.targets):
            with pytest.raises(Invalid, match=f"array 'w': .*{told}"):
                ask()


@pytest.mark.parametrize("inline_bytes", [0, 1 << 20], ids=["in the background", "inside save"])
@pytest.mark.parametrize("is_early", [False, True])
def test_a_device_that_refuses_a_copy_costs_that_save_and_no_training(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, inline_bytes: int, is_early: bool
) -> None:
    monkeypatch.setattr(saver, "INLINE_BYTES", inline_bytes)
    state = State()
    state.array("weight", OnDevice(torch.zeros(1000)), shape=(1000,), mutable_in_forward=is_early)
    agent = Agent(state=state)

    def fails() -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(cuda, "before_copy", fails)
    agent.call(3, "a1-1")
    trained(agent, 3)
    assert "array 'weight': copy from its device: CUDA out of memory" in agent.next(StagingFailed).reason
    assert agent.arena.held() == ()
    monkeypatch.setattr(cuda, "before_copy", lambda: None)
    agent.call(5, "a1-2", generation=1)
    trained(agent, 4)
    trained(agent, 5)
    assert agent.next(Staged).write_id == "a1-2"
    agent.close()


def test_the_staging_memory_is_pinned_once_and_let_go_before_it_is_unmapped(cuda: FakeCuda) -> None:
    agent = Agent(state=state_of({"w": OnDevice(torch.zeros(1000)), "v": OnDevice(torch.zeros(3))}))
    assert list(cuda.pinned.values()) == [Arena.size_bytes(agent.plan)]
    agent.call(3, "a1-1")
    trained(agent, 3)
    assert cuda.log.index("register") < min(at for at, line in enumerate(cuda.log) if line.startswith("copy"))
    del agent.run  # and with it the only one who has the mapping; the stand-in looks whether it is there yet
    gc.collect()
    assert (cuda.pinned, cuda.log.count("register"), cuda.log.count("unregister")) == ({}, 1, 1)
    agent.close()


def test_a_forked_child_lets_the_mapping_go_without_a_device(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    unraised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    bound = BoundState(state_of({"w": OnDevice(torch.zeros(1000))}), Mesh(), Rank(0))
    with arena_of(bound.plan) as arena:
        bound.pin(arena)

        def fails(device: object) -> None:
            asked.append(device)
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

        monkeypatch.setattr(cuda, "device", fails)
    del arena
    gc.collect()
    assert (asked, unraised) == ([torch.device(DEVICE)], [])


def test_without_arrays_on_a_device_no_device_is_asked_for_anything(cuda: FakeCuda) -> None:
    agent = Agent(state=state_of({"w": torch.zeros(10), "v": np.zeros(3)}))
    agent.call(3, "a1-1")
    trained(agent, 3)
    agent.next(Staged)
    assert cuda.log == []
    agent.close()


def test_memory_that_cannot_be_pinned_is_told_once_and_used_all_the_same(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.refuses = 2
    cleared: list[object] = []
    monkeypatch.setattr(torch, "ones", lambda *_size, device: cleared.append(device))
    bound = BoundState(state_of({"w": OnDevice(torch.full((1000,), 3.0))}), Mesh(), Rank(0))
    with arena_of(bound.plan) as arena:
        bound.pin(arena)
        bound.pin(arena)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"staging memory of {arena.memory.nbytes} bytes is not pinned" in caplog.text
        assert cleared == [torch.device(DEVICE)] * 2  # CUDA's last error, which the program's next kernel would meet
        stage(arena, bound.plan, bound.sources(), WriteId("a1-1"), Step(1), generation=0)
        assert set(np.frombuffer(arena.data(0), np.float32)[:1000].tolist()) == {3.0}
    assert "unregister" not in cuda.log


def test_what_the_stand_in_is_asked_torch_knows_too() -> None:
    """By name only: nobody here answers."""
    for name, parameters in {"current_stream": {"device"}, "stream": {"stream"}, "device": {"device"}}.items():
        assert parameters <= set(inspect.signature(getattr(torch.cuda, name)).parameters)
    assert "device" in inspect.signature(torch.cuda.Stream.__new__).parameters
    assert "blocking" in inspect.signature(torch.cuda.Event.__new__).parameters
    assert list(inspect.signature(torch.cuda.Stream.wait_stream).parameters) == ["self", "stream"]
    assert list(inspect.signature(torch.cuda.Event.record).parameters) == ["self", "stream"]
    assert callable(torch.cuda.Event.synchronize)
    assert callable(torch.cuda.cudart)
    if torch.backends.cuda.is_built():
        assert {"cudaHostRegister", "cudaHostUnregister"} <= set(dir(torch.cuda._cudart))
    assert "device" in inspect.signature(torch.xpu.synchronize).parameters


@pytest.mark.parametrize(("read", "room_bytes"), [(read_files, 2 << 20), (read_cold_files, (8 << 20) + 8192)])
def test_what_files_have_for_a_device_goes_through_bounded_memory(
    cuda: FakeCuda,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    read: Any,
    room_bytes: int,
) -> None:
    numbers: list[int] = []

    def counted(_work: object, _items: object, *, threads: int, name: str) -> None:  # noqa: ARG001
        numbers.append(threads)

    for module in (files, cold_files):
        monkeypatch.setattr(module, "run_all", counted)
    layout = Layout(mesh=Mesh(), arrays=(ArraySpec(name="w", dtype="uint8", shape=(64, 1 << 20)),))
    plan = plan_rank(layout, Rank(0))
    host = np.empty(64 << 20, np.uint8)
    device = DeviceBytes("w", cast(Any, OnDevice(torch.from_numpy(host))), Lanes().to(torch.device(DEVICE)))
    for memory in (device, host):
        read("/nowhere", layout, plan, {"w": memory}, threads=100)
    assert numbers[0] * room_bytes <= files.BOUNCE_BYTES < (numbers[0] + 1) * room_bytes
    assert numbers[1] >= 100


@pytest.mark.parametrize("takes_device", [True, False])
def test_a_device_without_streams_known_here_is_waited_for_and_copies_at_once(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, takes_device: bool
) -> None:
    synchronized: list[tuple[torch.device | None, int]] = []

    def synchronize(device: torch.device | None = None) -> None:
        synchronized.append((device, len(cuda.log)))

    monkeypatch.setattr(torch.xpu, "synchronize", synchronize if takes_device else lambda: synchronize())
    weight = torch.full((1000,), 3.0)
    agent = Agent(state=state_of({"w": OnDevice(weight, "xpu:1")}))
    agent.call(3, "a1-1")
    trained(agent, 3)
    agent.next(Staged)
    assert set(np.frombuffer(agent.arena.data(0), np.float32)[:1000].tolist()) == {3.0}
    # Behind what the program has given it, before the first copy; not the one that the thread stands on.
    assert synchronized == [(torch.device("xpu:1") if takes_device else None, 0)]
    assert {line.split(" copy")[0] for line in cuda.log} == {"blocking"}
    agent.close()


def test_a_device_that_torch_cannot_wait_for_is_refused(cuda: FakeCuda) -> None:  # noqa: ARG001
    bound = BoundState(state_of({"w": OnDevice(torch.zeros(3), "fpga:0")}), Mesh(), Rank(0))
    with pytest.raises(Invalid, match=r"tensor on fpga:0: expected a device that torch\.fpga\.synchronize waits for"):
        bound.sources()
