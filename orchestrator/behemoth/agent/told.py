"""What this node has told its coordinator of one attempt: each thing once, and again to a successor.

Nothing is decided here. Neighbours: `gang` tells of workers that end, `admission` of those that come in; saves have
their own book in `saves`.
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


class Told:
    """`send` takes what goes to the coordinator that is there now."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._milestones: dict[type, RanksUp | RanksRestored | RanksFinished] = {}
        self._ended: list[tuple[Member, WorkerEnded]] = []
        self._refused: RestoreRefused | ProgramRefused | None = None

    def milestone(self, report: RanksUp | RanksRestored | RanksFinished, answers: Sequence[bool]) -> None:
        """Tell how far the ranks are, as soon as each of them has got there."""
        if all(answers) and type(report) not in self._milestones:
            self._milestones[type(report)] = report
            self._send(report)

    def ended(self, member: Member, ended: WorkerEnded) -> None:
        """A worker ended that should not have."""
        self._ended.append((member, ended))
        self._tell_ended(member, ended)

    def refused(self, report: RestoreRefused | ProgramRefused) -> None:
        """The first one: the others are the same, or follow from it."""
        if self._refused is None:
            self._refused = report
            self._send(report)

    def again(self) -> None:
        """How things stand, for a coordinator that has just come."""
        for report in self._milestones.values():
            self._send(report)
        for member, ended in self._ended:
            self._tell_ended(member, ended)
        if self._refused is not None:
            self._send(self._refused)

    def _tell_ended(self, member: Member, ended: WorkerEnded) -> None:
        self._send(msgspec.structs.replace(ended, quiet_us=max(0, now_us() - member.phase_since_us)))
