"""Starts a Ray that somebody else could have started, three nodes on this machine, and ends it with the block."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLUSTER = Path(__file__).with_name("three_node_ray.py")
END_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedRay:
    """Where it is joined, the pids of its raylets, and the folder of its session."""

    address: str
    raylets: list[int]
    session: Path


@contextmanager
def joined_ray(**changes: str) -> Iterator[JoinedRay]:
    """Its machines have this process's environment with `changes`; agents and workers get that."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, str(CLUSTER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environment, **changes, "RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told = json.loads(next(line for line in process.stdout if line.startswith("{")))
        session = Path(told["session"])
        try:
            yield JoinedRay(address=told["address"], raylets=told["raylets"], session=session)
        finally:
            process.stdin.close()
            process.wait(END_LIMIT_S)
            shutil.rmtree(session, ignore_errors=True)
