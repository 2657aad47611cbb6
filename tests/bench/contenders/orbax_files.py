"""Orbax: as it comes (OCDBT, zstd), and the way that is fastest for bytes that do not compress: a zarr array each, not
compressed. It restores into arrays of its own, and computes no checksum that it checks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax looks for accelerators

import orbax.checkpoint as orbax
from absl import logging
from contenders.peer import Peer, sync_tree
from contenders.state import Arrays

logging.set_verbosity(logging.ERROR)  # it warns of each save that no OCDBT files had to be merged


def peers(num_threads: int) -> tuple[Peer, ...]:
    """It chooses its threads itself."""
    del num_threads
    return (
        _peer("orbax", lambda: orbax.PyTreeCheckpointHandler()),
        _peer("orbax best", lambda: orbax.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)),
    )


def _peer(name: str, new_handler: Callable[[], orbax.PyTreeCheckpointHandler]) -> Peer:
    def save(arrays: Arrays, to: Path) -> None:
        with orbax.Checkpointer(new_handler()) as checkpointer:
            checkpointer.save(to, dict(arrays))
        sync_tree(to)

    def restore(arrays: Arrays, source: Path) -> Arrays:
        del arrays
        with orbax.Checkpointer(new_handler()) as checkpointer:
            restored: Arrays = checkpointer.restore(source)
        return restored

    return Peer(name=name, save=save, restore=restore)
