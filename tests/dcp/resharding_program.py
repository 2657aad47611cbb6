"""`dcp.resharding_program FOLDER`: four ranks save, two and three ranks load, with torch's own DCP beside ours;
and a save in which a rank is killed.

Prints one JSON document: for each world that loaded, of each rank and state, the leaves on which the two differ and
those that the load has changed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem

from behemoth.dcp import BehemothReader, BehemothWriter
from dcp.states import STATES, leaves
from dcp.world import run_world

SAVED, OTHER = 1, 2
"""Seeds of what is saved, and of what a load must replace."""


def save(folder: Path) -> dict[str, Any]:
    for name, make in STATES.items():
        state = make(SAVED)
        dcp.save(state, storage_writer=FileSystemWriter(folder / "torch" / name))
        dcp.save(state, storage_writer=BehemothWriter(folder / name), checkpoint_id=f"{folder}/{name}/step-7")
    future = dcp.async_save(STATES["fsdp"](SAVED), storage_writer=BehemothWriter(folder / "async"))
    assert isinstance(future, Future)
    return {"async": type(future.result()).__name__}


def load(folder: Path) -> dict[str, Any]:
    told = {}
    for name, make in STATES.items():
        expected, got = make(OTHER), make(OTHER)
        before = leaves(got)
        dcp.load(expected, storage_reader=FileSystemReader(folder / "torch" / name))
        dcp.load(got, storage_reader=BehemothReader(folder / name))
        told[name] = compared(before, leaves(expected), leaves(got))
        for store in ("async", "killed") if name == "fsdp" else ():
            again = make(OTHER)
            dcp.load(again, storage_reader=BehemothReader(folder / store))
            told[store] = compared(before, leaves(expected), leaves(again))
    return told


class KilledHalfway(DefaultSavePlanner):
    """Kills its process once it has given out some of the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 5

    def resolve_data(self, write_item: WriteItem) -> Any:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(write_item)


def save_and_die(folder: Path, rank: int) -> dict[str, Any]:
    """The first save ends well; in the second rank 1 is killed, and the others are told so by their collective."""
    dcp.save(STATES["fsdp"](SAVED), storage_writer=BehemothWriter(folder / "killed"))
    planner = KilledHalfway() if rank == 1 else None
    dcp.save(STATES["fsdp"](OTHER), storage_writer=BehemothWriter(folder / "killed", threads=1), planner=planner)
    return {}


def compared(before: dict[str, Any], expected: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    differ = sorted(path for path in expected.keys() | got.keys() if expected.get(path) != got.get(path))
    return {"differ": differ, "loaded": sorted(path for path in got if got[path] != before[path])}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")  # torch warns of its own deprecations here
    told: dict[str, Any] = {"save": run_world(4, lambda _: save(folder))}
    told["killed"] = run_world(2, lambda rank: save_and_die(folder, rank), killed=1)
    for num_ranks in (2, 3):
        told[f"load on {num_ranks}"] = run_world(num_ranks, lambda _: load(folder))
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
