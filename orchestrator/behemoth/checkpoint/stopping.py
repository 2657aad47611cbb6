"""How long work is cancelled: it ends at the next chunk with Conflict.

Neighbours: `reshard_reader`, `scaled_reader` and `interop.unit_writer`, which ask, and `pacing`, which ends the waits
of reads that are held back.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.base.errors import Conflict

Cancelled = Callable[[], bool]
"""Whether the work was cancelled; called often, from several threads."""


def never() -> bool:
    """For work that is never cancelled."""
    return False


def require_wanted(cancelled: Cancelled, *, what: str) -> None:
    """Raises Conflict, whose message begins with `what`, when the work was cancelled."""
    if cancelled():
        raise Conflict(f"{what}: cancelled", code="cancelled")
