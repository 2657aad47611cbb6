"""safetensors, one file: plain, and with the work that ours does besides: a CRC-32C of every tensor, kept when it is
saved and checked while it is restored, on as many threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from awscrt.checksums import crc32c
from contenders.peer import Peer, sync_tree
from contenders.state import Arrays
from safetensors import safe_open
from safetensors.torch import save_file

CRC_BLOCK_WORDS = 64 << 10
"""Words of float32 that are copied and checked at a time: 256 KiB stay in a core's cache between the two."""
CRCS = "crcs.json"
FILE = "model.safetensors"


def peers(num_threads: int) -> tuple[Peer, ...]:
    return (
        Peer(name="safetensors", save=_save, restore=_restore),
        Peer(
            name="safetensors+crc",
            save=lambda arrays, to: _checked_save(arrays, to, num_threads),
            restore=lambda arrays, source: _checked_restore(arrays, source, num_threads),
        ),
    )


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _save(arrays: Arrays, to: Path) -> None:
    to.mkdir()
    save_file(_tensors(arrays), to / FILE)
    sync_tree(to)


def _restore(arrays: Arrays, source: Path) -> None:
    with safe_open(source / FILE, framework="pt") as file:
        for name, target in _tensors(arrays).items():
            target.copy_(file.get_tensor(name))


def _checked_save(arrays: Arrays, to: Path, num_threads: int) -> None:
    to.mkdir()
    with ThreadPoolExecutor(num_threads) as pool:
        crcs = dict(zip(arrays, pool.map(crc32c, arrays.values()), strict=True))
    (to / CRCS).write_text(json.dumps(crcs))
    save_file(_tensors(arrays), to / FILE)
    sync_tree(to)


def _checked_restore(arrays: Arrays, source: Path, num_threads: int) -> None:
    crcs: dict[str, int] = json.loads((source / CRCS).read_text())
    with safe_open(source / FILE, framework="pt") as file, ThreadPoolExecutor(num_threads) as pool:

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
