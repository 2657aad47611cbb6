"""Builds what runs batches: threads of this process, or workers on a Ray that is started or joined."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal

from behemoth.app.batches.jobs import Work, open_work
from behemoth.app.batches.threads import ThreadExecutor
from behemoth.app.batches.workers import WorkerExecutor
from behemoth.base.ids import NodeId
from behemoth.ports import Executor
from behemoth.rayrt.runtime import embed_ray, join_ray
from behemoth.wiring.address import own_address

Place = Literal["threads", "embedded-ray", "joined-ray"]
WORKER = "behemoth.wiring.batch_worker"
"""The module that is the program of a worker."""
LOCAL_NODE = NodeId("node-0")
"""An embedded Ray has one node: a worker uses as many threads as it is told."""


def open_executor(
    place: Place,
    *,
    threads: int,
    ray_address: str = "",
    open_work: Callable[[bytes], Work] = open_work,
    worker: str = WORKER,
) -> Executor:
    """Blocks for seconds where a Ray is started or joined. `threads` are those of each node; `open_work` opens jobs on
    threads, the program `worker` does on nodes. The caller closes it. Raises Unavailable and Invalid as `join_ray`
    does."""
    argv = (sys.executable, "-m", worker)
    match place:
        case "threads":
            return ThreadExecutor(threads=threads, open_work=open_work)
        case "embedded-ray":
            runtime = embed_ray([LOCAL_NODE])
            return WorkerExecutor(runtime, threads=threads, host="127.0.0.1", address="127.0.0.1", argv=argv)
        case "joined-ray":
            runtime = join_ray(ray_address)
            return WorkerExecutor(runtime, threads=threads, host="0.0.0.0", address=own_address(), argv=argv)
