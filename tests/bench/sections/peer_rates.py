"""Ours beside every peer, on tmpfs and on disk: save, and restores in the states that a run meets.

- `just saved`: peers find their files in the page cache, ours finds the node's memory, where the save left its copy;
- `cold`: nobody's files are in the page cache (on disk only; tmpfs is memory);
- `agent lost, just saved`: our memory is gone too, so ours reads its files as everybody does. On disk it has written
  past the page cache.

Everybody saves from and restores into the same warm buffers and syncs files and folders. Goals: ahead of every peer,
and restores at 5 times DCP's rate. A peer that cannot be run here has a row that says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from bench_table import Row, alternate, beside, not_run, with_goal
from contenders.ours import Ours
from contenders.peer import Peer, load_peers
from contenders.state import State, restored, timed
from page_states import drop, each_file
from sections.scene import Scene, rates

JUST_SAVED, COLD, LOST = "load, just saved", "load, cold", "load, agent lost, just saved"
AHEAD, AHEAD_OF_DCP = 1.0, 5.0


def tmpfs(scene: Scene) -> list[Row]:
    return _peers(scene, "tmpfs", ("save", JUST_SAVED, LOST))


def disk(scene: Scene) -> list[Row]:
    return _peers(scene, "disk", ("save", JUST_SAVED, COLD, LOST))


def _peers(scene: Scene, place: str, metrics: tuple[str, ...]) -> list[Row]:
    found, missing = load_peers(scene.peers, num_threads=scene.num_threads)
    with scene.folder(place) as root, scene.ours_in(root / "behemoth") as (ours, state):
        contenders = {"behemoth": lambda: _our_round(ours, state, root / "behemoth", metrics)}
        contenders |= {peer.name: _peer_round(peer, state, root, metrics) for peer in found}
        samples = alternate(contenders, num_rounds=scene.num_rounds)
    mine = {metric: rates(samples["behemoth"][metric], state.num_bytes) for metric in metrics}
    rows = []
    for metric in metrics:
        name = f"{metric}, {place}"
        for peer in found:
            theirs = rates(samples[peer.name][metric], state.num_bytes)
            goal = AHEAD_OF_DCP if peer.name.startswith("torch-dcp") and metric != "save" else AHEAD
            rows.append(with_goal(beside(name, "GB/s", mine[metric], peer.name, theirs), goal))
        rows += [not_run(name, "GB/s", mine[metric], one.name, why=one.why) for one in missing]
    return rows


def _our_round(ours: Ours, state: State, folder: Path, metrics: tuple[str, ...]) -> Mapping[str, float]:
    samples = {"save": ours.save()["save"]}
    samples[JUST_SAVED] = restored(state.arrays, lambda: _none(ours.restore(is_remembered=True)))
    samples[LOST] = restored(state.arrays, lambda: _none(ours.restore(is_remembered=False)))
    if COLD in metrics:
        each_file(folder, drop)
        samples[COLD] = restored(state.arrays, lambda: _none(ours.restore(is_remembered=False)))
    shutil.rmtree(folder)
    return samples


def _peer_round(peer: Peer, state: State, root: Path, metrics: tuple[str, ...]) -> Callable[[], Mapping[str, float]]:
    def run() -> Mapping[str, float]:
        folder = root / peer.name.replace(" ", "-")
        samples = {"save": timed(lambda: peer.save(state.arrays, folder))}
        samples[JUST_SAVED] = restored(state.arrays, lambda: peer.restore(state.arrays, folder))
        samples[LOST] = samples[JUST_SAVED]
        if COLD in metrics:
            each_file(folder, drop)
            samples[COLD] = restored(state.arrays, lambda: peer.restore(state.arrays, folder))
        shutil.rmtree(folder)
        return samples

    return run


def _none(_phases: object) -> None:
    """The arrays are filled in place."""
