"""What the processes of the coordinator benchmark agree on: one run, its nodes, its tokens, its limits, its times.

Values only, and the one line format in which a child tells the harness what happened. Times are of CLOCK_MONOTONIC,
which all processes of one machine share.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from behemoth.base.ids import NodeId, RunUid, Step
from behemoth.fleet.tokens import Tokens
from behemoth.state.config import HangFloors
from behemoth.wire.setup import EntrypointWork, Setup

RUN = RunUid("bench-coordinator")
HOST = "127.0.0.1"
BEAT_S = 1.0
TICK_S = 0.2
"""Of `behemoth.wiring.run`, which costs a peer too much memory to import."""
LIMIT_S = 2.5
"""The default `recovery.heartbeat_limit`: of beats once a second one may go missing."""
GRACE_S = 60.0
"""`recovery.coordinator_grace` of the benchmark's run."""
NUM_SPARES = 8
"""Nodes beyond the gang, so that silent ones can be replaced."""
TOTAL_STEPS = Step(1_000_000)
_HOUR_US = 3_600_000_000

FLOORS = HangFloors(
    start_us=_HOUR_US,
    restore_us=_HOUR_US,
    first_step_us=_HOUR_US,
    step_us=_HOUR_US,
    eval_us=_HOUR_US,
    save_us=_HOUR_US,
)
SETUP = Setup(
    work=EntrypointWork(entrypoint="bench.program:main", preload=("torch", "torch._dynamo")),
    args={"layers": 48, "width": 5120},
    environment={"OMP_NUM_THREADS": "1"},
    total_steps=TOTAL_STEPS,
    mesh={"tp": 8, "pp": 8},
    ranks_per_node=8,
    store_url="/nowhere",
    run_name="bench",
    log_dir="/nowhere",
    io_threads=1,
    hang_floors=FLOORS,
    coordinator_grace_us=round(GRACE_S * 1e6),
    max_log_bytes=1,
)


def tokens() -> Tokens:
    return Tokens(b"a secret of the benchmark only..")


def nodes(count: int) -> list[NodeId]:
    return [NodeId(f"node-{number:04d}") for number in range(count)]


def now_s() -> float:
    return time.monotonic()


def tell(event: str, **values: object) -> None:
    """One JSON line to the harness, with the time at which it is written unless `at_s` is given."""
    print(json.dumps({"event": event, "at_s": now_s(), **values}), flush=True)


def settings() -> dict[str, Any]:
    """What the harness passes as the only argument."""
    found: dict[str, Any] = json.loads(sys.argv[1])
    return found
