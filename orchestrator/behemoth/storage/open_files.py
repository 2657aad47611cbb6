"""The files that one process is writing: each stays open from its first write until it is durable.

Why open so long: Linux tells a failed write-back to descriptors that were open when it failed (fsync(2)); a file that
is closed and opened again before fsync may have lost bytes without a word. On NFS a close also flushes, so one per
write would cost a round trip each. The number is bounded: the longest idle file is made durable and closed.
The neighbour is `local`.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from behemoth.base.errors import Timeout

CLOSING_LIMIT_S = 600.0
"""How long another thread may take to make a file durable and close it. Whoever takes longer hangs in the kernel."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(slots=True)
class _OpenFile:
    path: str
    fd: int
    num_users: int = 0


class OpenFiles:
    """Descriptors by path, shared by threads. Never closes one that a thread is using."""

    def __init__(self, *, limit: int, mode: int = 0o666) -> None:
        """`mode`: of files that are made, less the umask."""
        self._limit = limit
        self._mode = mode
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._failed: dict[str, OSError] = {}
        self._closing: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closed = threading.Condition(self._lock)

    @contextmanager
    def writing(self, path: str) -> Iterator[int]:
        """A descriptor for reading and writing; creates the file. Raises OSError as open(2) does."""
        file = self._borrow(path)
        try:
            yield file.fd
        finally:
            self._give_back(file)
        self._close_idle(above=self._limit)

    def sync(self, path: str) -> None:
        """Make the file durable and forget it. Raises OSError; a missing file is ENOENT, never created. Raises Timeout
        when another thread that closes the file does not come to an end."""
        with self._lock:
            # The kernel reports a failed write-back once: an fsync beside another thread's would succeed wrongly.
            self._wait_closed(path)
            failed = self._failed.pop(path, None)
            if failed is not None:
                raise failed
            file = self._known(path)
            if file is None:
                file = _OpenFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
            file.num_users += 1
        try:
            os.fsync(file.fd)
        finally:
            self._give_back(file, forget=True)

    def forget(self, path: str) -> None:
        """The file was deleted: its descriptor is closed when nobody uses it any more. Raises Timeout as `sync`
        does."""
        with self._lock:
            # What another thread is about to hear is of this file, and not of one that is written there afterwards.
            self._wait_closed(path)
            self._failed.pop(path, None)
            file = self._files.pop(path, None)
            if file is not None and file.num_users == 0:
                os.close(file.fd)

    def close(self) -> None:
        """Close everything without making it durable: what was not sealed was never promised."""
        with self._lock:
            for file in self._files.values():
                os.close(file.fd)
            self._files.clear()

    def _borrow(self, path: str) -> _OpenFile:
        with self._lock:
            file = self._known(path)
            if file is None:
                self._drop_removed()
                file = self._files[path] = _OpenFile(path, os.open(path, _FLAGS, self._mode))
            self._files.move_to_end(path)
            file.num_users += 1
            return file

    def _drop_removed(self) -> None:
        """Let go of files that another process removed (rubbish of a save that failed): until then they take space.
        Looked at from the longest idle one up to the first that is still there: to ask for all at each new file made
        the files of a save cost their number squared."""
        while self._files:
            file = next(iter(self._files.values()))
            if file.num_users > 0 or os.fstat(file.fd).st_nlink > 0:
                return
            del self._files[file.path]
            os.close(file.fd)

    def _known(self, path: str) -> _OpenFile | None:
        """The open file, unless another process removed it meanwhile: writing into it would reach nobody."""
        file = self._files.get(path)
        if file is None or os.fstat(file.fd).st_nlink > 0:
            return file
        del self._files[path]
        if file.num_users == 0:
            os.close(file.fd)
        return None

    def _give_back(self, file: _OpenFile, *, forget: bool = False) -> None:
        with self._lock:
            file.num_users -= 1
            if file.num_users > 0:
                return
            if forget and self._files.get(file.path) is file:
                del self._files[file.path]
            if self._files.get(file.path) is not file:
                os.close(file.fd)

    def _close_idle(self, *, above: int) -> None:
        """Sync and close the longest idle files. An error is kept for whoever seals that file, and not raised to the
        caller, which happens to write another file."""
        while (file := self._take_idle(above)) is not None:
            failed: OSError | None = None
            try:
                try:
                    os.fsync(file.fd)
                finally:
                    os.close(file.fd)
            except OSError as error:
                failed = error
            finally:
                self._is_closed(file.path, failed)

    def _take_idle(self, above: int) -> _OpenFile | None:
        """The longest idle file, when more than `above` are open; it is answered by `_is_closed`."""
        with self._lock:
            file = next((file for file in self._files.values() if file.num_users == 0), None)
            if file is None or len(self._files) <= above:
                return None
            del self._files[file.path]
            self._closing[file.path] += 1
            return file

    def _wait_closed(self, path: str) -> None:
        if not self._closed.wait_for(lambda: not self._closing[path], CLOSING_LIMIT_S):
            raise Timeout(
                f"{path}: expected another thread to make it durable within {CLOSING_LIMIT_S:g} s, got no end of it",
                hint="the disk or the mount does not answer; look into the kernel log (dmesg)",
                code="disk-stuck",
            )

    def _is_closed(self, path: str, failed: OSError | None) -> None:
        with self._lock:
            if failed is not None:
                self._failed[path] = failed
            self._closing[path] -= 1
            if not self._closing[path]:
                del self._closing[path]
            self._closed.notify_all()
