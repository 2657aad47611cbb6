"""The files that one process is writing: each stays open from its first write until it is durable.

Why open so long: Linux tells a failed write-back to descriptors that were open when it failed (fsync(2)); a file that
is closed and opened again before fsync may have lost bytes without a word. On NFS a close also flushes, so one per
write would cost a round trip each. The number is bounded: the longest idle file is made durable and closed.
The neighbour is `local`.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
        self._lock = threading.Lock()

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
        """Make the file durable and forget it. Raises OSError; a missing file is ENOENT, never created."""
        with self._lock:
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
        """The file was deleted: its descriptor is closed when nobody uses it any more."""
        with self._lock:
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
        """Whoever seals a file hears that it could not be made durable here, not whoever happens to write another."""
        for file in self._take_idle(above):
            try:
                os.fsync(file.fd)
            except OSError as error:
                with self._lock:
                    self._failed[file.path] = error
            finally:
                os.close(file.fd)

    def _take_idle(self, above: int) -> list[_OpenFile]:
        with self._lock:
            num_excess = max(0, len(self._files) - above)
            idle = [file for file in self._files.values() if file.num_users == 0][:num_excess]
            for file in idle:
                del self._files[file.path]
            return idle
