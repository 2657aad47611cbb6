"""The one Ray actor of a node: starts agents under keepers on its machine and waits for their ends.

The actor holds the lifelines, so that its death, by SIGKILL too, ends its agents at once. It decides nothing. The
neighbour is `behemoth.rayrt.host`, its only caller; it makes this class an actor, so that ray itself is not
imported here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from behemoth.ports import AGENT_LOG_VARIABLE
from behemoth.rayrt.kept import KeptProcess, KeptSpec, start_kept

POLL_S = 2.0
"""How long one look at an agent holds its lock; an end is seen at once, whatever this is."""


class NodeActor:
    """Runs with several threads: one waits per agent, others start and stop."""

    def __init__(self) -> None:
        self._agents: dict[int, KeptProcess] = {}
        self._lock = threading.Lock()

    def start(self, incarnation: int, argv: list[str], env: dict[str, str]) -> None:
        """Start an agent unless that incarnation runs. Raises OSError when no process can be made."""
        with self._lock:
            if incarnation not in self._agents:
                log_path, whole_env = env.get(AGENT_LOG_VARIABLE, ""), {**machine_environment(), **env}
                spec = KeptSpec(argv=argv, env=whole_env, log_path=log_path)
                self._agents[incarnation] = start_kept(spec)

    def wait(self, incarnation: int) -> str:
        """Block until the agent and everything below has ended, for however long that takes; say how it ended."""
        agent = self._agents.get(incarnation)
        while agent is not None:
            if reason := agent.wait(timeout_s=POLL_S):
                self._agents.pop(incarnation, None)
                return reason
        return "agent process had ended before"

    def stop(self, incarnation: int) -> None:
        """End an agent and everything below it; a missing one is fine. Raises Timeout when it cannot be killed."""
        agent = self._agents.get(incarnation)
        if agent is not None:
            agent.stop()

    def stop_all(self) -> None:
        """End all agents at the same time."""
        agents = list(self._agents.values())
        for agent in agents:
            agent.let_go()
        for agent in agents:
            agent.stop()


def machine_environment() -> Mapping[str, str]:
    """The environment that the machine's Ray was started with, without Ray's own variables.

    Taken from the raylet, the actor's parent: Ray changes an actor's own (OMP_NUM_THREADS, and CUDA_VISIBLE_DEVICES is
    emptied for an actor that asked for no GPU), and an agent must not inherit that.
    """
    try:
        raw = Path(f"/proc/{os.getppid()}/environ").read_bytes()
        pairs = (entry.partition(b"=")[::2] for entry in raw.split(b"\0") if b"=" in entry)
        environment = {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}
    except OSError:
        environment = dict(os.environ)
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}
