"""The memory tier beside raw writes into pages that are there: what a save costs that ends in the node's memory.

Ours copies the state into the staging memory, which is the tier's own, and computes every CRC behind the copy; nothing
is written to storage. Raw is pwrite(2) into files on tmpfs whose pages exist: one file for all threads, or one for
each, which is faster since threads that share a file wait for its lock. Goal: as fast as raw. Restores copy out with
every CRC checked, beside preadv(2) out of those files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from bench_table import Row, alternate, beside, with_goal
from contenders.ours import Ours
from contenders.raw import Raw
from contenders.state import State, restored, timed
from sections.scene import Scene, rates

SAVE_GOAL, LOAD_GOAL = 1.0, 0.85
RAWS = {"raw, one file": True, "raw, a file per thread": False}


def run(scene: Scene) -> list[Row]:
    """A row for each way of raw, save and load."""
    with scene.folder("tmpfs") as root, scene.ours_in(root / "behemoth") as (ours, state):
        contenders = {"behemoth": lambda: _our_round(ours, state)}
        for name, is_shared in RAWS.items():
            raw = Raw(
                state.memory,
                root / name.replace(" ", "-"),
                num_threads=scene.num_threads,
                is_direct=False,
                is_shared=is_shared,
            )
            contenders[name] = partial(_raw_round, raw, state)
        samples = alternate(contenders, num_rounds=scene.num_rounds)  # the first round is not counted: it makes pages
    rows = []
    for metric, goal in (("save", SAVE_GOAL), ("load", LOAD_GOAL)):
        for name in RAWS:
            mine, theirs = (rates(samples[who][metric], state.num_bytes) for who in ("behemoth", name))
            rows.append(with_goal(beside(f"{metric}, reused pages in memory", "GB/s", mine, name, theirs), goal))
    return rows


def _our_round(ours: Ours, state: State) -> Mapping[str, float]:
    return {"save": timed(ours.save_in_memory), "load": restored(state.arrays, ours.load_from_memory)}


def _raw_round(raw: Raw, state: State) -> Mapping[str, float]:
    return {"save": timed(raw.write), "load": restored(state.arrays, raw.read)}
