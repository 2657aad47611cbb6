"""Ours beside the machine's own rate, on tmpfs and on disk.

Raw pwrite(2) and preadv(2) move the same bytes with as many threads in blocks of 8 MiB, into and out of page-aligned
memory, without CRCs or names. On tmpfs new files are new pages; on disk raw files are written and read both past the
page cache and through it, and cold files are read. Our save lasts from the call to the commit, our restore is that of a
node which lost its memory. Goals: 0.85 of raw on tmpfs, 0.95 on disk. Our save also copies the bytes once, for which
training waits: on tmpfs, where writing is a copy by the processors, that costs as much again. Raw with such a copy of
each block is beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bench_table import Row, alone, alternate, beside, with_goal
from contenders.ours import Ours
from contenders.raw import Raw
from contenders.state import State, restored, timed
from page_states import drop, each_file
from sections.scene import Scene, rates

GOALS = {"tmpfs": 0.85, "disk": 0.95}
COPIED = "raw, copied first"
DIRECT = "raw, direct"
DIRECT_COPIED = "raw, direct, copied first"
STAGED = "behemoth, staged before"


def tmpfs(scene: Scene) -> list[Row]:
    return _files(scene, "tmpfs", ("raw", COPIED))


def disk(scene: Scene) -> list[Row]:
    return _files(scene, "disk", (DIRECT, DIRECT_COPIED, "raw, page cache"))


def _files(scene: Scene, place: str, raws: Sequence[str]) -> list[Row]:
    with scene.folder(place) as root, scene.ours_in(root / "behemoth") as (ours, state):
        contenders = {
            "behemoth": lambda: _our_round(ours, state, root / "behemoth"),
            STAGED: lambda: _staged_round(ours, root / "behemoth"),
        }
        for name in raws:
            raw = Raw(
                state.memory,
                root / "raw",
                num_threads=scene.num_threads,
                is_direct=name in (DIRECT, DIRECT_COPIED),
                staging=ours.staging if name in (COPIED, DIRECT_COPIED) else None,
            )
            contenders[name] = partial(_raw_round, raw, state, root / "raw")
        samples = alternate(contenders, num_rounds=scene.num_rounds)
    mine = samples["behemoth"]
    rows = []
    for metric in ("save", "load"):
        for name in raws:
            if metric == "load" and name in (COPIED, DIRECT_COPIED):
                continue  # it reads as the other does
            values = (rates(each[metric], state.num_bytes) for each in (mine, samples[name]))
            ours_gbs, raw_gbs = values
            row = beside(f"{metric}, {_page_state(place, metric)}", "GB/s", ours_gbs, name, raw_gbs)
            rows.append(with_goal(row, GOALS[place]))
    staged = rates(samples[STAGED]["save"], state.num_bytes)
    for name in raws:
        if name not in (COPIED, DIRECT_COPIED):
            theirs = rates(samples[name]["save"], state.num_bytes)
            rows.append(beside(f"save behind the copy, {_page_state(place, 'save')}", "GB/s", staged, name, theirs))
    phases = ("stage", "write", "commit", "read", "unstage")
    return rows + [alone(f"  of which {phase}", "s", mine[phase]) for phase in phases]


def _page_state(place: str, metric: str) -> str:
    if metric == "save":
        return f"new file on {place}"
    return f"file on {place}" if place == "tmpfs" else f"cold file on {place}"


def _our_round(ours: Ours, state: State, folder: Path) -> Mapping[str, float]:
    samples = dict(ours.save())
    each_file(folder, drop)
    phases: dict[str, float] = {}
    samples["load"] = restored(state.arrays, lambda: phases.update(ours.restore(is_remembered=False)))
    shutil.rmtree(folder)
    return samples | phases


def _staged_round(ours: Ours, folder: Path) -> Mapping[str, float]:
    saved = ours.save(is_staged_before=True)["save"]
    each_file(folder, drop)
    shutil.rmtree(folder)
    return {"save": saved}


def _raw_round(raw: Raw, state: State, folder: Path) -> Mapping[str, float]:
    saved = timed(raw.write)
    each_file(folder, drop)
    loaded = restored(state.arrays, raw.read)
    raw.remove()
    return {"save": saved, "load": loaded}
