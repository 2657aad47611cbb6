"""How work that takes long and is given up ends: at the next chunk, by an error that nobody waits for.

Neighbours: `reshard_reader`, `scaled_reader` and `interop.unit_writer`, which ask, and `pacing`, which ends the waits
of reads that are held back.
"""

from __future__ import annotations

from collections.abc import Callable

from behemoth.base.errors import Conflict

Cancelled = Callable[[], bool]
"""Asked again and again, from several threads, whether work was given up."""


def never() -> bool:
    """Of work that comes to its end."""
    return False


def require_wanted(cancelled: Cancelled, *, what: str) -> None:
    """Raises Conflict for work that was given up."""
    if cancelled():
        raise Conflict(f"{what}: cancelled", code="cancelled")
