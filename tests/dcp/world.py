"""Worlds of gloo processes for tests of the DCP adapters: forked from one process that has imported torch.

A rank that was forked costs milliseconds where a started one costs seconds. The process that forks must be
single-threaded and must not have used a thread pool of torch's, so this is imported by programs of their own and not by
pytest. What ranks find goes to files, which the test reads.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what FSDP2 and optimizers import in their first step, here once for all ranks
import torch.distributed as dist


def run_world(num_ranks: int, work: Callable[[int], dict[str, Any]], *, killed: int | None = None) -> list[Any]:
    """What `work` told in each rank, and None for a rank that ended otherwise. Ends this program when a rank fails,
    unless one was to be `killed`, in which case the others may fail too."""
    assert threading.active_count() == 1, "a rank is forked, which takes a single thread"
    with tempfile.TemporaryDirectory() as folder:
        pids = [_fork(rank, num_ranks, work, Path(folder)) for rank in range(num_ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if killed is None and any(codes):
            sys.exit(f"ranks ended with {codes}")
        if killed is not None and codes[killed] != -signal.SIGKILL:
            sys.exit(f"rank {killed} was to be killed, ranks ended with {codes}")
        told = [Path(folder, f"told-{rank}") for rank in range(num_ranks)]
        return [json.loads(file.read_text()) if file.exists() else None for file in told]


def _fork(rank: int, num_ranks: int, work: Callable[[int], dict[str, Any]], folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks)
        Path(folder, f"told-{rank}").write_text(json.dumps(work(rank)))
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001  a forked rank must never return into the program
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
