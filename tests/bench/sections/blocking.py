"""How long a save keeps training waiting: ours beside DCP's `async_save`, as it comes and at its best.

Ours returns when the state is in staging memory, while the store process is already writing. DCP's default copies the
state into new memory and writes from a thread. At its best it keeps its staging memory from save to save, writes with a
thread per CPU, and does so in this process or in another one that shares that memory; both are shown. Pinned memory and
copies that overlap need CUDA, which this machine has not. Each writes to disk, and is waited for before the next
begins, which is not counted.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from bench_table import Row, alternate, beside, with_goal
from contenders.ours import Ours
from contenders.state import Arrays
from contenders.torch_dcp import tensors
from sections.scene import Scene
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

AHEAD = 1.0
COPY = "memcpy, one thread"
KEPT, SHARED = (
    StagingOptions(
        use_pinned_memory=False, use_shared_memory=is_shared, use_async_staging=False, use_non_blocking_copy=False
    )
    for is_shared in (False, True)
)


class AsyncDcp:
    """One process group of one process, as `async_save` wants it. `default`, `best` and `process` save the arrays;
    `kept` is the staging memory of `best`."""

    def __init__(self, arrays: Arrays, folder: Path, *, num_threads: int) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self._state = {"state": tensors(arrays)}
        """The same tensors at every save, as a program has them: a stager keeps its memory no longer than they live."""
        self._folder = folder
        self._num_threads = num_threads
        self.kept, self._shared = DefaultStager(KEPT), DefaultStager(SHARED)

    def default(self) -> Mapping[str, float]:
        return self._blocked(storage_writer=dcp.FileSystemWriter(self._folder))

    def best(self) -> Mapping[str, float]:
        return self._blocked(storage_writer=self._fast_writer(), async_stager=self.kept)

    def process(self) -> Mapping[str, float]:
        kind = AsyncCheckpointerType.PROCESS
        return self._blocked(
            storage_writer=self._fast_writer(), async_stager=self._shared, async_checkpointer_type=kind
        )

    def close(self) -> None:
        self.kept.close()
        self._shared.close()
        dist.destroy_process_group()

    def _fast_writer(self) -> dcp.FileSystemWriter:
        return dcp.FileSystemWriter(self._folder, thread_count=self._num_threads)

    def _blocked(self, **settings: Any) -> Mapping[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options that move to other modules in later releases
            begin = time.perf_counter()
            response = dcp.async_save(self._state, **settings)
            seconds = time.perf_counter() - begin
            (response if hasattr(response, "result") else response.upload_completion).result()
        shutil.rmtree(self._folder)
        return {"blocked": seconds}


def run(scene: Scene) -> list[Row]:
    with scene.folder("disk") as root, scene.ours_in(root / "behemoth") as (ours, state):
        peer = AsyncDcp(state.arrays, root / "dcp", num_threads=scene.num_threads)
        try:
            contenders = {
                "behemoth": lambda: _our_round(ours, root / "behemoth"),
                "torch-dcp async": peer.default,
                "torch-dcp async best": peer.best,
                "torch-dcp async best, process": peer.process,
                COPY: lambda: {"blocked": ours.copy()},
            }
            samples = alternate(contenders, num_rounds=scene.num_rounds)
        finally:
            peer.close()
    mine = samples["behemoth"]["blocked"]
    rows = {
        name: beside("save blocks training", "s", mine, name, samples[name]["blocked"])
        for name in contenders
        if name != "behemoth"
    }
    copied = rows.pop(COPY)
    return [*(with_goal(row, AHEAD, is_upper=True) for row in rows.values()), copied]


def _our_round(ours: Ours, folder: Path) -> Mapping[str, float]:
    blocked = ours.save()["stage"]
    shutil.rmtree(folder)
    return {"blocked": blocked}
