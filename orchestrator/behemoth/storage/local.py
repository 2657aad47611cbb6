"""The ObjectStore on a directory: a local disk, or NFS, Lustre, Weka with coherent positional writes.

Keys are paths below the root. Ordinary objects are created at their final size and filled at known offsets by any
number of processes; small ones appear whole, by link(2). It must not interpret what it stores, and it follows no
symbolic link below its root. That guards against a wrong turn, not against somebody who swaps directories meanwhile.
Neighbours: `direct` takes large transfers past the page cache, `probe` asks whether a mount can do all this.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter

from typing_extensions import Buffer

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, Invalid, Unavailable
from behemoth.ports import Into, ObjectInfo, Part
from behemoth.storage.direct import Direct
from behemoth.storage.folders import empty_folders, make_folders, make_root, remove_empty, sync_folders, unlink, walk
from behemoth.storage.keys import TEMP_PREFIX, segments_of, segments_of_prefix
from behemoth.storage.mounts import is_on_network
from behemoth.storage.open_files import OpenFiles
from behemoth.storage.os_errors import translated
from behemoth.storage.page_cache import cached_bytes
from behemoth.storage.positional import (
    BufferRun,
    byte_view,
    read_all,
    runs_of,
    target_views,
    write_all,
)

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TEMP_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_NUM_TRIES = 5
"""How often a folder that `delete` of another process takes away is made again before we give up."""
_CLEARED_HINT = "something else deletes in this store again and again: stop it"


class LocalStore:
    """One directory. The root is made by the first write. Thread-safe; many processes may share a root.

    `max_open_files` bounds the descriptors that wait for `seal`, and so does what the process may open. Without
    `direct_writes` writes go through the page cache, for data that are read again soon on this machine and are nowhere
    else in memory. With `is_private` files and folders are accessible to their owner only; otherwise the process's
    umask applies.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        max_open_files: int = 256,
        direct_writes: bool = True,
        is_private: bool = False,
    ) -> None:
        self._root = os.path.abspath(root)
        self._direct = Direct(writes=direct_writes)
        self._file_mode, self._folder_mode = (0o600, 0o700) if is_private else (0o666, 0o777)
        self._files = OpenFiles(limit=_open_limit(max_open_files), mode=self._file_mode)

    @property
    def root(self) -> str:
        """Absolute path of the directory."""
        return self._root

    def write_parts(self, key: str, *, size_bytes: int, parts: Sequence[Part]) -> None:
        """See the port. Raises Conflict when the object exists with another size, Unavailable `no-space`."""
        path = self._path(segments_of(key))
        runs = runs_of(key, size_bytes, parts)
        with self._named(f"write {key}"):
            self._write_runs(key, path, size_bytes, runs)

    def seal(self, keys: Sequence[str]) -> None:
        """See the port. Also syncs every folder between the files and the root, deepest first."""
        folders: set[str] = set()
        for key in keys:
            segments = segments_of(key)
            with self._named(f"seal {key}"):
                self._files.sync(self._path(segments))
            folders.update(self._folders_above(segments))
        sync_folders(folders)

    def create(self, key: str, data: Buffer) -> None:
        """See the port. A temporary file is written, made durable, and linked to its name; whoever finds the name
        taken has lost, and what stands there is durable then. A crash leaves at most a temporary file, which
        `leftovers` tells."""
        segments = segments_of(key)
        view, doing = byte_view(data, f"create {key}"), f"create {key}"
        with self._named(doing):
            path = self._path(segments)
            try:
                self._from_temp(doing, path, lambda temp: _link_durable(key, temp, path, view, self._file_mode))
            except Conflict:
                # Whoever finds that object to be the same relies on it; its maker may have died before this sync.
                sync_folders(self._folders_above(segments), missing_ok=True)
                raise
            sync_folders(self._folders_above(segments))

    def replace(self, key: str, *, old: Buffer, new: Buffer) -> None:
        """See the port. A temporary file is written, made durable, and renamed. Nothing holds the file between the look
        and that, so of two callers at once both may win, and the later one stands."""
        segments = segments_of(key)
        before, after = byte_view(old, f"replace {key}"), byte_view(new, f"replace {key}")
        path, doing = self._path(segments), f"replace {key}"
        with self._named(doing):
            standing = _contents(path, max(before.nbytes, after.nbytes))
            if standing != after:
                if standing != before:
                    raise Conflict(f"{doing}: expected the object as it was, got another", code="changed")
                self._from_temp(doing, path, lambda temp: _rename_durable(temp, path, after, self._file_mode))
            sync_folders(self._folders_above(segments))

    def read_into(self, key: str, *, offset_bytes: int, into: Into) -> None:
        """See the port. Raises Corrupt too when something that is no regular file stands there."""
        views = target_views(into, key, offset_bytes)
        path = self._path(segments_of(key))
        with self._named(f"read {key}"), _opened(path) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Corrupt(f"read {key}: expected a regular file, got one of mode {os.fstat(fd).st_mode:o}")
            done_bytes = self._direct.read(fd, offset_bytes, views)
            read_all(fd, key, offset_bytes, views, done_bytes=done_bytes)

    def folder(self, prefix: str) -> str:
        """See the port."""
        return self._path(segments_of_prefix(prefix))

    def cached_share(self, ranges: Iterable[tuple[str, int, int]]) -> float:
        """See the port."""
        wanted_bytes = held_bytes = 0
        for key, of_key in groupby(ranges, key=itemgetter(0)):
            with self._named(f"ask for {key}"), _opened(self._path(segments_of(key))) as fd:
                for _, offset_bytes, num_bytes in of_key:
                    wanted_bytes += num_bytes
                    held_bytes += min(cached_bytes(fd, offset_bytes, num_bytes) or 0, num_bytes)
        return held_bytes / max(wanted_bytes, 1)

    def is_on_network(self) -> bool:
        """See the port."""
        return is_on_network(self._root)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See the port. Links and other strange files are told too, so that a check can name them; temporary files are
        not. What vanishes meanwhile is left out."""
        segments = segments_of_prefix(prefix)
        with self._named(f"list {prefix or 'all'}"):
            yield from walk(self._path(segments), "".join(f"{segment}/" for segment in segments))

    def move(self, source: str, target: str) -> None:
        """See the port. By link(2), which never replaces anything."""
        segments, to_segments = segments_of(source), segments_of(target)
        path, to_path = self._path(segments), self._path(to_segments)
        with self._named(f"move {source} to {target}"):
            self._link_new(target, path, to_path)
            sync_folders(self._folders_above(to_segments))
            unlink(path)
            self._files.forget(path)
            folders = set(self._folders_above(segments))
            remove_empty(self._root, folders)
            sync_folders(folders, missing_ok=True)

    def delete(self, keys: Sequence[str]) -> None:
        """See the port. In the given order, and durable on return, so that what must go first has gone first."""
        folders: set[str] = set()
        for key in keys:
            segments = segments_of(key)
            path = self._path(segments)
            with self._named(f"delete {key}"):
                unlink(path)
                self._files.forget(path)
            folders.update(self._folders_above(segments))
        remove_empty(self._root, folders)
        sync_folders(folders, missing_ok=True)

    def leftovers(self) -> Iterator[str]:
        """Temporary files of creations that were cut off, or are under way, as paths relative to the root. Then folders
        that writes made and put nothing into, deepest first, with a `/` at the end."""
        with self._named("list leftovers"):
            yield from (info.key for info in walk(self._root, "", temps=True))
            yield from empty_folders(self._root)

    def delete_leftovers(self, names: Sequence[str]) -> None:
        """Remove temporary files and empty folders, and folders above them that nothing else is in; missing ones are
        fine. Whoever still uses one makes it again."""
        folders: set[str] = set()
        for name in names:
            if name.endswith("/"):
                segments = segments_of_prefix(name[:-1])
                folders.update((self._path(segments), *self._folders_above(segments)))
                continue
            folder, _, last = name.rpartition("/")
            if not last.startswith(TEMP_PREFIX):
                raise Invalid(
                    f"delete leftover {name!r}: expected a name that begins with {TEMP_PREFIX!r}, got another"
                )
            segments = (*segments_of_prefix(folder), last)
            with self._named(f"delete leftover {name}"):
                unlink(self._path(segments))
            folders.update(self._folders_above(segments))
        remove_empty(self._root, folders)

    def close(self) -> None:
        """Give back all descriptors. What was written and not sealed is not made durable."""
        self._files.close()

    @contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        """Errors inside begin with the path of the store, since a copy has two, and with what was done."""
        try:
            yield
        except BehemothError as error:  # first: our Timeout is an OSError too
            if self._root in error.message:
                raise
            raise error.within(self._root) from error
        except OSError as error:
            raise translated(error, f"{self._root}: {doing}") from error

    def _path(self, segments: Sequence[str]) -> str:
        """The path, after a look at every folder on the way: none may be a link."""
        path = self._root
        for segment in segments[:-1]:
            path = f"{path}/{segment}"
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                break
            if stat.S_ISLNK(mode):
                raise Denied(f"{path}: expected a directory, got a symbolic link", hint="remove the link")
        return "/".join((self._root, *segments))

    def _folders_above(self, segments: Sequence[str]) -> Iterable[str]:
        return ["/".join((self._root, *segments[:depth])) for depth in range(len(segments))]

    def _write_runs(self, key: str, path: str, size_bytes: int, runs: Sequence[BufferRun]) -> None:
        for _ in range(_NUM_TRIES):
            try:
                with self._files.writing(path) as fd:
                    _set_size(fd, key, size_bytes)
                    for run in runs:
                        self._direct.write(fd, run)
                return
            except FileNotFoundError:
                self._make_folder(os.path.dirname(path))
        raise Unavailable(
            f"write {key}: expected its folder to stay, got it cleared away {_NUM_TRIES} times", hint=_CLEARED_HINT
        )

    def _make_folder(self, folder: str) -> None:
        make_root(self._root, mode=self._folder_mode)
        if folder != self._root and not os.path.isdir(folder):
            with suppress(FileExistsError):  # what stands there instead is told by the open(2) that follows
                make_folders(folder, mode=self._folder_mode)

    def _from_temp(self, doing: str, path: str, make: Callable[[str], None]) -> None:
        """`make` writes the temporary file that it is told, beside `path`, and gives it that name."""
        folder = os.path.dirname(path)
        for _ in range(_NUM_TRIES):
            temp = os.path.join(folder, f"{TEMP_PREFIX}{secrets.token_hex(8)}")
            try:
                self._make_folder(folder)
                make(temp)
                return
            except FileNotFoundError:
                continue  # somebody's gc cleared the folder or the temporary file away
            finally:
                unlink(temp)
        raise Unavailable(
            f"{doing}: expected its folder and its unfinished file to stay, got them cleared away {_NUM_TRIES} times",
            hint=_CLEARED_HINT,
        )

    def _link_new(self, key: str, path: str, to_path: str) -> None:
        os.stat(path, follow_symlinks=False)  # so that a missing folder below is the target's
        self._make_folder(os.path.dirname(to_path))
        try:
            os.link(path, to_path, follow_symlinks=False)
        except FileExistsError as error:
            raise Conflict(f"move to {key}: expected no such object, got one", code="exists") from error


def _open_limit(asked: int) -> int:
    """A quarter of what the process may open (ulimit -n) where that is less: it lists and reads meanwhile, and has
    connections."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return asked if allowed == resource.RLIM_INFINITY else min(asked, max(1, allowed // 4))


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, _READ_FLAGS)
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, "an object stands where a folder is expected") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _set_size(fd: int, key: str, size_bytes: int) -> None:
    """Give a new file its final size; several processes may do so at once."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Conflict(f"write {key}: expected a regular file, got one of mode {status.st_mode:o}")
    if status.st_size == size_bytes:
        return
    if status.st_size != 0:
        raise Conflict(f"write {key}: expected an object of {size_bytes} bytes, got one of {status.st_size} bytes")
    os.ftruncate(fd, size_bytes)


def _contents(path: str, most_bytes: int) -> memoryview | None:
    """Of a file, and a byte more than `most_bytes` of a longer one; None of what is no regular file."""
    with _opened(path) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        found = bytearray()
        while len(found) <= most_bytes and (more := os.read(fd, most_bytes + 1 - len(found))):
            found += more
        return memoryview(found)


def _rename_durable(temp: str, path: str, data: memoryview, mode: int) -> None:
    """Write `temp`, make it durable, and put it in the place of what stands at `path`."""
    fd = os.open(temp, _TEMP_FLAGS, mode)
    try:
        write_all(fd, (0, [data] if data.nbytes else []))
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temp, path)


def _link_durable(key: str, temp: str, path: str, data: memoryview, mode: int) -> None:
    """Write `temp`, make it durable, and give it its second, final name. Raises Conflict when that is taken."""
    fd = os.open(temp, _TEMP_FLAGS, mode)
    try:
        write_all(fd, (0, [data] if data.nbytes else []))
        os.fsync(fd)
        try:
            os.link(temp, path, follow_symlinks=False)
        except FileExistsError as error:
            # A link request that NFS sent twice can lose against itself; the second name tells.
            if os.fstat(fd).st_nlink < 2:
                raise Conflict(f"create {key}: expected no such object, got one", code="exists") from error
    finally:
        os.close(fd)
