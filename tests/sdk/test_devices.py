"""Arrays on a device, on a stand-in for one: each byte goes straight between it and the staging memory, and is there
before anybody is told so. Nothing here ever ran on a GPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from behemoth.base.ids import Rank, Step, WriteId
from behemoth.checkpoint import staging
from behemoth.checkpoint.held import Memory
from behemoth.checkpoint.layout import Layout
from behemoth.checkpoint.paths import step_prefix
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.staging import Stager, stage, unstage
from behemoth.sdk import cold_files, files
from behemoth.sdk.cold_files import read_cold_files
from behemoth.sdk.devices import DeviceBytes, Lanes
from behemoth.sdk.files import read_files
from behemoth.storage.local import LocalStore
from checkpoint.checkpoint_rig import arena_of, local_arrays, logical_arrays, raw_bytes, save
from checkpoint.random_layouts import layouts, small_chunks
from sdk.stand_in import DEVICE, FakeCuda, OnDevice, stand_in


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
            name: np.frombuffer(bytearray(value), np.uint8) if number % self._every else on_device(value)
            for number, (name, value) in enumerate(raw.items())
        }

    def memories(self, arrays: Mapping[str, Memory | OnDevice]) -> dict[str, Memory]:
        lane = self._lanes.to(torch.device(DEVICE))
        return {
            name: DeviceBytes(name, array, lane) if isinstance(array, OnDevice) else array
            for name, array in arrays.items()
        }


@settings(max_examples=60, deadline=None)
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
