"""The folders of a directory store: created and synced in an order that survives a power cut, walked in key order, and
removed when they are empty.

Must know paths only, and nothing of open files or of what objects hold. The neighbour is `local`, the store.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from behemoth.base.errors import Denied, Invalid
from behemoth.ports import ObjectInfo
from behemoth.storage.keys import TEMP_PREFIX
from behemoth.storage.os_errors import named_errors, translated

_NOT_REMOVED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR)
"""What rmdir(2) says of a folder that is not empty, or that is no folder any more."""
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""What link(2) says of a file of one's own where the file system has no hard links (exFAT, some mounts of SMB)."""


def make_root(root: str, *, mode: int = 0o777) -> None:
    """Make the root and those above it; the entry of each new one is durable before anything is put into it.

    Folders below are not synced here: `seal` and `create` sync all of them up to the root, once, and one sync for each
    new folder was a third of a save's time (ext4 commits its journal for each). Raises Denied where a file system has
    no place for folders, and OSError.
    """
    if os.path.isdir(root):
        return
    above = os.path.dirname(root)
    make_root(above, mode=mode)
    try:
        os.mkdir(root, mode)
    except FileExistsError:
        pass
    except FileNotFoundError as error:
        if not os.path.isdir(above):
            raise
        raise Denied(  # it is there: so answers /proc, and "no such file" would say nothing
            f"folder {root}: expected to make it, got a file system that takes no new folders in {above}",
            hint="name a folder on a disk",
            code="no-folders",
        ) from error
    sync_folder(above, missing_ok=True)


def missing_folders(folder: str) -> list[str]:
    """A folder and those above it that are not there, deepest first: those that `make_root` will make."""
    found = []
    while not os.path.lexists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


def remove_made(folders: Iterable[str]) -> None:
    """Remove folders of which somebody else may have made use meanwhile: those in which anything lies stay."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)


@contextmanager
def removed_after_error(folder: str) -> Iterator[None]:
    """When the block fails, `folder` and those above it that it has made are removed, if nothing lies there."""
    made = missing_folders(os.path.abspath(folder))
    try:
        yield
    except BaseException:
        remove_made(made)
        raise


def make_folders(folder: str, *, mode: int) -> None:
    """Make a folder and those above it that are missing, all with this mode: `os.makedirs` gives it to the last one
    alone. Raises FileExistsError when something else stands there."""
    if os.path.isdir(folder):
        return
    make_folders(os.path.dirname(folder), mode=mode)
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise


def sync_folder(folder: str, *, missing_ok: bool = False) -> None:
    """Make the entries of one folder durable. Raises OSError."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        if missing_ok:
            return
        raise
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unlink(path: str) -> None:
    """Remove a file; a missing one is fine. Raises OSError."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def link(path: str, new: str) -> None:
    """Give a file a second name. Raises FileExistsError where that is taken, Invalid on a file system without hard
    links, and OSError."""
    try:
        os.link(path, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise Invalid(
            f"{new}: expected a file system with hard links, got one without",
            hint="name a folder on another one, such as a local disk, NFS, Lustre or Weka",
            code="no-links",
        ) from error


def walk(folder: str, prefix: str, *, temps: bool = False) -> Iterator[ObjectInfo]:
    """Objects below `folder`, or the temporary files there. A folder sorts as its name and `/`: that is key order."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name, entry in found:
        if name.endswith("/"):
            yield from walk(entry.path, f"{prefix}{name}", temps=temps)
        elif name.startswith(TEMP_PREFIX) == temps:
            with suppress(FileNotFoundError):
                yield ObjectInfo(key=f"{prefix}{name}", size_bytes=entry.stat(follow_symlinks=False).st_size)


def empty_folders(root: str) -> Iterator[str]:
    """Folders below `root` in which there is nothing but such folders, deepest first."""
    full: set[str] = {root}
    for folder, _, files in os.walk(root, topdown=False):
        if files or folder in full:
            full.add(os.path.dirname(folder))
        else:
            yield f"{os.path.relpath(folder, root)}/"


def remove_empty(root: str, folders: set[str]) -> None:
    """Remove those that are empty, deepest first, and never the root. Raises Behemoth's errors."""
    for folder in sorted(folders - {root}, key=len, reverse=True):
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in _NOT_REMOVED:
                raise translated(error, f"delete folder {folder}") from error


def sync_folders(folders: Iterable[str], *, missing_ok: bool = False) -> None:
    """Make the entries of folders durable, deepest first. Raises Behemoth's errors."""
    for folder in sorted(folders, key=len, reverse=True):
        with named_errors(f"fsync directory {folder}"):
            sync_folder(folder, missing_ok=missing_ok)
