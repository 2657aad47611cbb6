"""The health of this node's own disk, as it is reported to the coordinator: each trouble once, and its end once.

Decides only what is reported: saves and training go on, and what fails is tried again with the next checkpoint. The
neighbours are `keeping`, which tells the outcome of each copy, and `admission`, which tells what restores found.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.wire.reports import DiskState

SLOW_IN_A_ROW = 2
"""Checkpoints whose copies were not done when the next one came, before the disk counts as slow: one alone may follow
at once, as the last save of a run."""
_TOO_LATE = frozenset({"snapshot-replaced"})
_NOT_THE_DISK = frozenset({"", "cancelled", "copy-crc", "arena-layout", "arena-empty", "arena-state"})
"""Codes of errors of the memory that is copied, or of the order; without any code the store process died."""


class DiskHealth:
    """`told` is the state to report; None before the first copy has ended. `changed` is called when it changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._num_late = 0
        self.told: DiskState | None = None

    def failed(self, code: str, reason: str) -> None:
        """A copy failed, with the code of its error."""
        if code in _TOO_LATE:
            self.late(reason)
        elif code not in _NOT_THE_DISK:
            self._tell(DiskState(trouble="no-space" if code == "no-space" else "failed", reason=reason))

    def late(self, reason: str) -> None:
        """A copy was not complete when the next checkpoint was committed."""
        self._num_late += 1
        if self._num_late >= SLOW_IN_A_ROW:
            self._tell(DiskState(trouble="slow", reason=reason))

    def unreadable(self, reason: str) -> None:
        """A restore found a copy that is damaged, or could not read it."""
        self._tell(DiskState(trouble="unreadable", reason=reason))

    def whole(self) -> None:
        """Copies of the newest checkpoint of all the node's ranks are complete."""
        self._num_late = 0
        self._tell(DiskState())

    def _tell(self, state: DiskState) -> None:
        """Report a change of the kind of trouble, not of its text: a full disk is reported once, however full it is."""
        if self.told is None or self.told.trouble != state.trouble:
            self.told = state
            self._changed()
