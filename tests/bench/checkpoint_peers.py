"""The peers of `checkpoint_local.py`: each saves and restores the same arrays, tuned as its own documentation advises.

All run in one process on warm memory: sources and targets are the same buffers for everybody. A save ends when its
bytes and names are durable (fsync of every file, then of its directories). Neither DCP nor safetensors computes a
checksum; zarr-python computes CRC-32C per chunk when told to, and is told to. `safetensors+crc` is safetensors with
the work that ours does besides: a CRC-32C of every tensor, kept when it is saved and checked while it is restored.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import zarr
from awscrt.checksums import crc32c
from safetensors import safe_open
from safetensors.torch import save_file
from zarr.codecs import Crc32cCodec
from zarr.core.buffer.cpu import NDBuffer

Arrays = Mapping[str, np.ndarray]
ZARR_CHUNK_BYTES = 8 << 20
CRC_BLOCK_WORDS = 64 << 10
"""Words of float32 that are copied and checked at a time: 256 KiB stay in a core's cache between the two."""
CRCS = "crcs.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`save` blocks until the arrays are durable below a new folder; `restore` fills the arrays from it."""

    name: str
    save: Callable[[Arrays, Path], None]
    restore: Callable[[Arrays, Path], None]


def peers(*, num_threads: int) -> tuple[Peer, ...]:
    """torch DCP with as many writer threads as CPUs, safetensors (one file), the same with CRCs on as many threads,
    zarr-python (chunks of 8 MiB)."""
    return (
        Peer(name="torch-dcp", save=lambda arrays, to: _dcp_save(arrays, to, num_threads), restore=_dcp_restore),
        Peer(name="safetensors", save=_safetensors_save, restore=_safetensors_restore),
        Peer(
            name="safetensors+crc",
            save=lambda arrays, to: _checked_save(arrays, to, num_threads),
            restore=lambda arrays, source: _checked_restore(arrays, source, num_threads),
        ),
        Peer(name="zarr-python", save=_zarr_save, restore=_zarr_restore),
    )


def sync_tree(folder: Path) -> None:
    """Make every file and directory below and including `folder` durable, and its own name."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(os.path.join(path, name), os.O_RDONLY)
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    _sync(str(folder.parent), os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _dcp_save(arrays: Arrays, to: Path, num_threads: int) -> None:
    writer = dcp.FileSystemWriter(to, single_file_per_rank=True, sync_files=True, thread_count=num_threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no process group; there is one process
        dcp.save(_tensors(arrays), storage_writer=writer, no_dist=True)
    sync_tree(to)


def _dcp_restore(arrays: Arrays, source: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(_tensors(arrays), storage_reader=dcp.FileSystemReader(source), no_dist=True)


def _safetensors_save(arrays: Arrays, to: Path) -> None:
    to.mkdir()
    save_file(_tensors(arrays), to / "model.safetensors")
    sync_tree(to)


def _safetensors_restore(arrays: Arrays, source: Path) -> None:
    with safe_open(source / "model.safetensors", framework="pt") as file:
        for name, target in _tensors(arrays).items():
            target.copy_(file.get_tensor(name))


def _checked_save(arrays: Arrays, to: Path, num_threads: int) -> None:
    to.mkdir()
    with ThreadPoolExecutor(num_threads) as pool:
        crcs = dict(zip(arrays, pool.map(crc32c, arrays.values()), strict=True))
    (to / CRCS).write_text(json.dumps(crcs))
    save_file(_tensors(arrays), to / "model.safetensors")
    sync_tree(to)


def _checked_restore(arrays: Arrays, source: Path, num_threads: int) -> None:
    crcs: dict[str, int] = json.loads((source / CRCS).read_text())
    with safe_open(source / "model.safetensors", framework="pt") as file, ThreadPoolExecutor(num_threads) as pool:

        def restore(name: str) -> None:
            target, stored = arrays[name].reshape(-1), file.get_tensor(name).numpy().reshape(-1)
            crc = 0
            for at in range(0, len(target), CRC_BLOCK_WORDS):
                block = target[at : at + CRC_BLOCK_WORDS]
                np.copyto(block, stored[at : at + CRC_BLOCK_WORDS])
                crc = crc32c(block, crc)
            if crc != crcs[name]:
                raise SystemExit(f"tensor {name!r}: expected CRC {crcs[name]:08x}, got {crc:08x}")

        list(pool.map(restore, arrays))


def _zarr_save(arrays: Arrays, to: Path) -> None:
    group = zarr.create_group(to)
    for name, array in arrays.items():
        stored = group.create_array(
            name,
            shape=array.shape,
            chunks=_rows(array),
            dtype=array.dtype,
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        stored[...] = array
    sync_tree(to)


def _zarr_restore(arrays: Arrays, source: Path) -> None:
    group = zarr.open_group(source, mode="r")
    for name, array in arrays.items():
        group[name].get_basic_selection(Ellipsis, out=NDBuffer(array))


def _rows(array: np.ndarray) -> tuple[int, ...]:
    """Whole rows of about 8 MiB."""
    row_bytes = array.nbytes // array.shape[0]
    return (min(array.shape[0], max(1, ZARR_CHUNK_BYTES // row_bytes)), *array.shape[1:])
