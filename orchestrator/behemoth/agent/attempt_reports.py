"""The reports of one attempt to the coordinator: each is sent once, and again to a coordinator that takes over.

Decides nothing. Neighbours: `gang` reports workers that end, `admission` those that join and restore; reports of saves
are in `saves`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from behemoth.agent.member import Member, now_us
from behemoth.wire.reports import (
    ProgramRefused,
    RanksFinished,
    RanksRestored,
    RanksUp,
    Report,
    RestoreRefused,
    WorkerEnded,
)


class AttemptReports:
    """`send` sends a report to the present coordinator and never blocks."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._milestones: dict[type, RanksUp | RanksRestored | RanksFinished] = {}
        self._ended: list[tuple[Member, WorkerEnded]] = []
        self._refused: RestoreRefused | ProgramRefused | None = None

    def milestone(self, report: RanksUp | RanksRestored | RanksFinished, answers: Sequence[bool]) -> None:
        """Report a milestone once all ranks of the node have reached it. `answers`: whether each of them has."""
        if all(answers) and type(report) not in self._milestones:
            self._milestones[type(report)] = report
            self._send(report)

    def ended(self, member: Member, ended: WorkerEnded) -> None:
        """Report a worker that ended although it should not have."""
        self._ended.append((member, ended))
        self._tell_ended(member, ended)

    def refused(self, report: RestoreRefused | ProgramRefused) -> None:
        """Report the first refusal of the attempt; later ones are the same, or follow from it, and are dropped."""
        if self._refused is None:
            self._refused = report
            self._send(report)

    def again(self) -> None:
        """Send all reports again, to a coordinator that has just taken over."""
        for report in self._milestones.values():
            self._send(report)
        for member, ended in self._ended:
            self._tell_ended(member, ended)
        if self._refused is not None:
            self._send(self._refused)

    def _tell_ended(self, member: Member, ended: WorkerEnded) -> None:
        self._send(msgspec.structs.replace(ended, quiet_us=max(0, now_us() - member.phase_since_us)))
