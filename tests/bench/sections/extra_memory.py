"""How much memory a save and a restore take beside the program's own, at the most, ours and every peer's.

Anonymous and shared pages of all processes at work, sampled, beyond what they held before; the page cache is not among
them. Ours has its staging memory all the time, two generations of the state, and a save uses one of them: what is
counted is one generation and all that grows besides, and the goal is the budget, the staging memory as a whole. Each
contender runs once before, uncounted, so that what libraries keep for good is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from bench_table import Row, alternate, beside, not_run, with_goal
from contenders.ours import Ours
from contenders.peer import Peer, load_peers
from contenders.resident import peak_growth_bytes
from contenders.state import State
from page_states import drop, each_file
from sections.scene import Scene

MIB = 2**20
METRICS = ("save", "load")


def run(scene: Scene) -> list[Row]:
    found, missing = load_peers(scene.peers, num_threads=scene.num_threads)
    with scene.folder("disk") as root, scene.ours_in(root / "behemoth") as (ours, state):
        contenders = {"behemoth": lambda: _our_round(ours, root / "behemoth")}
        contenders |= {peer.name: _peer_round(peer, state, root) for peer in found}
        samples = alternate(contenders, num_rounds=scene.num_rounds)
        budget_mib = ours.staging_bytes / MIB
    rows = []
    for metric in METRICS:
        grown = samples["behemoth"][metric]
        rows.append(_judged(metric, [state.num_bytes / MIB + each for each in grown], budget_mib))
        name = f"{metric}: grows beyond what stands ready"
        rows += [beside(name, "MiB", grown, peer.name, samples[peer.name][metric]) for peer in found]
        rows += [not_run(name, "MiB", grown, one.name, why=one.why) for one in missing]
    return rows


def _judged(metric: str, used_mib: list[float], budget_mib: float) -> Row:
    row = beside(f"{metric}: one generation and what grows", "MiB", used_mib, "budget", [budget_mib] * len(used_mib))
    return with_goal(row, 1.0, is_upper=True)


def _our_round(ours: Ours, folder: Path) -> Mapping[str, float]:
    pids = (ours.store_pid,)
    saved = peak_growth_bytes(ours.save, pids=pids)
    each_file(folder, drop)
    loaded = peak_growth_bytes(lambda: ours.restore(is_remembered=False), pids=pids)
    shutil.rmtree(folder)
    return {"save": _mib(saved), "load": _mib(loaded)}


def _peer_round(peer: Peer, state: State, root: Path) -> Callable[[], Mapping[str, float]]:
    def run() -> Mapping[str, float]:
        folder = root / peer.name.replace(" ", "-")
        saved = peak_growth_bytes(lambda: peer.save(state.arrays, folder))
        each_file(folder, drop)
        loaded = peak_growth_bytes(lambda: peer.restore(state.arrays, folder))
        shutil.rmtree(folder)
        return {"save": _mib(saved), "load": _mib(loaded)}

    return run


def _mib(num_bytes: int) -> float:
    """At least one: below is what allocators happen to hold, and ratios of it would mean nothing."""
    return max(num_bytes / MIB, 1.0)
