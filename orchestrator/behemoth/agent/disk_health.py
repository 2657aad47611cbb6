"""Whether this node's own disk does its work, as the coordinator is told it: each trouble once, and once its end.

Nothing is decided here but what is worth telling: saves and training go on, and what fails is tried again with the next
checkpoint. The neighbour `keeping` says what became of each copy, `admission` what a restore found.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.wire.reports import OwnDisk

SLOW_IN_A_ROW = 2
"""Checkpoints whose copies were not done when the next one came, before the disk counts as slow: one alone may follow
at once, as the last save of a run."""
_TOO_LATE = frozenset({"snapshot-replaced"})
_NOT_THE_DISK = frozenset({"", "cancelled", "copy-crc", "arena-layout", "arena-empty", "arena-state"})
"""Codes of errors of the memory that is copied, or of the order; without any code the store process died."""


class DiskHealth:
    """`told` is what to tell the coordinator; None before the first copy has ended. `changed` is called when that is
    something else."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._num_late = 0
        self.told: OwnDisk | None = None

    def failed(self, code: str, reason: str) -> None:
        """A copy did not come about."""
        if code in _TOO_LATE:
            self.late(reason)
        elif code not in _NOT_THE_DISK:
            self._tell(OwnDisk(trouble="no-space" if code == "no-space" else "failed", reason=reason))

    def late(self, reason: str) -> None:
        """A copy was not done in time."""
        self._num_late += 1
        if self._num_late >= SLOW_IN_A_ROW:
            self._tell(OwnDisk(trouble="slow", reason=reason))

    def unreadable(self, reason: str) -> None:
        """A restore found a copy that is damaged, or could not read it."""
        self._tell(OwnDisk(trouble="unreadable", reason=reason))

    def whole(self) -> None:
        """Copies of all that is wanted are there."""
        self._num_late = 0
        self._tell(OwnDisk())

    def _tell(self, state: OwnDisk) -> None:
        """What a trouble is, not its words: a disk that is full is told once, whatever is free by now."""
        if self.told is None or self.told.trouble != state.trouble:
            self.told = state
            self._changed()
