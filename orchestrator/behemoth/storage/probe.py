"""Probes a directory, before a run uses it, for what `local` relies on.

Two writers, each with a descriptor of its own, fill the same pages in turn; a mount that buffers a whole file for every
open handle, as object stores behind FUSE do, loses one of them. What it cannot find out is whether two machines see
each other's bytes: that is a property of the mount. Must leave nothing behind. The neighbour is `local`.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from behemoth.base.errors import Denied, Invalid
from behemoth.storage.folders import make_root, sync_folder
from behemoth.storage.keys import TEMP_PREFIX
from behemoth.storage.os_errors import named_errors

_PIECE_BYTES = 1000
"""Divides no page, so that most pages of 4 KiB have two writers."""
_NUM_PIECES = 64
_HINT = "use a local disk, NFS, Lustre or Weka; object stores mounted through FUSE are not supported, give their URL"


def probe(root: str | os.PathLike[str]) -> None:
    """Write, link and read a few files in `root`, which is made if missing. Blocks for a few fsyncs.

    Raises Invalid (`incoherent-store`) when the directory cannot hold checkpoints, Denied, Unavailable.
    """
    with named_errors(f"probe {os.fspath(root)}"):
        _make_folder(root)
        with _temp_names(root, 2) as (first, second):
            _two_writers(first)
            _one_winner(first, second)
            sync_folder(os.fspath(root))
        closed = next(_closed_folders(root), None)
        if closed is not None:
            raise Denied(
                f"checkpoint directory {os.fspath(root)}: expected to write in its folder {closed}, got no permission",
                hint="check owner and mode of the folder",
                code="store-denied",
            )


def _make_folder(root: str | os.PathLike[str]) -> None:
    """Durably, since the store that is opened next takes a root that stands for one that stays. Raises Invalid where a
    file stands in the way, Denied where the file system makes no folders."""
    path = os.path.abspath(root)
    try:
        make_root(path)
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Invalid(
            f"checkpoint directory {os.fspath(root)}: expected a folder that can be made, got {error.strerror}",
            hint="name another folder as the store, or mount the file system that belongs there",
            code="store-folder",
        ) from error


def _closed_folders(root: str | os.PathLike[str]) -> Iterator[str]:
    """Folders in which nothing can be made: found now, not by the first commit. `lost+found` is the file system's."""
    with os.scandir(root) as entries:
        for entry in entries:
            is_ours = entry.is_dir(follow_symlinks=False) and entry.name != "lost+found"
            if is_ours and not os.access(entry.path, os.W_OK | os.X_OK):
                yield entry.name


def _two_writers(path: str) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    pieces = [bytes([number % 251 + 1]) * _PIECE_BYTES for number in range(_NUM_PIECES)]
    fds = [os.open(path, flags, 0o666) for _ in range(2)]
    try:
        for fd in fds:
            os.ftruncate(fd, _PIECE_BYTES * _NUM_PIECES)
        for number, piece in enumerate(pieces):
            if os.pwrite(fds[number % 2], piece, number * _PIECE_BYTES) != _PIECE_BYTES:
                raise _unfit(path, "a short positional write")
        for fd in fds:
            os.fsync(fd)
    finally:
        for fd in fds:
            os.close(fd)
    with open(path, "rb") as file:
        if file.read() != b"".join(pieces):
            raise _unfit(path, "bytes of one of two writers of the same pages lost")


def _one_winner(first: str, second: str) -> None:
    try:
        os.link(first, second, follow_symlinks=False)
    except PermissionError as error:
        raise _unfit(first, "no hard links") from error
    try:
        os.link(first, second, follow_symlinks=False)
    except FileExistsError:
        return
    raise _unfit(first, "a link that replaced an existing name")


@contextmanager
def _temp_names(root: str | os.PathLike[str], count: int) -> Iterator[list[str]]:
    names = [os.path.join(root, f"{TEMP_PREFIX}probe-{secrets.token_hex(8)}") for _ in range(count)]
    try:
        yield names
    finally:
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(name)


def _unfit(path: str, got: str) -> Invalid:
    expected = "positional writes of two writers, hard links and an exclusive create"
    message = f"checkpoint directory {os.path.dirname(path)}: expected {expected}, got {got}"
    return Invalid(message, code="incoherent-store", hint=_HINT)
