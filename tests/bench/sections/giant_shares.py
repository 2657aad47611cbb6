"""True shares of the reference Behemoth on 32,000 ranks: one rank's 755 MB, and those of a node's ranks together.

TP8 PP8 DP500, EP16 ETP2 EDP125; float32 master and moments; full size, true offsets, sparse shard files on disk. The
raw rate moves as many bytes, one after another. A rank's flat pieces lie in chunks that it shares with others; a
restore reads whole chunks and checks them, so it reads more than the rank needs (`over-read`); what the other ranks
would have written are holes, which cost memory bandwidth and CRCs and not the disk. There is no commit: 31,999 receipts
are missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from bench_table import Row, alone, alternate, beside
from contenders.giant import GiantRanks
from contenders.raw import Raw
from contenders.state import timed
from page_states import drop, each_file
from sections.scene import Scene, rates

FIRST_RANK = 16_000
RANKS_PER_NODE, QUICK_RANKS = 8, 2
NEEDED_BYTES_PER_RANK = 2 << 30
"""Two generations of staging memory, and what the operating system should keep."""


def one_rank(scene: Scene) -> list[Row]:
    return _shares(scene, 1)


def node(scene: Scene) -> list[Row]:
    """As many ranks of a node as memory allows."""
    fitting = _available_bytes() // NEEDED_BYTES_PER_RANK - 1  # the source takes as much as half a rank's memory
    wanted = QUICK_RANKS if scene.is_quick else RANKS_PER_NODE
    return _shares(scene, max(1, min(wanted, fitting)))


def _shares(scene: Scene, num_ranks: int) -> list[Row]:
    with scene.folder("disk") as root:
        ranks = GiantRanks(root / "behemoth", first=FIRST_RANK, num_ranks=num_ranks, num_threads=scene.num_threads)
        try:
            raw = Raw(ranks.pool.data, root / "raw", num_threads=scene.num_threads, is_direct=False)
            contenders = {
                "behemoth": lambda: _our_round(ranks, root / "behemoth"),
                "raw": lambda: _raw_round(raw, root / "raw"),
            }
            samples = alternate(contenders, num_rounds=scene.num_rounds)
            num_bytes, raw_bytes = ranks.num_bytes, ranks.pool.nbytes
        finally:
            ranks.close()
    mine, what = samples["behemoth"], f"{num_ranks} rank{'s' if num_ranks > 1 else ''} of 32,000, disk"
    rows = [
        beside(
            f"{metric}, {what}",
            "GB/s",
            rates(mine[metric], num_bytes),
            "raw, one share, page cache",
            rates(samples["raw"][metric], raw_bytes),
        )
        for metric in ("save", "load")
    ]
    return [*rows, alone("  stage (blocks training)", "s", mine["stage"]), alone("  over-read", "x", mine["over-read"])]


def _our_round(ranks: GiantRanks, folder: Path) -> Mapping[str, float]:
    samples = dict(ranks.save())
    samples["over-read"] = ranks.fill_in()
    each_file(folder, drop)
    samples["load"] = ranks.restore()
    shutil.rmtree(folder)
    return samples


def _raw_round(raw: Raw, folder: Path) -> Mapping[str, float]:
    saved = timed(raw.write)
    each_file(folder, drop)
    loaded = timed(raw.read)
    raw.remove()
    return {"save": saved, "load": loaded}


def _available_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
