"""Which nodes' own disks are in trouble, by what their beats say: each change is told once.

A beat repeats how the disk is, so that neither a lost connection nor another coordinator loses the news. The neighbour
`server` hears the beats.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.base.ids import NodeId
from behemoth.wire.reports import DiskState


class OwnDisks:
    """Owned by the server's event loop. `tell` hears of a trouble, and of its end: a DiskState without one."""

    def __init__(self, tell: Callable[[NodeId, DiskState], None]) -> None:
        self._tell = tell
        self._troubles: dict[NodeId, str] = {}

    def hear(self, node: NodeId, told: DiskState | None) -> None:
        """None, as of an agent that has copied nothing yet, changes nothing."""
        if told is None or told.trouble == self._troubles.get(node, ""):
            return
        self._troubles[node] = told.trouble
        self._tell(node, told)
