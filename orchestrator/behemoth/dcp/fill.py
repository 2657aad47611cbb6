"""Fills tensors with boxes of saved arrays: one rank's part of a DCP load.

Each chunk that the rank needs is read once, checked whole, and copied into all tensors that want some of it. A tensor
that is contiguous on the CPU and of the saved dtype is filled in place; any other by way of a staging buffer of bounded
size. Neighbours: `checkpoint.reshard` (which chunks a box meets), `checkpoint.chunk_parts` (reads one).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from behemoth.checkpoint.box import Box, shape_of
from behemoth.checkpoint.changes import Elements
from behemoth.checkpoint.chunk_parts import as_elements, read_chunk
from behemoth.checkpoint.chunk_reader import ChunkReaders
from behemoth.checkpoint.grid import grids
from behemoth.checkpoint.opened import Commit
from behemoth.checkpoint.reading_threads import reading_threads
from behemoth.checkpoint.reshard import ChunkRead, Copy, plan_box
from behemoth.checkpoint.threads import batched, run_all
from behemoth.dcp.dtypes import torch_dtype
from behemoth.dcp.tensors import holds_elements
from behemoth.ports import ObjectStore

STAGING_BYTES = 256 << 20
"""Bytes of the staging buffer for what cannot be read in place."""


class Target(NamedTuple):
    """A box of a saved array, counted in the commit's order, and the tensor of its shape that it goes into."""

    array: int
    box: Box
    tensor: torch.Tensor


def fill(store: ObjectStore, commit: Commit, targets: Sequence[Target], *, threads: int) -> None:
    """Blocks until all tensors are filled: by `threads` out of the page cache, by more where reads wait for a disk or a
    network. A tensor of another dtype than the saved one is converted as torch's copy_ does. Raises Corrupt naming
    array, chunk and file, also where all chunks of an array were read and some are of another checkpoint; tensors may
    be filled in part then, or whole with what was found."""
    threads = reading_threads(store, commit, threads=threads)
    readers = ChunkReaders(store, commit)
    direct = [target for target in targets if _is_direct(commit, target)]
    _read(readers, commit, direct, [_memory(target.tensor) for target in direct], threads=threads)
    staged = [part for target in targets if not _is_direct(commit, target) for part in _parts(commit, target)]
    for group in _groups(commit, staged):
        buffers = [np.empty(_num_bytes(commit, target), dtype=np.uint8) for target in group]
        _read(readers, commit, group, buffers, threads=threads)
        for target, buffer in zip(group, buffers, strict=True):
            spec = commit.layout.arrays[target.array]
            read = torch.from_numpy(buffer).view(torch_dtype(spec.dtype, key=spec.name))
            target.tensor.copy_(read.reshape(target.tensor.shape))
    readers.require_committed()


def _is_direct(commit: Commit, target: Target) -> bool:
    spec = commit.layout.arrays[target.array]
    tensor = target.tensor
    is_same = tensor.dtype == torch_dtype(spec.dtype, key=spec.name)
    is_memory = tensor.device.type == "cpu" and tensor.is_contiguous() and holds_elements(tensor)
    return is_same and is_memory and not tensor.is_conj() and not tensor.is_neg()


def _memory(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    memory: npt.NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return memory


def _num_bytes(commit: Commit, target: Target) -> int:
    return target.tensor.numel() * commit.layout.arrays[target.array].itemsize


def _parts(commit: Commit, target: Target) -> Iterator[Target]:
    """A target split along its first dims into parts of which each fits into the staging buffer."""
    total = _num_bytes(commit, target)
    dim = next((dim for dim, size in enumerate(target.tensor.shape) if size > 1), None)
    if total <= STAGING_BYTES or dim is None:
        yield target
        return
    size = target.tensor.shape[dim]
    rows = max(1, size * STAGING_BYTES // total)
    for start in range(0, size, rows):
        length = min(rows, size - start)
        low = target.box[dim][0] + start
        box = (*target.box[:dim], (low, low + length), *target.box[dim + 1 :])
        yield from _parts(commit, Target(target.array, box, target.tensor.narrow(dim, start, length)))


def _groups(commit: Commit, targets: Sequence[Target]) -> Iterator[list[Target]]:
    group: list[Target] = []
    num_bytes = 0
    for target in targets:
        if group and num_bytes + _num_bytes(commit, target) > STAGING_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(target)
        num_bytes += _num_bytes(commit, target)
    if group:
        yield group


def _read(
    readers: ChunkReaders,
    commit: Commit,
    targets: Sequence[Target],
    memories: Sequence[npt.NDArray[np.uint8]],
    *,
    threads: int,
) -> None:
    of = grids(commit.layout)
    slabs: list[Elements] = []
    taken: dict[tuple[int, int], list[Copy]] = {}
    for target, memory in zip(targets, memories, strict=True):
        shape = shape_of(target.box)
        assert memory.nbytes == math.prod(shape) * of[target.array].spec.itemsize
        for read in plan_box(of[target.array], target.array, target.box).reads:
            copies = [copy._replace(slab=len(slabs)) for copy in read.copies]
            taken.setdefault((read.array, read.chunk), []).extend(copies)
        slabs.append(as_elements(memory, shape, of[target.array].spec.itemsize))
    reads = [ChunkRead(array, chunk, copies) for (array, chunk), copies in sorted(taken.items())]

    def work(batch: Sequence[ChunkRead]) -> None:
        chunks = readers.mine()
        for read in batch:
            read_chunk(chunks, of[read.array], read, slabs, tables={})

    run_all(work, batched(reads, threads=threads), threads=threads, name="dcp-read")
