"""What every peer of `checkpoint_local.py` can do, and which there are.

All run in one process on warm memory: sources and targets are the same buffers for everybody. A save ends when its
bytes and names are durable (fsync of every file, then of its directories). A peer that cannot be imported stays in the
list with the reason. Neighbours: one module for each family of peers.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from contenders.state import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`save` blocks until the arrays are durable below a new folder; `restore` fills the arrays, or returns its own."""

    name: str
    save: Callable[[Arrays, Path], None]
    restore: Callable[[Arrays, Path], Arrays | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A peer that this machine cannot run."""

    name: str
    why: str


FAMILIES = {
    "torch_dcp": ("torch-dcp", "torch-dcp best"),
    "safetensors_files": ("safetensors", "safetensors+crc"),
    "tensorstore_files": ("tensorstore", "tensorstore best"),
    "zarr_files": ("zarr-python", "zarrs"),
    "orbax_files": ("orbax", "orbax best"),
}
"""Module of this folder: its peers. Each module has `peers(num_threads)`."""
NAMES = tuple(name for names in FAMILIES.values() for name in names)


def load_peers(names: Sequence[str], *, num_threads: int) -> tuple[list[Peer], list[Missing]]:
    """Those that can be run here, and those that cannot."""
    found: list[Peer] = []
    missing: list[Missing] = []
    for family, members in FAMILIES.items():
        wanted = [name for name in members if name in names]
        if not wanted:
            continue
        try:
            module = importlib.import_module(f"contenders.{family}")
        except ImportError as error:
            missing += [Missing(name=name, why=str(error)) for name in wanted]
            continue
        offered = {peer.name: peer for peer in module.peers(num_threads)}
        found += [offered[name] for name in wanted if name in offered]
        missing += [Missing(name=name, why="its package is not installed") for name in wanted if name not in offered]
    return found, missing


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
