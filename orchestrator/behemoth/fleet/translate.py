"""Reports that are evidence one by one, as evidence. Those that are counted first are `muster`'s business."""

from __future__ import annotations

from typing import TypeAlias

from behemoth.base.ids import NodeId
from behemoth.state.evidence import GangMismatched, RestoreFailed, SaveFailed, SavePassed, WorkerFailed
from behemoth.wire.reports import ProgramRefused, RestoreRefused, SaveBroken, SaveMissed, WorkerEnded

SingleReport: TypeAlias = WorkerEnded | RestoreRefused | ProgramRefused | SaveMissed | SaveBroken


def evidence_of(
    node: NodeId, report: SingleReport
) -> WorkerFailed | RestoreFailed | GangMismatched | SavePassed | SaveFailed:
    """What `node` says, as a fact about the run."""
    match report:
        case WorkerEnded():
            return WorkerFailed(
                node=node,
                attempt=report.attempt,
                rank=report.rank,
                exit_code=report.exit_code,
                signal=report.signal,
                last_lines=report.last_lines,
                quiet_us=report.quiet_us,
            )
        case RestoreRefused():
            return RestoreFailed(
                attempt=report.attempt,
                node=node,
                write_id=report.write_id,
                reason=report.reason,
                is_corrupt=report.is_corrupt,
                is_unfit=report.is_unfit,
            )
        case ProgramRefused():
            return GangMismatched(attempt=report.attempt, node=node, reason=report.reason)
        case SaveMissed():
            return SavePassed(attempt=report.attempt, write_id=report.write_id, step=report.step)
        case SaveBroken():
            return SaveFailed(write_id=report.write_id, reason=f"node {node}: {report.reason}")
