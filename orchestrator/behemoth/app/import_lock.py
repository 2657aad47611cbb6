"""Keeps gc away from what imports are writing into a store that no run owns.

Such a store has no run directory whose lock would tell, so the lock is on the store's own folder, by the kernel: it
goes with whoever is killed. It holds among processes of machines whose file system shares locks; a store that is no
folder has none. The kernel's lock belongs to the open file and so to children that are forked meanwhile as well: they
give it up at once, and leave it to the process that took it. Neighbour: `store_lock`, for stores that a run owns.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from behemoth.base.errors import Conflict
from behemoth.storage.os_errors import named_errors

_HELD: set[int] = set()
"""Open files of this process's locks."""


def _close_in_child() -> None:
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """While this lasts nobody may `clear` the store in `folder`, which is made; others may import too. Raises Conflict
    while somebody clears it."""
    with named_errors(f"store {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, fcntl.LOCK_SH, expected="nobody to clean up there", got="a gc that is under way"):
        yield


@contextmanager
def clearing(folder: Path) -> Iterator[None]:
    """While this lasts nobody may import into the store in `folder`. Raises Conflict while somebody does."""
    with _locked(folder, fcntl.LOCK_EX, expected="nobody to import there", got="an import that is under way"):
        yield


@contextmanager
def _locked(folder: Path, how: int, *, expected: str, got: str) -> Iterator[None]:
    with named_errors(f"store {folder}"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _HELD.add(fd)
    owner = os.getpid()
    try:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "wait for it, or end it"
            raise Conflict(f"store {folder}: expected {expected}, got {got}", hint=hint, code="store-busy") from error
        yield
    finally:
        if os.getpid() == owner:  # a forked child that unwinds would take the lock from its parent
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave it to children that were forked by other means
            _HELD.discard(fd)
            os.close(fd)
