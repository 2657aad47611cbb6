"""What an operator reads of a node's own disk that is in trouble."""

from __future__ import annotations

from pathlib import Path

from behemoth.app.event_log import EventLog, read_events
from behemoth.app.own_disk_news import tell_own_disk
from behemoth.base.clock import ManualClock
from behemoth.base.ids import NodeId
from behemoth.wire.reports import DiskState


def test_a_trouble_names_node_path_reason_meaning_and_hint_and_its_end_is_an_event_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = EventLog(path, clock=ManualClock(now_us=7), listener=lambda _event: None)
    events.open()
    reason = "write rank-00000.0: no space left on device; free space there"
    tell_own_disk(events, "/nvme", NodeId("n3"), DiskState(trouble="no-space", reason=reason))
    tell_own_disk(events, "/nvme", NodeId("n3"), DiskState())
    tell_own_disk(events, "/nvme", NodeId("n3"), DiskState(trouble="unreadable", reason="read rank-00000.0: i/o error"))
    events.close()
    trouble, over, other = read_events(path)
    assert (trouble.reason, trouble.level, trouble.node) == ("OwnDiskTrouble", "warning", "n3")
    assert trouble.message == (
        f"node n3: own disk /nvme: no-space: {reason}; restores of this node's ranks come from memory, peers and the "
        "store meanwhile; saves go on, and the copy is tried again with the next checkpoint"
    )
    assert (over.reason, over.level, over.node) == ("OwnDiskWorks", "normal", "n3")
    assert over.message == "node n3: own disk /nvme holds the newest checkpoint of its ranks again"
    assert other.message.endswith("with the next checkpoint; if that comes again, replace the disk")
