"""zarr-python, with its own codec pipeline and with that of zarrs (Rust). Chunks of 8 MiB with a CRC-32C each."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from contenders.peer import Peer, sync_tree
from contenders.state import Arrays
from zarr.codecs import Crc32cCodec
from zarr.core.buffer.cpu import NDBuffer

CHUNK_BYTES = 8 << 20
OWN_PIPELINE, RUST_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"


def peers(num_threads: int) -> tuple[Peer, ...]:
    found = [_peer("zarr-python", OWN_PIPELINE, num_threads)]
    if find_spec("zarrs") is not None:
        found.append(_peer("zarrs", RUST_PIPELINE, num_threads))
    return tuple(found)


def rows_per_chunk(array: np.ndarray) -> int:
    """Whole rows of about 8 MiB."""
    row_bytes = array.nbytes // array.shape[0]
    return int(min(array.shape[0], max(1, CHUNK_BYTES // row_bytes)))


def _peer(name: str, pipeline: str, num_threads: int) -> Peer:
    settings = {"codec_pipeline.path": pipeline, "threading.max_workers": num_threads}

    def save(arrays: Arrays, to: Path) -> None:
        with zarr.config.set(settings):
            _save(arrays, to)

    def restore(arrays: Arrays, source: Path) -> None:
        with zarr.config.set(settings):
            _restore(arrays, source)

    return Peer(name=name, save=save, restore=restore)


def _save(arrays: Arrays, to: Path) -> None:
    group = zarr.create_group(to)
    for name, array in arrays.items():
        stored = group.create_array(
            name,
            shape=array.shape,
            chunks=(rows_per_chunk(array), *array.shape[1:]),
            dtype=array.dtype,
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        stored[...] = array
    sync_tree(to)


def _restore(arrays: Arrays, source: Path) -> None:
    group = zarr.open_group(source, mode="r")
    for name, array in arrays.items():
        stored = group[name]
        assert isinstance(stored, zarr.Array)
        stored.get_basic_selection(Ellipsis, out=NDBuffer(cast(Any, array)))
