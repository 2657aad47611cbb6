"""Counts how many of the gang's nodes have reported the same thing, and tells it once.

This is decoding, not deciding: 4,000 reports "all my ranks are up" become one piece of evidence. What follows from
it is the brain's business. Reports of other attempts and of nodes outside the gang do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from behemoth.base.ids import Attempt, NodeId, WriteId
from behemoth.state.evidence import (
    GangFinished,
    GangGone,
    GangMismatched,
    GangRestored,
    GangUp,
    SaveArmed,
    SaveStaged,
    SaveWritten,
)
from behemoth.wire.reports import RanksFinished, RanksGone, RanksRestored, RanksUp, ReceiptBatch, SaveReached

GangEvidence: TypeAlias = GangUp | GangRestored | GangMismatched | GangGone | GangFinished
GangReport: TypeAlias = RanksUp | RanksRestored | RanksGone | RanksFinished
SaveReport: TypeAlias = SaveReached | ReceiptBatch


class RollCall:
    """Members who have answered. `answer` is True exactly once: for the last member that was missing."""

    def __init__(self, members: frozenset[NodeId]) -> None:
        self._missing = set(members)

    def answer(self, node: NodeId) -> bool:
        if node not in self._missing:
            return False
        self._missing.discard(node)
        return not self._missing

    def has_answered(self, node: NodeId) -> bool:
        return node not in self._missing


class GangMuster:
    """The gang of one attempt: `nodes[slot]`. Not thread-safe; owned by the server's event loop."""

    def __init__(self, attempt: Attempt, nodes: Sequence[NodeId]) -> None:
        self.attempt = attempt
        self.nodes = tuple(nodes)
        self.members = frozenset(nodes)
        self._calls: dict[type[GangReport], RollCall] = {}
        self._restored: list[RanksRestored] = []
        self._declared: tuple[NodeId, str] | None = None

    def count(self, node: NodeId, report: GangReport) -> GangEvidence | None:
        """The evidence that this report completes, if it does, or that it cannot be counted."""
        if report.attempt != self.attempt or node not in self.members:
            return None
        if isinstance(report, RanksRestored) and report.layout:
            first, layout = self._declared = self._declared or (node, report.layout)
            if layout != report.layout:
                return _mismatch(report, node, first, layout)
        call = self._calls.setdefault(type(report), RollCall(self.members))
        if isinstance(report, RanksRestored) and not call.has_answered(node):
            self._restored.append(report)
        if not call.answer(node):
            return None
        match report:
            case RanksUp():
                return GangUp(attempt=self.attempt)
            case RanksRestored():
                return self._gang_restored()
            case RanksGone():
                return GangGone(attempt=self.attempt)
            case RanksFinished():
                return GangFinished(attempt=self.attempt)

    def _gang_restored(self) -> GangRestored:
        told = self._restored
        return GangRestored(
            attempt=self.attempt,
            step=min(one.step for one in told),
            num_from_memory=sum(one.num_from_memory for one in told),
            num_from_peer=sum(one.num_from_peer for one in told),
            num_from_several=sum(one.num_from_several for one in told),
            num_from_disk=sum(one.num_from_disk for one in told),
            peer_bytes=sum(one.peer_bytes for one in told),
            disk_bytes=sum(one.disk_bytes for one in told),
            store_bytes=sum(one.store_bytes for one in told),
            missed=next((one.missed for one in told if one.missed), ""),
        )


def _mismatch(report: RanksRestored, node: NodeId, first: NodeId, layout: str) -> GangMismatched:
    reason = (
        f"ranks on node {node} declare other arrays than those on node {first}: expected the layout {layout[:12]}, got "
        f"{report.layout[:12]}; every rank declares the same arrays with the same shapes and dtypes, only the local "
        "pieces differ"
    )
    return GangMismatched(attempt=report.attempt, node=node, reason=reason)


class SaveMuster:
    """One write of one attempt, until it is committed or given up; it may outlive the attempt, since agents own the
    staged copies. Keeps receipts as bytes: what they say is the checkpoint engine's business."""

    def __init__(self, write_id: WriteId, attempt: Attempt, members: frozenset[NodeId]) -> None:
        self.write_id = write_id
        self.attempt = attempt
        self._members = members
        self._calls: dict[str, RollCall] = {}
        self._receipts: dict[NodeId, dict[bytes, None]] = {}
        self._layout: bytes | None = None

    def count(self, node: NodeId, report: SaveReport) -> SaveArmed | SaveStaged | SaveWritten | None:
        """The evidence that this report completes, if it does."""
        if (report.write_id, report.attempt) != (self.write_id, self.attempt) or node not in self._members:
            return None
        match report:
            case ReceiptBatch():
                is_complete = self._keep(node, report) and self._answer("written", node)
                return SaveWritten(attempt=self.attempt, write_id=self.write_id) if is_complete else None
            case SaveReached(stage="armed"):
                is_complete = self._answer("armed", node)
                return SaveArmed(attempt=self.attempt, write_id=self.write_id) if is_complete else None
            case SaveReached():
                is_complete = self._answer("staged", node)
                return SaveStaged(attempt=self.attempt, write_id=self.write_id) if is_complete else None

    def receipts(self) -> tuple[bytes | None, list[bytes]]:
        """The layout, None when slot 0 has not sent it, and every receipt so far."""
        return self._layout, [receipt for batch in self._receipts.values() for receipt in batch]

    def _keep(self, node: NodeId, batch: ReceiptBatch) -> bool:
        """True when the node has now sent all that it owes; a batch told twice changes nothing."""
        if batch.layout is not None:
            self._layout = batch.layout
        mine = self._receipts.setdefault(node, {})
        mine.update(dict.fromkeys(batch.receipts))
        return len(mine) >= batch.num_ranks

    def _answer(self, stage: str, node: NodeId) -> bool:
        return self._calls.setdefault(stage, RollCall(self._members)).answer(node)
