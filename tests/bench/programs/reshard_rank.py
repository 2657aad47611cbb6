"""One rank of the resharding benchmark, a process of its own as in a real gang: saves with DCP, or restores either way.

    reshard_rank.py save|load AXIS RANK WORLD PORT NUM_LAYERS FOLDER [ARENA]

`save` writes with torch's DCP and ends. `load` answers each line of stdin with one of JSON: `damage`, then `behemoth`,
`torch-dcp` or `raw`, which tell the bytes that this process read meanwhile, then `check`. All fill the same buffers.
ARENA is the path of this rank's staging memory, which `reshard_node` fills before `behemoth` copies out of it.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from programs import reshard_scene as scene
from programs.told import read_bytes, tell
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from behemoth.base.ids import Rank
from behemoth.checkpoint.arena import Arena
from behemoth.checkpoint.plan import plan_rank
from behemoth.checkpoint.staging import unstage

DAMAGE = np.int32(-0x5EADBEEF)
PAGE_WORDS = 1024
RAW_BLOCK_BYTES = 8 << 20


class Ours:
    """The worker of a rank of ours, which copies out what the node's store process has read."""

    def __init__(self, axis: str, rank: int, world: int, num_layers: int, path: str, arrays: scene.Arrays) -> None:
        self._plan = plan_rank(scene.layout(axis, world, num_layers), Rank(rank))
        self._targets = {name: array.reshape(-1).view(np.uint8).data for name, array in arrays.items()}
        with open(path, "r+b") as memory:
            self._arena = Arena.open(memory.fileno())

    def load(self) -> Mapping[str, float]:
        begin = time.perf_counter()
        unstage(self._arena, self._plan, 0, self._targets, is_checked=True)
        return {"unstage": time.perf_counter() - begin}


class Dcp:
    """The same arrays as DTensors over a mesh of one axis."""

    def __init__(self, axis: str, num_layers: int, folder: Path, arrays: scene.Arrays, mesh: DeviceMesh) -> None:
        self._folder = folder / "torch-dcp"
        shapes = scene.shapes(num_layers)
        self._tensors = {
            name: _sharded(array, shapes[name], mesh, scene.split_dim(name) if axis == "tp" else None)
            for name, array in arrays.items()
        }

    def save(self) -> None:
        dcp.save(self._tensors, storage_writer=dcp.FileSystemWriter(self._folder, sync_files=True))

    def load(self) -> Mapping[str, float]:
        dcp.load(self._tensors, storage_reader=dcp.FileSystemReader(self._folder))
        return {}


class Raw:
    """The machine's own rate: the bytes of this rank, one after another in a file of its own, by preadv(2)."""

    def __init__(self, folder: Path, rank: int, arrays: scene.Arrays) -> None:
        self._path = folder / "raw" / f"rank-{rank}"
        self._targets = [array.reshape(-1).view(np.uint8).data for array in arrays.values()]
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("wb") as file:
            file.writelines(self._targets)
            os.fsync(file.fileno())

    def load(self) -> Mapping[str, float]:
        fd, at = os.open(self._path, os.O_RDONLY), 0
        try:
            for target in self._targets:
                left = target
                while left:
                    got = os.preadv(fd, [left[:RAW_BLOCK_BYTES]], at)
                    assert got, f"{self._path}: expected {left.nbytes} bytes more, got the end of the file"
                    left, at = left[got:], at + got
        finally:
            os.close(fd)
        return {}


def main() -> None:
    mode, axis, rank, world, port, num_layers, folder, *arena = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE=world)
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (int(world),))
        arrays = scene.held(axis, int(world), int(rank), int(num_layers))
        peer = Dcp(axis, int(num_layers), Path(folder), arrays, mesh)
        if mode == "save":
            peer.save()
        else:
            (path,) = arena
            ours = Ours(axis, int(rank), int(world), int(num_layers), path, arrays)
            raw = Raw(Path(folder), int(rank), arrays)
            obey({"behemoth": ours.load, "torch-dcp": peer.load, "raw": raw.load}, arrays)
    finally:
        dist.destroy_process_group()


def obey(loads: Mapping[str, Callable[[], Mapping[str, float]]], arrays: scene.Arrays) -> None:
    """Until stdin ends. Tells at first what this rank holds."""
    words = {name: array.reshape(-1)[::PAGE_WORDS] for name, array in arrays.items()}
    kept = {name: one.copy() for name, one in words.items()}
    tell({"held": sum(array.nbytes for array in arrays.values())})
    for line in sys.stdin:
        order = line.strip()
        if order == "damage":
            for one in words.values():
                one[:] = DAMAGE
            tell({})
        elif order == "check":
            tell({"is_right": all(np.array_equal(words[name], kept[name]) for name in words)})
        else:
            before = read_bytes()
            tell({**loads[order](), "bytes": read_bytes() - before})


def _sharded(local: np.ndarray, shape: tuple[int, int], mesh: DeviceMesh, dim: int | None) -> DTensor:
    """`dim`: which one is cut; None for flat pieces of all elements."""
    whole = shape if dim is not None else (shape[0] * shape[1],)
    stride = (shape[1], 1) if dim is not None else (1,)
    return DTensor.from_local(
        torch.from_numpy(local), mesh, [Shard(dim or 0)], run_check=False, shape=torch.Size(whole), stride=stride
    )


if __name__ == "__main__":
    main()
