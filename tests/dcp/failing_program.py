"""`dcp.failing_program HOW STORE`: two ranks save twice; in the second save one of them fails, or is killed.

HOW is `raises` or `raises-async`: rank 1 raises while it writes; `killed-N`: rank N is killed while it writes. Rank 0,
where it lives on, then waits until the store is free of its lock, and clears what unfinished saves left there. Prints
one JSON document: of each rank the error of its save, and of rank 0 what the clean-up answered; then the steps that the
store has after a new world of two ranks went on and saved.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from concurrent.futures import Future
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from behemoth.app.import_lock import clearing
from behemoth.base.errors import Conflict
from behemoth.checkpoint.commit_log import commits
from behemoth.dcp import BehemothReader, BehemothWriter, save_lock
from behemoth.storage.local import LocalStore
from behemoth_cli import root
from dcp.states import fsdp
from dcp.world import run_world

PATIENCE_S = 60.0


class Ending(DefaultSavePlanner):
    """Ends its rank's part of the save at its first tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    def resolve_data(self, write_item: Any) -> Any:
        if write_item.tensor_data is None:
            return super().resolve_data(write_item)
        if self._how.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("device lost")


def life(how: str, store: str, rank: int) -> dict[str, Any]:
    writer = BehemothWriter(store)
    dcp.save(fsdp(1), storage_writer=writer)
    is_last = rank == (int(how[-1]) if how[-1].isdigit() else 1)
    planner = Ending(how) if is_last else None
    try:
        if how == "raises-async":
            saving = dcp.async_save(fsdp(2), storage_writer=writer, planner=planner)
            assert isinstance(saving, Future)
            saving.result()
        else:
            dcp.save(fsdp(2), storage_writer=writer, planner=planner)
    except (CheckpointException, RuntimeError) as error:  # RuntimeError: of gloo, where a rank is gone
        told: dict[str, Any] = {"error": str(error)[-2000:]}
        if rank == 0:
            told["freed"] = is_freed(Path(store))
            told["cleared"] = clear(store)
        if not how.startswith("killed"):
            dist.barrier()
            dcp.save(fsdp(3), storage_writer=writer)
        return told
    return {"error": None}


def is_freed(folder: Path) -> bool:
    """While this writer, and the error of its save, are still there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            with clearing(folder):
                return True
        except Conflict:
            time.sleep(0.01)
    return False


def clear(store: str) -> int:
    """The exit code. A lock of this process keeps it out as one of another would."""
    with redirect_stdout(StringIO()):
        return root.run(["ckpt", "gc", store, "--keep-last", "2", "--unfinished", "--execute"])


def resumed(store: str, _rank: int) -> dict[str, Any]:
    """A new job, which goes on from what the first save left, and saves at once."""
    state = fsdp(4)
    dcp.load(state, storage_reader=BehemothReader(store, step=0))
    dcp.save(state, storage_writer=BehemothWriter(store))
    with closing(LocalStore(store)) as opened:
        return {"steps": [one.step for one in commits(opened)]}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    save_lock.LOOK_S = 0.01
    how, store = sys.argv[1:]
    killed = int(how[-1]) if how.startswith("killed") else None
    ranks = run_world(2, lambda rank: life(how, store, rank), killed=killed)
    sys.stdout.write(json.dumps({"ranks": ranks, "resumed": run_world(2, lambda rank: resumed(store, rank))}))
