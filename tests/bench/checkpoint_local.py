"""Speed of checkpoints on one node: ours beside the machine's own rate and beside every peer, 4 GiB, in sections.

    .venv/bin/python tests/bench/checkpoint_local.py [--only SECTION ...] [--peers NAME ...] [--rounds N] [--gib N]
                                                     [--tmpfs DIR] [--disk DIR] [--quick] [-o table|json|markdown]

One process, one rank, float32 arrays in warm page-aligned buffers, as many threads as CPUs. Contenders take turns
within one run, at least 15 times for a verdict; rates are GB/s, so a ratio above 1 means that ours is faster. Ours
always computes and checks its CRCs. What each section measures stands at the top of its module in `sections/`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench_table import Row, arguments, show
from contenders.peer import NAMES
from contenders.state import LAYER_BYTES, LAYER_SHAPES
from sections import blocking, extra_memory, giant_shares, memory_tier, peer_rates, raw_rates
from sections.scene import Scene

SECTIONS: dict[str, Callable[[Scene], list[Row]]] = {
    "memory-tier": memory_tier.run,
    "raw-tmpfs": raw_rates.tmpfs,
    "raw-disk": raw_rates.disk,
    "peers-tmpfs": peer_rates.tmpfs,
    "peers-disk": peer_rates.disk,
    "blocking": blocking.run,
    "extra-memory": extra_memory.run,
    "rank-share": giant_shares.one_rank,
    "node-shares": giant_shares.node,
}
GIB = 4.0
NUM_ROUNDS = 15
QUICK_GIB, QUICK_ROUNDS = 0.25, 2


def main() -> int:
    options = arguments(__doc__ or "", extend=_own_options)
    gib = options.gib or (QUICK_GIB if options.quick else GIB)
    scene = Scene(
        num_layers=max(1, round(gib * 2**30 / LAYER_BYTES)),
        num_rounds=options.rounds or (QUICK_ROUNDS if options.quick else NUM_ROUNDS),
        num_threads=len(os.sched_getaffinity(0)),
        tmpfs=options.tmpfs,
        disk=options.disk,
        peers=options.peers,
        is_quick=options.quick,
    )
    rows: list[Row] = []
    for name in options.only:
        print(f"section {name}", file=sys.stderr, flush=True)
        rows += SECTIONS[name](scene)
    notes = [
        f"{scene.num_layers * LAYER_BYTES / 2**30:.2f} GiB in {scene.num_layers * len(LAYER_SHAPES)} arrays, "
        f"{scene.num_threads} threads, tmpfs {scene.tmpfs}, disk {scene.disk}",
        "rates are GB/s: a ratio above 1 means that ours is faster; everybody syncs files and folders",
    ]
    show("checkpoint_local", rows, options, notes=notes)
    return 0


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections (default: all)")
    parser.add_argument("--peers", nargs="+", choices=NAMES, default=list(NAMES), help="peers (default: all)")
    parser.add_argument("--rounds", type=int, help=f"counted rounds (default: {NUM_ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--gib", type=float, help=f"size of the state (default: {GIB:g}, quick {QUICK_GIB:g})")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a folder on tmpfs (default: /dev/shm)")
    parser.add_argument(
        "--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder on disk (default: temporary files)"
    )


if __name__ == "__main__":
    sys.exit(main())
