"""Whether a store's run would keep a command out, for plans that must not take its lock.

Neighbour: `behemoth.app.store_lock`, which takes it for those that act.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from behemoth.app.store_lock import directory_of
from behemoth.checkpoint.owner import Owner
from behemoth_cli.context import lock_holder


def in_the_way(owner: Owner, candidates: Iterable[Path], *, url: str) -> str:
    """Why a command may not act on the store at `url` now: its run is alive, or its directory is not found. Empty where
    it may."""
    directory = directory_of(owner, candidates, root=url)
    if directory is None:
        return f"run/{owner.name} is not to be found at {owner.directory}"
    return "" if lock_holder(directory.path / "lock") is None else f"run/{owner.name} is alive"
