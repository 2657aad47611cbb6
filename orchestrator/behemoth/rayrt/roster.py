"""Which agent was asked of which node, so that both runtimes refuse stale starts and tell each end once.

Pure bookkeeping without processes; the neighbours `behemoth.rayrt.processes` and `behemoth.rayrt.runtime` act on it.
"""

from __future__ import annotations

from behemoth.base.errors import Conflict
from behemoth.base.ids import NodeId


class Roster:
    """Newest incarnation per node, and whether it runs. An incarnation is started once in the life of a runtime."""

    def __init__(self) -> None:
        self._newest: dict[NodeId, int] = {}
        self._running: dict[NodeId, int] = {}

    def is_started(self, node: NodeId, incarnation: int) -> bool:
        """Whether this start was done before, though the agent may have ended since.

        Raises Conflict when a newer incarnation was started: the caller's view is stale.
        """
        newest = self._newest.get(node)
        if newest is not None and incarnation < newest:
            raise Conflict(
                f"agent on node {node}: expected an incarnation >= {newest}, got {incarnation}",
                code="stale-incarnation",
            )
        return newest == incarnation

    def is_running(self, node: NodeId, incarnation: int) -> bool:
        return self._running.get(node) == incarnation

    def running(self) -> dict[NodeId, int]:
        """A copy: node to the incarnation that runs on it."""
        return dict(self._running)

    def started(self, node: NodeId, incarnation: int) -> None:
        self._newest[node] = self._running[node] = incarnation

    def ended(self, node: NodeId, incarnation: int) -> bool:
        """Note an end; False when it was noted before, so that nobody tells it twice."""
        if not self.is_running(node, incarnation):
            return False
        del self._running[node]
        return True
