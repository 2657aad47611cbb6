"""Keeps runs out of a store while somebody else acts on it: a command may delete only where nobody leads.

The store names the run that owns it, and the lock of that run's directory tells whether the run is alive. So a command
takes that lock, as the run itself would. Where the directory cannot be found it is refused, since nobody can tell
whether the run is alive. Neighbours: `checkpoint.owner`, `run_directory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from behemoth.app.run_directory import RunDirectory
from behemoth.base.errors import Conflict
from behemoth.checkpoint.owner import Owner, read_owner, require_own
from behemoth.ports import ObjectStore


def directory_of(owner: Owner, candidates: Iterable[Path], *, root: str) -> RunDirectory | None:
    """The directory of the run that owns the store at the path `root`, None when it is not found.

    A directory that contains the store comes first; then the place that the store names; then the first of `candidates`
    that is that run's, which was moved. The order matters because a copied directory has another lock than the live
    run.
    """
    directories = [RunDirectory(path) for path in (Path(owner.directory), *candidates)]
    found = [directory for directory in directories if directory.is_of(owner.run_uid)]
    within = (directory for directory in found if directory.has_own_store(root))
    return next(within, found[0] if found else None)


@contextmanager
def leading(store: ObjectStore, *, url: str, candidates: Iterable[Path]) -> Iterator[bool]:
    """Keep runs out of the store at `url` during the block: none starts or resumes there. Yields False for a store
    without an owner: a run that is just beginning there is not kept out.

    Raises Conflict when the owner is alive, or its directory is not to be found; Corrupt when whose the store is cannot
    be read.
    """
    owner = read_owner(store)
    if owner is None:
        yield False
        return
    directory = directory_of(owner, candidates, root=url)
    if directory is None:
        raise Conflict(
            f"checkpoint store {url}: expected the directory of run/{owner.name} at {owner.directory}, got none: "
            "nobody can tell whether that run is alive",
            hint="name the run directory instead of the store if it was moved; if the run is over and its directory is "
            "gone, remove owner/run.json from the store",
            code="owner-unknown",
        )
    directory.open()
    try:
        require_own(store, owner.run_uid, url=url)
        yield True
    finally:
        directory.close()
