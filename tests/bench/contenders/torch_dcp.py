"""torch.distributed.checkpoint: as it comes, and with a writer thread per CPU. It computes no checksums."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from contenders.peer import Peer, sync_tree
from contenders.state import Arrays


def peers(num_threads: int) -> tuple[Peer, ...]:
    """Default settings, and the best ones for one node: more threads are what its writer has to offer."""
    return (
        Peer(name="torch-dcp", save=lambda arrays, to: _save(arrays, to, 1), restore=_restore),
        Peer(name="torch-dcp best", save=lambda arrays, to: _save(arrays, to, num_threads), restore=_restore),
    )


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Views of the same memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _save(arrays: Arrays, to: Path, num_threads: int) -> None:
    writer = dcp.FileSystemWriter(to, thread_count=num_threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no process group; there is one process
        dcp.save(tensors(arrays), storage_writer=writer, no_dist=True)
    sync_tree(to)


def _restore(arrays: Arrays, source: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors(arrays), storage_reader=dcp.FileSystemReader(source), no_dist=True)
