"""The private folder of an embedded Ray: short enough for its sockets, and removed whatever is killed when.

A folder is in use while it is locked (flock(2) on the folder itself), by the run or by the keeper of its Ray, which
removes it at the end. What a killed keeper left behind is recognised by its free lock and removed by the next start.
This module knows nothing of Ray but the length of its paths; the neighbour is `behemoth.rayrt.link`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from behemoth.base.errors import Unavailable

PREFIX = "bmh-ray-"
_MAX_ROOT_CHARS = 20
"""A unix socket path has at most 107 bytes (unix(7)); Ray adds 68 and this module 17."""
_NUM_TRIES = 10


def make_temp_dir(root: Path | None = None) -> tuple[Path, int]:
    """A new folder with mode 0700 and the descriptor of its held lock, which the caller closes.

    Raises Unavailable when none can be made.
    """
    root = root or temp_root()
    for _ in range(_NUM_TRIES):
        path = _new_folder(root)
        lock_fd = _lock_of(path)
        if lock_fd is not None:
            return path, lock_fd
    raise Unavailable(f"temporary folder {root}/{PREFIX}*: expected to lock a new one, got {_NUM_TRIES} removed")


def remove_left_behind(root: Path | None = None) -> list[Path]:
    """Remove this user's folders whose lock nobody holds; returns them. Folders in use are left alone."""
    return [path for path in _own_folders(root or temp_root()) if _remove_unlocked(path)]


def temp_root() -> Path:
    """The system's temporary folder, or /tmp where its path is too long for unix sockets."""
    root = tempfile.gettempdir()
    return Path(root if len(root) <= _MAX_ROOT_CHARS else "/tmp")


def _new_folder(root: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    except OSError as error:
        raise Unavailable(f"temporary folder in {root}: expected a new one, got {error.strerror}") from error


def _lock_of(path: Path) -> int | None:
    """The held lock (of the folder itself), unless a sweeper was faster: then it is locked already, or gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    os.close(fd)
    return None


def _own_folders(root: Path) -> Iterator[Path]:
    for path in sorted(root.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if path.stat(follow_symlinks=False).st_uid == os.getuid():
                yield path


def _remove_unlocked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
