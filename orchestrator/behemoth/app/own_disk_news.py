"""Turns an agent's reports about its node's own disk into events of the run, with what they mean and what to do."""

from __future__ import annotations

from behemoth.app.event_log import EventLog
from behemoth.base.ids import NodeId
from behemoth.wire.reports import DiskState

_MEANING = (
    "restores of this node's ranks come from memory, peers and the store meanwhile; saves go on, and the copy is tried "
    "again with the next checkpoint"
)
_HINTS = {
    "failed": "; look at the disk and its folder on that node",
    "unreadable": "; if that comes again, replace the disk",
}
"""What to do, by kind of trouble, where the agent's reason does not say it."""


def tell_own_disk(events: EventLog, path: str, node: NodeId, told: DiskState) -> None:
    """One event; `path` as the run names it."""
    disk = f"node {node}: own disk {path}"
    if told.trouble:
        message = f"{disk}: {told.trouble}: {told.reason}; {_MEANING}{_HINTS.get(told.trouble, '')}"
        events.warn("OwnDiskTrouble", message, node=node)
    else:
        events.note("OwnDiskWorks", f"{disk} holds the newest checkpoint of its ranks again", node=node)
