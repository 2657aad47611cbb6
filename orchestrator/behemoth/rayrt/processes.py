"""The Runtime of plain processes: several logical nodes on this machine, without Ray.

It serves tests, and runs where Ray is not wanted. It must not import ray. The neighbour `behemoth.rayrt.runtime` does
the same through Ray's actors; both pass `behemoth.testing.runtime`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from behemoth.base.errors import NotFound, Unavailable
from behemoth.base.ids import NodeId
from behemoth.ports import AGENT_LOG_VARIABLE, NodeGone
from behemoth.rayrt.kept import KeptProcess, KeptSpec, start_kept
from behemoth.rayrt.roster import Roster


class SubprocessRuntime:
    """Implements `behemoth.ports.Runtime`: one agent process per logical node, each under its keeper.

    `nodes` in placement order. An agent's environment is this process's with `env` of `start_agent` laid over it.
    """

    def __init__(self, nodes: Sequence[NodeId]) -> None:
        self._nodes = tuple(nodes)
        self._roster = Roster()
        self._agents: dict[NodeId, KeptProcess] = {}

    def nodes(self) -> Sequence[NodeId]:
        return self._nodes

    def start_agent(self, node: NodeId, *, incarnation: int, argv: Sequence[str], env: dict[str, str]) -> None:
        """As the port says; an older agent of the node is stopped first. Raises NotFound for a node it does not have,
        Conflict for a stale incarnation, Unavailable when no process can be made."""
        require_node(node, self._nodes)
        if self._roster.is_started(node, incarnation):
            return
        log_path, whole_env = env.get(AGENT_LOG_VARIABLE, ""), {**os.environ, **env}
        spec = KeptSpec(argv=argv, env=whole_env, log_path=log_path)
        self._stop(node)
        try:
            agent = start_kept(spec)
        except OSError as error:
            raise Unavailable(f"agent on node {node}: expected a new process, got {error}") from error
        self._agents[node] = agent
        self._roster.started(node, incarnation)

    def stop_agent(self, node: NodeId, *, incarnation: int) -> None:
        if self._roster.is_running(node, incarnation):
            self._stop(node)

    def gone(self, *, timeout_s: float) -> Sequence[NodeGone]:
        poller = select.poll()
        by_fd = {agent.status_fd: node for node, agent in self._agents.items()}
        for fd in by_fd:
            poller.register(fd, select.POLLIN)
        ready = sorted(by_fd[fd] for fd, _ in poller.poll(max(0, int(timeout_s * 1000))))
        return [self._told(node) for node in ready]

    def close(self) -> None:
        for agent in self._agents.values():
            agent.let_go()
        for node in tuple(self._agents):
            self._stop(node)

    def _told(self, node: NodeId) -> NodeGone:
        reason = self._agents.pop(node).wait(timeout_s=0)
        incarnation = self._roster.running()[node]
        self._roster.ended(node, incarnation)
        return NodeGone(node=node, incarnation=incarnation, reason=reason)

    def _stop(self, node: NodeId) -> None:
        agent = self._agents.pop(node, None)
        if agent is None:
            return
        self._roster.ended(node, self._roster.running()[node])
        agent.stop()


def require_node(node: NodeId, nodes: Sequence[NodeId]) -> None:
    """Raises NotFound when a runtime with a fixed list of nodes does not have this one."""
    if node not in nodes:
        raise NotFound(f"node {node}: expected one of {', '.join(nodes)}", hint="ask the runtime for its nodes()")
