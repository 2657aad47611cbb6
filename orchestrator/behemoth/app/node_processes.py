"""Finds the processes of a run on this machine through /proc: its agents, their ancestors and descendants, its workers.

Only drills and checks for leftovers need this. An agent is known by the run and node in the environment that it was
started with, a worker by its rank: in its name (forked workers) or in its environment (executed commands). Linux only
(proc(5)). Nothing here signals anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from behemoth.agent.settings import NODE_VARIABLE, RUN_UID_VARIABLE
from behemoth.base.ids import NodeId, Rank, RunUid
from behemoth.wire.session import worker_title

_PROC = Path("/proc")


def agent_pid(run_uid: RunUid, node: NodeId) -> int | None:
    """The live agent of `node`, None when there is none. The newest incarnation when an old one lingers."""
    wanted = {f"{RUN_UID_VARIABLE}={run_uid}".encode(), f"{NODE_VARIABLE}={node}".encode()}
    found = [pid for pid in _pids() if _is_agent(pid) and wanted <= set(_read(pid, "environ").split(b"\0"))]
    return max(found, key=_started, default=None)


def below(root_pid: int) -> list[int]:
    """All descendants, parents before children."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        parent = parent_of(pid)
        if parent is not None:
            children.setdefault(parent, []).append(pid)
    found = [root_pid]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found[1:]


def starters_of(pid: int) -> list[int]:
    """The agent's own ancestors that die with its machine: its keeper and, under Ray, its actor; nearest first."""
    found: list[int] = []
    parent = parent_of(pid)
    while parent is not None and parent != os.getpid() and _is_starter(parent):
        found.append(parent)
        parent = parent_of(parent)
    return found


def worker_pid(pids: list[int], rank: Rank) -> int | None:
    """The worker of `rank` among `pids`."""
    for pid in pids:
        if _read(pid, "comm").strip() == worker_title(rank).encode():
            return pid
    for pid in pids:
        if f"RANK={rank}".encode() in _read(pid, "environ").split(b"\0"):
            return pid
    return None


def parent_of(pid: int) -> int | None:
    stat = _read(pid, "stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else None


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(_PROC) if entry.isdigit())


def _is_agent(pid: int) -> bool:
    return b"behemoth.wiring.agent" in _read(pid, "cmdline").split(b"\0")


def _is_starter(pid: int) -> bool:
    words = _read(pid, "cmdline").split(b"\0")
    return words[0].startswith(b"ray::") or any(word.endswith(b"rayrt/keeper.py") for word in words)


def _started(pid: int) -> int:
    stat = _read(pid, "stat")
    return int(stat.rpartition(b")")[2].split()[19]) if stat else 0


def _read(pid: int, name: str) -> bytes:
    """Empty when the process is gone or not ours."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / name).read_bytes()
    return b""
