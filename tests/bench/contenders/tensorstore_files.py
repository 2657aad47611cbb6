"""TensorStore: its zarr3 driver on files, chunks of 8 MiB with a CRC-32C each, everything asked for at once, and as
many threads for copies as there are CPUs. For files it has as many, and at its best several for each CPU, since they
wait for the disk and for each file's fsync(2). Directories are synced afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from contenders.peer import Peer, sync_tree
from contenders.state import Arrays
from contenders.zarr_files import rows_per_chunk

CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


BEST_THREADS_PER_CPU = 10
"""For files: twice as many as ours has writers."""


def peers(num_threads: int) -> tuple[Peer, ...]:
    return (
        _peer("tensorstore", num_threads, num_threads),
        _peer("tensorstore best", num_threads, BEST_THREADS_PER_CPU * num_threads),
    )


def _peer(name: str, num_copying: int, num_for_files: int) -> Peer:
    limits = {"data_copy_concurrency": {"limit": num_copying}, "file_io_concurrency": {"limit": num_for_files}}
    context = tensorstore.Context(limits)
    return Peer(
        name=name,
        save=lambda arrays, to: _save(arrays, to, context),
        restore=lambda arrays, source: _restore(arrays, source, context),
    )


def _spec(folder: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}


def _metadata(array: np.ndarray) -> dict[str, Any]:
    chunk_shape = [rows_per_chunk(array), *array.shape[1:]]
    return {
        "shape": list(array.shape),
        "data_type": str(array.dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "codecs": CODECS,
    }


def _save(arrays: Arrays, to: Path, context: Any) -> None:
    made = {
        name: tensorstore.open({**_spec(to / name), "metadata": _metadata(array), "create": True}, context=context)
        for name, array in arrays.items()
    }
    writes = [
        made[name].result().write(array, can_reference_source_data_indefinitely=True) for name, array in arrays.items()
    ]
    for write in writes:
        write.result()
    sync_tree(to)


def _restore(arrays: Arrays, source: Path, context: Any) -> None:
    opened = {name: tensorstore.open(_spec(source / name), context=context) for name in arrays}
    copies = [tensorstore.array(array).write(opened[name].result()) for name, array in arrays.items()]
    for copy in copies:
        copy.result()
