"""The body of one request: several buffers that are read like one file, so that they are sent without a copy.

Must know buffers and time only. The neighbour is `s3_client`, which sends them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

_GATHERED_BYTES = 4096
_NOTHING = memoryview(b"")


class Body(io.RawIOBase):
    """A file of `views` one after another. Reading it after `ends_s` of `now` raises TimeoutError: a server that takes
    a byte now and then would hold a request for ever, since each of them is on time."""

    def __init__(
        self, views: Sequence[memoryview], *, ends_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._views = views
        self._size_bytes = sum(view.nbytes for view in self._views)
        self._ends_s = ends_s
        self._now = now
        self._at = 0
        self._number = 0  # of the view in which `_at` lies, and where that begins
        self._begin = 0

    def __len__(self) -> int:
        return self._size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        self._at = min(max(0, origin + offset), self._size_bytes)
        self._number = self._begin = 0
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes; none at the end of all. Large ones are not copied, small buffers are gathered: sent one
        by one, each would be a packet."""
        if self._now() > self._ends_s:
            raise TimeoutError("expected the body to be taken in time")
        if size is None or size < 0:
            return b"".join(iter(lambda: self._take(self._size_bytes), _NOTHING))
        first = self._take(size)
        least = min(size, _GATHERED_BYTES)
        if not 0 < first.nbytes < least:
            return first  # type: ignore[return-value]  # a buffer: all that a socket needs
        gathered = bytearray(first)
        while len(gathered) < least and (more := self._take(least - len(gathered))):
            gathered += more
        return bytes(gathered)

    def _take(self, most: int) -> memoryview:
        """Bytes of one buffer; none of the next one when none are asked for."""
        while self._number < len(self._views):
            view = self._views[self._number]
            at = self._at - self._begin
            if at < view.nbytes:
                taken = view[at : at + most]
                self._at += taken.nbytes
                return taken
            self._begin += view.nbytes
            self._number += 1
        return _NOTHING
