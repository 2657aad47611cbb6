"""Keeps gc away from what imports are writing into a store that no run owns.

Such a store has no run directory whose lock could be checked, so flock(2) is taken on the store's own folder: the
kernel releases it when its holder dies. It works between processes of machines whose file system shares locks; an S3
store has no such lock. An flock belongs to the open file, and so to forked children too: they close it at once, and
leave it to the process that took it. Neighbour: `store_lock`, for stores that a run owns.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from behemoth.app.run_directory import no_locks
from behemoth.base.errors import BehemothError, Conflict
from behemoth.storage.folders import empty_folders, make_root, missing_folders, remove_made
from behemoth.storage.os_errors import named_errors

_HELD: set[int] = set()
"""Open files of this process's locks."""


def _close_in_child() -> None:
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """Hold the lock against gc (`clearing`) during the block; other imports may run. Creates `folder`, and removes it
    when the block fails and has left nothing there. Raises Conflict while a gc runs there."""
    missing = missing_folders(os.path.abspath(folder))
    try:
        with named_errors(f"store {folder}"):
            make_root(os.path.abspath(folder))
        with _locked(folder, fcntl.LOCK_SH, expected="no gc to be running there", got="one that is"):
            yield
    except BaseException:
        if missing:
            _remove(folder, missing)
        raise


@contextmanager
def clearing(folder: Path) -> Iterator[None]:
    """Hold the lock against imports into the store in `folder` during the block. Raises Conflict while one runs."""
    with _locked(folder, fcntl.LOCK_EX, expected="no import to be running there", got="one that is"):
        yield


def _remove(folder: Path, made: Sequence[str]) -> None:
    """Under the lock of a gc, so that the folder stays for another import that has begun there."""
    with suppress(BehemothError), clearing(folder):
        remove_made([*(os.path.join(folder, name) for name in empty_folders(str(folder))), *made])


@contextmanager
def _locked(folder: Path, how: int, *, expected: str, got: str) -> Iterator[None]:
    with named_errors(f"store {folder}"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _HELD.add(fd)
    owner = os.getpid()
    try:
        hint = "wait for it, or end it"
        busy = Conflict(f"store {folder}: expected {expected}, got {got}", hint=hint, code="store-busy")
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        except OSError as error:
            raise no_locks(f"store {folder}", error) from error
        if not _is_still(folder, fd):  # an import that failed has removed it since it was opened
            raise busy
        yield
    finally:
        if os.getpid() == owner:  # a forked child that unwinds would take the lock from its parent
            with suppress(OSError):  # of a file system without locks
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone would leave it to children that were forked otherwise
            _HELD.discard(fd)
            os.close(fd)


def _is_still(folder: Path, fd: int) -> bool:
    """Whether the open folder is the one of that name: the lock of another one keeps nobody away."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(folder), os.fstat(fd))
    return False
